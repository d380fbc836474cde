"""One lab node: its writable layer, its namespaces, and the command that enters it."""

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.cgroups import Hierarchy
from lab.layout import REPOSITORY, LabError, base_directory, cache_directory, node_directory

# A node starts without what the host has in these folders: the host may itself be a Salt
# minion, a master, or a cluster's control node.
HIDDEN = (
    "/etc/salt",
    "/etc/cluster",
    "/opt/cluster",
    "/srv/pillar",
    "/srv/salt",
    "/var/cache/salt",
    "/var/lib/cluster",
    "/var/log/cluster",
    "/var/log/salt",
)
NODE_CACHE = "/var/cache/cluster"
_DISK_FILESYSTEMS = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "xfs", "zfs"}
_OWN_TREES = ("/boot", "/dev", "/media", "/mnt", "/proc", "/run", "/sys", "/tmp")  # noqa: S108 (mounts)
_PASSED_ON = re.compile(
    r"PIP_(?!PROXY$).+|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|CLUSTER_(?!LAB|CACHE$|RUNS$|PROFILE).+"
)


@dataclass(frozen=True)
class NodeSpec:
    """Specification of one node of the lab."""

    lab: str
    name: str
    hostname: str
    cores: list[int] | None
    memory_bytes: int | None
    cpu_share: float = 1.0
    mounts: tuple[str, ...] = ()  # mount points of the host that the node sees as they are


def write_layer(spec: NodeSpec, files: Mapping[str, tuple[str, int]]) -> None:
    """Put `files` (path -> text, mode) and the hidden folders into the node's layer, before it is mounted."""
    upper = node_directory(spec.lab, spec.name) / "layer" / "upper"
    for hidden in HIDDEN:
        directory = upper / hidden.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        # overlayfs: an opaque folder does not show the lower one of the same name.
        os.setxattr(directory, "trusted.overlay.opaque", b"y")
    everything = {
        "/etc/hostname": (f"{spec.hostname}\n", 0o644),
        # The node is its own machine, the same one each time the lab comes up.
        "/etc/machine-id": (f"{uuid.uuid5(uuid.NAMESPACE_DNS, f'{spec.name}.{spec.lab}.lab').hex}\n", 0o444),
        "/etc/resolv.conf": ("", 0o644),
        "/etc/nsswitch.conf": (_without_resolver(Path("/etc/nsswitch.conf")), 0o644),
        **files,
    }
    for name, (text, mode) in everything.items():
        file = upper / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
    # A folder in the upper layer brings its owner and mode to the merged one: keep the host's.
    for path in (upper, *upper.rglob("*")):
        relative = path.relative_to(upper)
        host = Path("/") / relative
        if path.is_dir() and host.is_dir() and not f"/{relative}".startswith(HIDDEN):
            attributes = host.stat()
            os.chown(path, attributes.st_uid, attributes.st_gid)
            path.chmod(attributes.st_mode & 0o7777)


def start(spec: NodeSpec, hierarchy: Hierarchy, deadline: float) -> int:
    """Start the node's namespaces inside its group; return the process id of its first process.

    Raises
    ------
    LabError
        With what failed, or when it is not there by `deadline` (monotonic seconds).
    """
    directory = node_directory(spec.lab, spec.name)
    root = directory / "root"
    root.mkdir(parents=True, exist_ok=True)
    hierarchy.create(spec.lab, spec.name, spec.cores, spec.memory_bytes, spec.cpu_share)
    specification = directory / "node.json"
    specification.write_text(
        json.dumps(
            {
                "hostname": spec.hostname,
                "root": str(root),
                "layer": str(directory / "layer"),
                "lower_mounts": lower_mounts(),
                "masks": [str(base_directory())],
                "binds": [
                    # Read-only, and not through the overlay: an edit shows at once in every node.
                    *([path, path, False] for path in (*shared_paths(), *spec.mounts)),
                    [str(cache_directory()), NODE_CACHE, True],
                ],
                "cgroups": [[mount.path.name, mount.filesystem, mount.options] for mount in hierarchy.mounts],
                "init": [_tool("tini"), "--", _tool("sleep"), "infinity"],
            }
        )
    )
    unshare = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--fork", "--kill-child"]
    inner = [sys.executable, "-I", "-S", str(Path(__file__).with_name("node_root.py")), str(specification)]
    # `setsid --fork` leaves the node without a parent here: whoever ran `up` owes it no wait.
    argv = _joined(hierarchy, spec.lab, spec.name, ["setsid", "--fork", *unshare, "--", *inner])
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/"
    )
    process.wait()
    assert process.stdout
    with process.stdout as stdout:
        words = _first_words(stdout.fileno(), deadline)
    if words.strip() != "ready":
        raise LabError(f"could not start node {spec.name}: {words.strip() or 'it words nothing in time'}")
    found = find_init(hierarchy, spec.lab, spec.name)
    if found is None:
        raise LabError(f"node {spec.name} ended as soon as it had started")
    hierarchy.divide(spec.lab, spec.name)
    return found


