"""First process of a lab node: gives the node its own root file system, then becomes `tini`.

Run by path, alone, inside fresh namespaces (see namespaces.py): it must import nothing but
the standard library, because it starts once per node and every millisecond shows. It reads
a JSON specification from the file named on the command line, and prints one line: `ready`,
or what failed.

All mounts are made here, in the node's mount namespace, so they end with the node.
"""

import ctypes
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, filesystem: str = "", flags: int = 0, options: str = "") -> None:
    """Mount, or raise OSError with the target's name."""
    arguments = [value.encode() or None for value in (source, str(target), filesystem)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{filesystem or source} on {target}")


def bind(source: str, target: Path, writable: bool) -> None:
    """Show a folder of the host at `target`, read-only unless `writable`."""
    target.mkdir(parents=True, exist_ok=True)
    mount(source, target, flags=MS_BIND)
    if not writable:
        mount("", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def overlay(lower: str, layer: Path, target: Path) -> None:
    """Mount a private writable view of `lower`; what is written lands in `layer`."""
    for name in ("upper", "work"):
        (layer / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={lower},upperdir={layer / 'upper'},workdir={layer / 'work'}"
    try:
        # The layer never outlives the lab, so its writes need not survive a power cut.
        mount("overlay", target, "overlay", options=f"{options},volatile")
    except OSError:
        mount("overlay", target, "overlay", options=options)


def is_overlay(path: Path) -> bool:
    """Tell whether `path` lies on an overlay itself, as everything in a container does."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [(len(target), kind) for _, target, kind, *_ in mounts if path.is_relative_to(target)]
    return max(inside)[1] == "overlay"


def layer_in_memory(layer: Path) -> Path:
    """Return a copy of `layer` in memory: an overlay cannot be the upper layer of another."""
    memory = layer.with_name("memory")
    memory.mkdir()
    mount("tmpfs", memory, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    return Path(shutil.copytree(layer, memory / layer.name))


def build(spec: dict[str, Any]) -> None:
    """Make the node's root below `spec["root"]` and move into it."""
    root, layer = Path(spec["root"]), Path(spec["layer"])
    if is_overlay(layer):
        layer = layer_in_memory(layer)
    overlay("/", layer, root)
    for number, lower in enumerate(spec["lower_mounts"]):
        overlay(lower, layer.with_name(f"layer{number}"), root / lower.lstrip("/"))
    for name, options in (("run", "mode=0755"), ("tmp", "mode=1777"), *((mask, "") for mask in spec["masks"])):
        target = root / name.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, options)
    (root / "run/lock").mkdir(mode=0o1777)
    for source, target, writable in spec["binds"]:
        bind(source, root / target.lstrip("/"), writable)
    mount("/dev", root / "dev", flags=MS_BIND | MS_REC)
    mount("tmpfs", root / "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", root / "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    build_cgroups(root / "sys/fs/cgroup", spec["cgroups"])
    os.chdir(root)
    # The old root is stacked under the new one, then let go: the host's tree is out of reach.
    if _libc.pivot_root(b".", b".") != 0 or _libc.umount2(b".", MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "pivot_root")
    os.chdir("/")


def build_cgroups(top: Path, mounts: list[list[str]]) -> None:
    """Mount the control groups, of which the namespace shows the node's own part as the top."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if [filesystem for _, filesystem, _ in mounts] == ["cgroup2"]:
        mount("cgroup2", top, "cgroup2", flags)
        return
    mount("tmpfs", top, "tmpfs", flags, "mode=0755")
    for name, filesystem, options in mounts:
        (top / name).mkdir()
        mount(filesystem, top / name, filesystem, flags, options)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    try:
        socket.sethostname(spec["hostname"])
        # Links carry IPv4 alone: no router solicitations among the measured packets.
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    except FileNotFoundError:
        pass  # a kernel without IPv6
    try:
        build(spec)
    except OSError as error:
        print(f"{error.strerror}: {error.filename}", flush=True)
        sys.exit(1)
    print("ready", flush=True)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.execv(spec["init"][0], spec["init"])


if __name__ == "__main__":
    main()
