"""A lab's beginning and end: up and down."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bottleneck.plan.environment import node_devices
from bottleneck.profile import Profile
from lab import cards, gateway, layout, network, node_processes, operations, salt_config
from lab.cgroups import CgroupError, Hierarchy
from lab.layout import CONTROL, LabError, Record, load_record
from lab.namespaces import NodeSpec, enter, environment, find_init, start, write_layer
from lab.package_hosts import package_hosts
from lab.requirements import check_machine, check_root, control_cores, find_hierarchy, plan_cores

# 5 s on an idle machine with two cores, 57 s measured beside a busy engine. A part that ends
# meanwhile is seen at once, so a generous deadline costs nobody time.
UP_DEADLINE_SECONDS = 120.0
# Elsewhere the control node is a machine of its own. Here it may share a node's core, so it runs where that leaves a
# gap (and has a twentieth of a core that the node wants whole).
CONTROL_CPU_SHARE = 0.05
GUARD_GROUP = ".guard"  # no node can have this name: theirs begin with a letter or digit
Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Making:
    """Parts that `up` works with."""

    profile: Profile
    hierarchy: Hierarchy
    record: Record
    deadline: float
    progress: Progress


def up(profile: Profile, name: str, progress: Progress | None = None, owner: int | None = None) -> dict[str, Any]:
    """Bring lab `name` up and return its status; a lab that is up already is left as it is.

    With `owner`, a process id, a new lab goes down when that process ends. `was_up` in the
    result tells whether the lab was there before.

    Raises
    ------
    LabError
        When something is missing or fails; nothing is left behind then.
    """
    layout.check_name(name)
    check_machine()
    if profile.kind != "lab":
        raise LabError(f"profile {profile.name} describes hardware; a lab needs one of kind lab", code=2)
    if CONTROL in profile.nodes:
        raise LabError(f"a node cannot be called {CONTROL} in a lab", code=2)
    hierarchy = find_hierarchy()
    with layout.locked(name), _owner_descriptor(owner) as descriptor:
        digest = _digest(profile)
        record = load_record(name)
        if record and operations.is_whole(record):
            if record.profile_digest != digest:
                raise LabError(
                    f"lab {name} is up with another profile ({record.profile} {record.profile_version})",
                    f"cluster lab down {name}",
                )
            return {**operations.status(name), "was_up": True}
        _take_down(hierarchy, name)
        try:
            record = Record(
                name=name,
                profile=profile.name,
                profile_version=profile.version,
                profile_path=str(profile.path),
                profile_digest=digest,
                boot=layout.boot_id(),
                created=time.time(),
                owner=owner,
            )
            deadline = time.monotonic() + UP_DEADLINE_SECONDS
            layout.lab_directory(name).mkdir(mode=0o700, parents=True)
            record.save()
            if descriptor is not None:
                _start_guard(hierarchy, name, descriptor)
            _make(_Making(profile, hierarchy, record, deadline, progress or (lambda _: None)))
        except BaseException:
            with _undisturbed():
                _take_down(hierarchy, name)
            raise
    return {**operations.status(name), "was_up": False}


def down(name: str, keep_logs: Path | None = None, patience_seconds: float = 120.0) -> bool:
    """Take lab `name` down, whatever state it is in; return False when there was nothing.

    With `keep_logs`, each node's logs are copied to a folder of its name there first.
    """
    layout.check_name(name)
    check_root()
    hierarchy = find_hierarchy()
    if not hierarchy.exists(name) and not layout.lab_directory(name).exists():
        return False
    with layout.locked(name, patience_seconds), _undisturbed():
        if keep_logs is not None:
            _copy_logs(hierarchy, name, keep_logs)
        return _take_down(hierarchy, name)


def copy_logs(name: str, target: Path) -> None:
    """Copy each node's logs of a lab, whatever state it is in, to a folder of its name below `target`."""
    layout.check_name(name)
    _copy_logs(find_hierarchy(), name, target)


