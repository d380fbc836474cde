"""A lab that is up: what it is and does, commands in it, and changes that can be undone."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab import gateway, layout, network, node_processes, salt_config
from lab.cgroups import CgroupError, Hierarchy
from lab.layout import CONTROL, LabError, Record, load_record
from lab.namespaces import enter
from lab.requirements import check_root, find_hierarchy

# A program of some hundred MB takes minutes to start at this rate.
LEAST_DISK_BYTES_PER_SECOND = 1e6


def status(name: str) -> dict[str, Any]:
    """Return what lab `name` is and does now; `up` is False unless every part of it runs."""
    record = load_record(name)
    if record is None:
        return {"name": name, "up": False, "state": "down"}
    hierarchy = find_hierarchy()
    whole = is_whole(record)
    nodes = {node: _node_status(record, hierarchy, node) for node in record.inits}
    networks: dict[str, Any] = {}
    for port in record.ports:
        throttled = record.throttled.get(port["network"])
        networks[port["network"]] = {
            "rate_bytes_per_second": port["rate_bytes_per_second"] if throttled is None else throttled,
            "is_throttled": throttled is not None,
        }
    return {
        "name": name,
        "up": whole,
        "state": "up" if whole else "broken",
        "profile": {"name": record.profile, "version": record.profile_version, "path": record.profile_path},
        "created": record.created,
        "owner": record.owner,
        "peak_memory_bytes": hierarchy.peak_memory_bytes(name),
        "nodes": nodes,
        "networks": networks,
        "gateway": gateway.runs(hierarchy, name),
        "notes": record.notes,
    }


def command(name: str, node: str, argv: Sequence[str]) -> list[str]:
    """Return the command line, for this machine, that runs `argv` on `node` of lab `name`."""
    record = _running(name, node)
    return enter(find_hierarchy(), name, node, record.inits[node][0], record.environment_of(node), list(argv))


def restart_salt(name: str, node: str) -> None:
    """End the Salt daemon of `node` and start it again; what it had started lives on."""
    hierarchy = find_hierarchy()
    daemon, log = (
        ("salt-master", salt_config.MASTER_LOG) if node == CONTROL else ("salt-minion", salt_config.MINION_LOG)
    )
    with layout.locked(name):
        record = _running(name, node)
        for number, patience_seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            deadline = time.monotonic() + patience_seconds
            left = _daemon_processes(hierarchy, name, node, daemon)
            for pid in left:
                os.kill(pid, number)
            while left and time.monotonic() < deadline:
                time.sleep(0.02)
                left = _daemon_processes(hierarchy, name, node, daemon)
        argv = salt_config.daemon_command(daemon, log)
        environment = record.environment_of(node)
        salt_config.start_daemon(enter(hierarchy, name, node, record.inits[node][0], environment, argv))


def throttle(
    name: str, network_name: str, rate_bytes_per_second: float | None, cable: tuple[str, str] | None = None
) -> None:
    """Hold every link of a network, or the cable between two nodes, to a rate; None puts the profile's rate back."""
    record = _running(name)
    ports = [network.Port(**port) for port in record.ports if port["network"] == network_name]
    key = network_name
    if cable is not None and ports:
        ports = [port for port in ports if (port.place, port.peer) in (cable, cable[::-1])]
        key = f"{network_name} {cable[0]}-{cable[1]}"
        if not ports:
            raise LabError(f"network {network_name} of lab {name} has no cable between {' and '.join(cable)}", code=2)
    if not ports:
        known = ", ".join(dict.fromkeys(port["network"] for port in record.ports))
        raise LabError(f"lab {name} has no network {network_name}; it has {known}", code=2)
    if rate_bytes_per_second is not None and rate_bytes_per_second < 1000:
        raise LabError("a link needs at least 8 kbit/s", code=2)
    if rate_bytes_per_second is not None:
        ports = [network.Port(**{**asdict(port), "rate_bytes_per_second": rate_bytes_per_second}) for port in ports]
    with layout.locked(name):
        record = _running(name)
        with _noted(record, record.throttled, key, rate_bytes_per_second):
            network.apply_lines("tc", network.shape_lines(ports), _pids(record))


def slow(name: str, node: str, cores: float | None) -> None:
    """Hold a node to `cores` of CPU time per second; None lifts it."""
    if cores is not None and not 0.05 <= cores <= 1024:
        raise LabError(f"{cores:g} cores; expected at least 0.05", code=2)
    _running(name, node)
    with layout.locked(name):
        record = _running(name, node)
        with _noted(record, record.slowed, node, cores):
            find_hierarchy().set_cpu_quota(name, node, cores)