def find_init(hierarchy: Hierarchy, lab: str, node: str) -> int | None:
    """Return the first process of the node's process namespace, by its group alone."""
    own = Path("/proc/self/ns/pid").stat().st_ino
    for pid in hierarchy.processes(lab, node):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            inside = Path(f"/proc/{pid}/ns/pid").stat().st_ino != own
        except OSError:
            continue
        numbers = re.search(r"^NSpid:\s+(.*)$", status, re.MULTILINE)
        if inside and numbers and numbers[1].split()[-1] == "1":
            return pid
    return None


def enter(
    hierarchy: Hierarchy, lab: str, node: str, init: int, environment: Mapping[str, str], argv: Sequence[str]
) -> list[str]:
    """Return the command line that runs `argv` in the node: its namespaces, its group, its environment."""
    variables = [f"{key}={value}" for key, value in environment.items()]
    namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
    return _joined(
        hierarchy, lab, node, ["nsenter", "--target", str(init), *namespaces, "--", "env", "-i", *variables, *argv]
    )


def environment(control_address: str, egress_port: int, local_names: Sequence[str]) -> dict[str, str]:
    """Return what a command in a node finds in its environment."""
    proxy = f"http://{control_address}:{egress_port}"
    system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    passed_on = {key: value for key, value in os.environ.items() if _PASSED_ON.fullmatch(key)}
    return {
        **passed_on,
        "PATH": f"{sys.prefix}/bin:{system}",
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "http_proxy": proxy,
        "https_proxy": proxy,
        # Names and addresses one by one: Python's urllib does not understand a subnet here.
        "no_proxy": ",".join(local_names),
    }


def on_host(path: str) -> Path:
    """Return where a folder of the nodes' cache, as a node names it, is on this machine."""
    return cache_directory() / Path(path).relative_to(NODE_CACHE)


def shared_paths() -> list[str]:
    """Return the folders of the host that a node must see: the checkout and the Python that runs us."""
    wanted = [REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)]
    # The system's own Python is in the overlay already; a folder inside another needs no second bind.
    paths = [str(path) for path in dict.fromkeys(wanted) if str(path) not in ("/", "/usr", "/usr/local")]
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


def lower_mounts(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Return the host's other disks by mount point: an overlay of `/` does not reach into them."""
    found: list[str] = []
    own_trees = (*_OWN_TREES, str(base_directory()), str(cache_directory()))
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        path = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        under_own = any(path == tree or path.startswith(f"{tree}/") for tree in own_trees)
        if path != "/" and not under_own and after.split()[0] in _DISK_FILESYSTEMS and Path(path).is_dir():
            found.append(path)
    return sorted(set(found))


def _joined(hierarchy: Hierarchy, lab: str, node: str, argv: Sequence[str]) -> list[str]:
    """Return `argv` preceded by what puts it into the node's group, so that every child is in it."""
    joins = "; ".join(f"echo $$ > {shlex.quote(str(file))}" for file in hierarchy.membership_files(lab, node))
    return ["sh", "-ec", f'{joins}; exec "$@"', f"lab-{lab}-{node}", *argv]


def _first_words(descriptor: int, deadline: float) -> str:
    """Read up to the first end of line, the end of the stream, or the deadline."""
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        piece = os.read(descriptor, 4096)
        if not piece:
            break
        text += piece
    return text.decode(errors="replace")


def _without_resolver(path: Path) -> str:
    """Return nsswitch.conf with names from /etc/hosts alone: a lookup must not wait for a resolver."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if not line.strip().startswith("hosts:")]
    return "\n".join([*kept, "hosts: files"]) + "\n"


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise LabError(f"{name} is not installed")
    return found