def names() -> list[str]:
    """Return the names of the labs on this machine, whole or not."""
    base = layout.base_directory()
    return sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []


def _make(making: _Making) -> None:
    profile, hierarchy, record = making.profile, making.hierarchy, making.record
    wiring = network.plan_wiring(profile)
    record.cores, record.notes = plan_cores(profile)
    addresses = [link.address for node in profile.nodes.values() for link in node.links.values()]
    hostnames = [profile.control.hostname, *(node.hostname for node in profile.nodes.values())]
    local = ["localhost", "127.0.0.1", CONTROL, profile.control.address, *profile.nodes, *hostnames, *addresses]
    record.environment = environment(profile.control.address, network.EGRESS_PORT, list(dict.fromkeys(local)))
    record.devices = {
        name: {**node_devices(profile.engine_of(name), node), **cards.driver_environment()}
        for name, node in profile.nodes.items()
        if node.host_cards
    }
    layout.cache_directory().mkdir(parents=True, exist_ok=True)

    making.progress("making the nodes")
    record.cores[CONTROL] = control_cores(record.cores)
    specs = [NodeSpec(record.name, CONTROL, profile.control.hostname, record.cores[CONTROL], None, CONTROL_CPU_SHARE)]
    specs += [
        NodeSpec(
            record.name,
            node,
            spec.hostname,
            record.cores[node],
            spec.memory_bytes,
            mounts=tuple(cards.driver_mounts(profile.engine_of(node))) if spec.host_cards else (),
        )
        for node, spec in profile.nodes.items()
    ]
    keys = salt_config.make_key_pairs([CONTROL, *profile.nodes])
    profile_path, profile_files = _profile_files(profile)
    files = salt_config.salt_files(profile, profile_path, keys)
    files[CONTROL].update({**profile_files, **gateway.files(profile)})
    hosts = {"/etc/hosts": (network.hosts_text(profile), 0o644)}

    def make_node(spec: NodeSpec) -> int:
        write_layer(spec, {**hosts, **files[spec.name]})
        return start(spec, hierarchy, making.deadline)

    with ThreadPoolExecutor(max_workers=len(specs)) as pool:
        pids = dict(zip([spec.name for spec in specs], pool.map(make_node, specs), strict=True))
    record.inits = {node: [pid, node_processes.start_ticks(pid) or 0] for node, pid in pids.items()}
    record.ports = [asdict(port) for port in wiring.ports()]
    record.save()

    making.progress("wiring the nodes")
    network.apply_lines("ip", network.link_lines(wiring, pids), pids)
    network.apply_lines("ip", network.address_lines(wiring), pids)
    network.apply_lines("tc", network.shape_lines(wiring.ports()), pids)
    _start_egress(making)

    making.progress("starting Salt")
    _start_salt(making, CONTROL, "salt-master", salt_config.MASTER_LOG)
    for node in profile.nodes:
        _start_salt(making, node, "salt-minion", salt_config.MINION_LOG)
    waiting = set(profile.nodes)

    def on_ready(node: str) -> None:
        waiting.discard(node)
        making.progress(f"waiting for {', '.join(sorted(waiting))}" if waiting else "asking every node")

    logs = {node: operations.inside(pids[node], salt_config.MINION_LOG) for node in profile.nodes}
    salt_config.wait_for_minions(logs, pids, making.deadline, on_ready)
    ids = [salt_config.minion_id(profile, node) for node in profile.nodes]
    salt_config.ping(lambda argv: _enter(making, CONTROL, argv), ids, making.deadline)
    # Now the key of the API is there: it was made for the first pillar.
    if gateway.is_installed():
        gateway.start(lambda argv: _enter(making, CONTROL, argv))
    else:
        record.notes.append(gateway.ABSENT)
    egress_log = layout.lab_directory(record.name) / "egress.log"
    if not egress_log.read_text().startswith("ready"):
        raise LabError(f"the nodes' way to package hosts did not start: {salt_config.last_lines(egress_log)}")
    record.state = "up"
    record.save()