def place(name: str, node: str, cores: Sequence[int]) -> None:
    """Have a node, or the control node, on other cores of this machine from now on."""
    known = sorted(os.sched_getaffinity(1))
    if not cores or not set(cores) <= set(known):
        raise LabError(f"cores {', '.join(map(str, cores))}; expected some of {known[0]} to {known[-1]}", code=2)
    with layout.locked(name):
        record = _running(name, node)
        find_hierarchy().set_cores(name, node, cores)
        record.cores[node] = list(cores)
        record.save()


def slow_disk(name: str, node: str, bytes_per_second: float | None) -> None:
    """Hold what a node reads from the disk of engines and models to a rate; None lifts it.

    What is in the page cache is not read from a disk: see `page_cache.forget`.
    """
    if bytes_per_second is not None and bytes_per_second < LEAST_DISK_BYTES_PER_SECOND:
        raise LabError(f"a disk needs at least {LEAST_DISK_BYTES_PER_SECOND / 1e6:g} MB/s", code=2)
    _running(name, node)
    hierarchy, device = find_hierarchy(), disk_of(layout.cache_directory())
    with layout.locked(name):
        record = _running(name, node)
        try:
            hierarchy.disk_controller()
            with _noted(record, record.slow_disks, node, bytes_per_second):
                hierarchy.set_read_rate(name, node, device, bytes_per_second)
        except (CgroupError, OSError) as error:
            raise LabError(f"the disk of {node} ({device}) cannot be slowed: {error}") from error


def has_slow_disk(name: str, node: str) -> bool:
    """Return whether a node's disk is limited to a rate."""
    return node in _running(name, node).slow_disks


def disk_of(path: Path) -> str:
    """Return the disk, as `MAJOR:MINOR`, that a folder is on: the whole one, of which alone rates can be set."""
    number = path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    entry = Path("/sys/dev/block") / device
    if not entry.exists():
        raise LabError(f"{path} is on no disk of this machine (device {device}): its reads cannot be slowed")
    if (entry / "partition").exists():
        return (entry.resolve().parent / "dev").read_text().strip()
    return device


def is_whole(record: Record) -> bool:
    """Tell whether every part of the lab that `record` describes runs."""
    if record.state != "up" or record.boot != layout.boot_id():
        return False
    if any(node_processes.start_ticks(pid) != ticks for pid, ticks in record.inits.values()):
        return False
    return all(_daemon(record, node) is not None for node in record.inits)


def _daemon(record: Record, node: str) -> int | None:
    """Return the process id, inside the node, of its Salt daemon; None when it does not run."""
    init = record.inits[node][0]
    name = "salt-master" if node == CONTROL else "salt-minion"
    try:
        pid = int(inside(init, f"/run/{name}.pid").read_text())
    except (OSError, ValueError):
        return None
    entry = node_processes.stat(pid, str(inside(init, "/proc")))
    return None if entry is None or entry.state == node_processes.ZOMBIE else pid


def _daemon_processes(hierarchy: Hierarchy, name: str, node: str, daemon: str) -> list[int]:
    program = f"{sys.prefix}/bin/{daemon}".encode()
    found = []
    for pid in hierarchy.processes(name, node):
        try:
            if program in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").split()[:2]:
                found.append(pid)
        except OSError:
            continue
    return found


def _node_status(record: Record, hierarchy: Hierarchy, node: str) -> dict[str, Any]:
    pid, ticks = record.inits[node]
    result: dict[str, Any] = {
        "running": node_processes.start_ticks(pid) == ticks,
        "salt": _daemon(record, node) is not None,
        "pid": pid,
        "cores": record.cores.get(node),
        "is_slowed": node in record.slowed or node in record.slow_disks,
    }
    try:
        result.update(asdict(hierarchy.usage(record.name, node)), processes=len(hierarchy.processes(record.name, node)))
    except (OSError, ValueError, KeyError):
        result["running"] = False
    return result


def _running(name: str, node: str | None = None) -> Record:
    check_root()
    record = load_record(name)
    if record is None or record.boot != layout.boot_id() or CONTROL not in record.inits:
        raise LabError(f"lab {name} is not up", f"cluster lab up {name}", code=4)
    if node is not None:
        if node not in record.inits:
            raise LabError(f"lab {name} has no node {node}; it has {', '.join(record.inits)}", code=2)
        pid, ticks = record.inits[node]
        if node_processes.start_ticks(pid) != ticks:
            raise LabError(f"node {node} of lab {name} has ended", f"cluster lab up {name}", code=4)
    return record


def _pids(record: Record) -> dict[str, int]:
    return {node: pid for node, (pid, _) in record.inits.items()}


def inside(init: int, path: str) -> Path:
    """Return the host's way to a path inside a node."""
    return Path(f"/proc/{init}/root") / path.lstrip("/")


@contextmanager
def _noted(record: Record, changes: dict[str, float], key: str, value: float | None) -> Iterator[None]:
    """Keep the record on the safe side of a change: noted before it is made, dropped once undone."""
    if value is not None:
        changes[key] = value
        record.save()
        yield
        return
    yield
    changes.pop(key, None)
    record.save()