def _start_salt(making: _Making, node: str, daemon: str, log: str) -> None:
    salt_config.start_daemon(_enter(making, node, salt_config.daemon_command(daemon, log)))


def _enter(making: _Making, node: str, argv: Sequence[str]) -> list[str]:
    record = making.record
    return enter(making.hierarchy, record.name, node, record.inits[node][0], record.environment_of(node), argv)


def _start_egress(making: _Making) -> None:
    profile, record = making.profile, making.record
    needs_hub = not profile.model.is_made and not profile.model.source.startswith("/")
    hosts = package_hosts(profile.path.with_name("engines.yaml"), needs_hub)
    control = str(record.inits[CONTROL][0])
    script = str(Path(__file__).with_name("package_proxy.py"))
    arguments = [profile.control.address, str(network.EGRESS_PORT), control, *hosts]
    log = layout.lab_directory(record.name) / "egress.log"
    _start_helper(making.hierarchy, record.name, CONTROL, [sys.executable, "-I", "-S", script, *arguments], log)


def _start_guard(hierarchy: Hierarchy, name: str, descriptor: int) -> None:
    hierarchy.create(name, GUARD_GROUP)
    log = layout.lab_directory(name) / "guard.log"
    argv = [sys.executable, str(Path(__file__).with_name("owner_watchdog.py")), name, str(descriptor)]
    _start_helper(hierarchy, name, GUARD_GROUP, argv, log, (descriptor,))


def _start_helper(
    hierarchy: Hierarchy, name: str, group: str, argv: list[str], log: Path, descriptors: tuple[int, ...] = ()
) -> None:
    """Start a process of the host that belongs to the lab: in its group, nobody's child."""
    joins = [f'echo $$ > "{file}"' for file in hierarchy.membership_files(name, group)]
    with log.open("ab") as output:
        subprocess.run(
            ["sh", "-ec", f'{"; ".join(joins)}; exec setsid --fork "$@"', "sh", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            pass_fds=descriptors,
            check=True,
        )


def _take_down(hierarchy: Hierarchy, name: str) -> bool:
    """End and remove everything that bears the lab's name; the caller holds the lock."""
    directory = layout.lab_directory(name)
    was_there = hierarchy.exists(name) or directory.exists()
    try:
        hierarchy.kill_all(name, spare=os.getpid())
        hierarchy.remove(name)
    except CgroupError as error:
        raise LabError(str(error), f"cluster lab down {name}") from error
    if directory.exists():
        shutil.rmtree(directory)
    return was_there


def _copy_logs(hierarchy: Hierarchy, name: str, target: Path) -> None:
    for directory in sorted((layout.lab_directory(name) / "nodes").glob("*")):
        init = find_init(hierarchy, name, directory.name)
        root = Path(f"/proc/{init}/root") if init else directory / "layer" / "upper"
        for kind in ("salt", "cluster"):
            source = root / "var/log" / kind
            if source.is_dir() and any(source.iterdir()):
                shutil.copytree(source, target / directory.name / kind, dirs_exist_ok=True)


def _profile_files(profile: Profile) -> tuple[str, salt_config.Files]:
    """Return where the control node finds the profile; one from outside the checkout is copied in."""
    path = profile.path
    if path.is_relative_to(layout.REPOSITORY):
        return str(path), {}
    folder = "/etc/cluster/profiles"
    copies = [path, *(engines for engines in [path.with_name("engines.yaml")] if engines.exists())]
    return f"{folder}/{path.name}", {f"{folder}/{copy.name}": (copy.read_text(), 0o644) for copy in copies}


def _digest(profile: Profile) -> str:
    return hashlib.sha256(profile.model_dump_json().encode()).hexdigest()


@contextmanager
def _owner_descriptor(owner: int | None) -> Iterator[int | None]:
    if owner is None:
        yield None
        return
    try:
        descriptor = os.pidfd_open(owner)
    except OSError as error:
        raise LabError(f"there is no process {owner} to own the lab", code=2) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back: a second one must not stop the clean-up halfway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
