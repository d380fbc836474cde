"""
Plan how a resource of this node is slowed and put back; nothing is done here.

Every actuator is one function from a change to a plan: what it is now (``before``), the
steps there (``apply``) and back (``undo``), as plain data that ``perturb`` performs.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import control_groups
import node_commands
import node_processes

if TYPE_CHECKING:
    from loader_dunders import __salt__

Change = Mapping[str, Any]
Step = list[Any]
# What it is now, the steps there and back.
Plan = tuple[Any, list[Step], list[Step]]

# Where salt/perturb puts the programs that slow a core or a link.
PROGRAMS = "/opt/cluster/perturb"
COMMAND_SECONDS = 20.0
UNIT_PREFIX = "worker-"
# As vLLM names them: a rank's process, and where a worker has one rank alone, the engine's own.
RANK_TITLES = ("VLLM::Worker", "VLLM::EngineCore")
_ETHERNET_HEADER_BYTES = 18
# What passes at once after a pause, in time at the rate: as little as a timer allows, or a step's small messages, with
# work between them, would not be slowed at all.
_BURST_SECONDS = 100e-6
# A shorter queue drops, which costs more than the rate does.
_QUEUE_BYTES = 8 * 2**20
# A short period makes a quota a steady slowdown instead of a stall of tens of milliseconds.
QUOTA_PERIOD_MICROSECONDS = 10_000
# Queueing disciplines that come back by themselves once ours is deleted.
_DEFAULT_HANDLE = "0:"


def __virtual__() -> str | tuple[bool, str]:
    return "actuator" if sys.platform == "linux" else (False, "actuators need tc and control groups")


def plan(change: dict[str, Any], directory: str) -> dict[str, Any]:
    """
    Return how a change would be made and undone: ``change``, ``before``, ``apply``, ``undo``.

    CLI Example:

    .. code-block:: bash

        salt node1 actuator.plan '{"actuator": "link_rate", "interface": "usb4", "bytes_per_second": 5e6}' /run/cluster

    change
        ``actuator`` and its settings: ``link_rate`` (interface, bytes_per_second), ``link_latency``
        (interface, peers as address -> MAC, seconds), ``cpu_quota`` (cores), ``cpu_speed`` (slowdown),
        ``rank_pause`` (name as ``look`` lists it, share), ``setting`` (read, write or path, value: a
        clock or power limit as the profile names it)
    directory
        where the control files of helper programs are kept
    """
    known = {
        "link_rate": _link_rate,
        "link_latency": _link_latency,
        "cpu_quota": _cpu_quota,
        "cpu_speed": _cpu_speed,
        "rank_pause": _rank_pause,
        "setting": _setting,
    }
    name = change.get("actuator")
    if name not in known:
        raise ValueError(f"actuator {name!r}: expected one of {', '.join(sorted(known))}")
    before, apply, undo = known[name](change, directory)
    return {"change": change, "before": before, "apply": apply, "undo": undo}


def look(
    interface: str | None = None,
    settings: Mapping[str, Change] | None = None,
    directory: str = "/run/cluster/perturb",
) -> dict[str, Any]:
    """
    Return what the actuators would find: the link's rate and delay, the CPU quota, cores, ranks, settings.

    CLI Example:

    .. code-block:: bash

        salt '*' actuator.look usb4
    """
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "quota_cores": None}
    try:
        found["quota_cores"] = _group()["quota_cores"]
    except RuntimeError as error:
        found["cpu_problem"] = str(error)
    if interface:
        discipline = _discipline(interface)
        found["rate_bytes_per_second"] = discipline["options"].get("rate") if discipline["kind"] == "tbf" else None
        found["delay_seconds"] = _delay(_delay_control(interface, directory))
    found["ranks"] = sorted(_ranks())
    found["settings"] = {name: _read_setting(setting) for name, setting in (settings or {}).items()}
    return found


# Links ---------------------------------------------------------------------------------------


def _link_rate(change: Change, _directory: str) -> Plan:
    interface, rate = change["interface"], float(change["bytes_per_second"])
    if rate < 1000:
        raise ValueError(f"link_rate {rate:g} B/s: expected at least 1000")
    current = _discipline(interface)
    if current["kind"] == "tbf":
        options = current["options"]
        # tc prints the burst a little short: put back as printed, over and over, no packet would fit into it.
        burst = max(options["burst"], _burst(interface, options["rate"]))
        undo: Step = ["run", _tbf(interface, options["rate"], burst, _limit(options))]
    elif current["handle"] == _DEFAULT_HANDLE or current["kind"] == "mq":
        undo = ["run", ["sh", "-c", f'tc qdisc del dev "{interface}" root 2>/dev/null || true']]
    else:
        raise RuntimeError(
            f"{interface} has a queueing discipline of its own ({current['kind']} {current['handle']}), "
            "which could not be put back: expected the kernel's default or a tbf"
        )
    burst = _burst(interface, rate)
    limit = float(burst + _QUEUE_BYTES)
    if current["kind"] == "tbf":
        limit = max(limit, _limit(current["options"]))
    return current["options"].get("rate"), [["run", _tbf(interface, rate, burst, limit)]], [undo]


def _burst(interface: str, rate: float) -> int:
    packet = int(_text(f"/sys/class/net/{interface}/mtu")) + _ETHERNET_HEADER_BYTES
    return packet + round(rate * _BURST_SECONDS)


def _tbf(interface: str, rate: float, burst: float, limit: float) -> list[str]:
    sizes = [*("rate", f"{round(rate)}bps"), *("burst", str(round(burst))), *("limit", str(round(limit)))]
    return ["tc", "qdisc", "replace", "dev", interface, "root", "tbf", *sizes]


def _limit(options: Mapping[str, Any]) -> float:
    """Return a tbf's limit in bytes; tc prints it as the latency of a full queue, in microseconds."""
    return float(options["rate"] * options["lat"] / 1e6 + options["burst"])


def _discipline(interface: str) -> dict[str, Any]:
    """Return an interface's queueing discipline, as tc prints it."""
    printed = node_commands.output_of(["tc", "-json", "qdisc", "show", "dev", interface])
    roots: list[dict[str, Any]] = [each for each in json.loads(printed) if each.get("root")]
    return roots[0] if roots else {"kind": "none", "handle": _DEFAULT_HANDLE, "options": {}}


def _link_latency(change: Change, directory: str) -> Plan:
    interface, seconds = change["interface"], float(change["seconds"])
    if not 0 <= seconds <= 1:
        raise ValueError(f"link_latency {seconds:g} s: expected 0 to 1")
    discipline = _discipline(interface)
    control = _delay_control(interface, directory)
    if discipline["handle"] == _DEFAULT_HANDLE and _has_netem() and not os.path.exists(control):
        argv = ["tc", "qdisc", "replace", "dev", interface, "root", "netem", "limit", "100000"]
        apply: list[Step] = [["run", [*argv, "delay", f"{round(seconds * 1e6)}us"]]]
        return 0.0, apply, [["run", ["sh", "-c", f'tc qdisc del dev "{interface}" root 2>/dev/null || true']]]
    before = _delay(control)
    macs = {address: mac or _mac_of(interface, address) for address, mac in sorted(change["peers"].items())}
    peers = [f"{address}={mac}" for address, mac in macs.items()]
    command = [sys.executable, _program("packet_delay.py"), control, interface, *peers]
    apply = [["control", control, seconds], ["start", control, command]]
    # A relay that was there before us stays, with the delay that it had.
    if before is not None:
        return before, apply, [["control", control, before]]
    undo: list[Step] = [["remove", control]]
    # Packets come in by the real interface while the route says otherwise: no strict filter on it.
    path = f"/proc/sys/net/ipv4/conf/{interface}/rp_filter"
    if _text(path) == "1":
        apply.insert(0, ["write", path, "2"])
        undo.append(["write", path, "1"])
    return None, apply, undo


def _mac_of(interface: str, address: str) -> str:
    """Return the MAC of a peer that the profile does not know, as the node has seen it."""
    printed = node_commands.output_of(["ip", "-json", "neigh", "show", address, "dev", interface])
    seen = [str(entry["lladdr"]) for entry in json.loads(printed or "[]") if entry.get("lladdr")]
    if not seen:
        raise RuntimeError(f"no MAC of {address} is known on {interface}: is the peer up?")
    return seen[0]


def _delay_control(interface: str, directory: str) -> str:
    return os.path.join(directory, f"delay-{interface}")


def _delay(control: str) -> float | None:
    """Return the seconds that a relay adds, or None without one."""
    try:
        return float(_text(control))
    except (FileNotFoundError, ValueError):
        return None


def _has_netem() -> bool:
    # A small image may lack the tool; the relay works everywhere.
    if shutil.which("modprobe") is None:
        return False
    finished = subprocess.run(["modprobe", "--dry-run", "--quiet", "sch_netem"], capture_output=True, check=False)
    return finished.returncode == 0


# CPU -----------------------------------------------------------------------------------------


def _cpu_quota(change: Change, _directory: str) -> Plan:
    cores = float(change["cores"])
    if cores < 0.05:
        raise ValueError(f"cpu_quota {cores:g} cores: expected at least 0.05")
    group = _group()
    quota = max(1000, round(cores * QUOTA_PERIOD_MICROSECONDS))
    if group["version"] == control_groups.VERSION_2:
        path = os.path.join(group["directory"], control_groups.QUOTA_FILES[control_groups.VERSION_2])
        before = _text(path)
        return (
            group["quota_cores"],
            [["write", path, f"{quota} {QUOTA_PERIOD_MICROSECONDS}"]],
            [["write", path, before]],
        )
    names = (control_groups.QUOTA_FILES[control_groups.VERSION_1], control_groups.PERIOD_FILE)
    quota_path, period_path = (os.path.join(group["directory"], name) for name in names)

    def steps(quota_text: str, period_text: str) -> list[Step]:
        # Without a limit for a moment: a period that does not fit the old quota would be refused.
        return [["write", quota_path, "-1"], ["write", period_path, period_text], ["write", quota_path, quota_text]]

    undo = steps(_text(quota_path), _text(period_path))
    return group["quota_cores"], steps(str(quota), str(QUOTA_PERIOD_MICROSECONDS)), undo


def _cpu_speed(change: Change, directory: str) -> Plan:
    slowdown = float(change["slowdown"])
    if not 1 <= slowdown <= 10:
        raise ValueError(f"cpu_speed slowdown {slowdown:g}: expected 1 to 10")
    program, group_file = _program("cpu_burner.py"), _group_file()
    apply: list[Step] = []
    undo: list[Step] = []
    for core in sorted(os.sched_getaffinity(0)):
        control = os.path.join(directory, f"burner-{core}")
        apply += [["control", control, 1 - 1 / slowdown]]
        apply += [["start", control, [sys.executable, "-S", "-E", program, control, str(core), group_file]]]
        undo.append(["remove", control])
    return 1.0, apply, undo


def _program(name: str) -> str:
    path = os.path.join(PROGRAMS, name)
    if not os.path.exists(path):
        raise RuntimeError(f"{path} is missing: run state.apply perturb first")
    return path


def _group_file() -> str:
    """Return the file by which a process joins the engine's group, empty when it is in ours."""
    try:
        return os.path.join(_group()["directory"], "cgroup.procs")
    except RuntimeError:
        return ""


def _group() -> dict[str, Any]:
    """Return the control group that limits the engine's CPU time: its version, folder and quota."""
    pids = next(iter(_workers().values()), [])
    pid = str(pids[0]) if pids else "self"
    found = control_groups.levels(_text(f"/proc/{pid}/cgroup"), _text("/proc/self/mountinfo"))
    for version, folders in found.items():
        own = folders[0]
        if os.path.exists(os.path.join(own, control_groups.QUOTA_FILES[version])):
            return {"version": version, "directory": own, "quota_cores": _quota(own, version)}
    raise RuntimeError("no control group that can limit the engine's CPU time (cpu controller, version 1 or 2)")


def _quota(directory: str, version: int) -> float | None:
    quota = _text(os.path.join(directory, control_groups.QUOTA_FILES[version]))
    if version == control_groups.VERSION_2:
        return control_groups.quota_cores(quota)
    return control_groups.quota_cores(quota, _text(os.path.join(directory, control_groups.PERIOD_FILE)))


def _workers() -> dict[str, list[int]]:
    """Return the processes of every worker that runs here, by the worker's name, the nearest to its keeper first."""
    found = {
        unit.removeprefix(UNIT_PREFIX): __salt__["supervise.processes"](unit)
        for unit in __salt__["supervise.units"]()
        if unit.startswith(UNIT_PREFIX)
    }
    return {name: pids for name, pids in found.items() if pids}


# Ranks ---------------------------------------------------------------------------------------


def _rank_pause(change: Change, directory: str) -> Plan:
    name, share = str(change["name"]), float(change["share"])
    if not 0.01 <= share <= 0.25:
        raise ValueError(f"rank_pause share {share:g}: expected 0.01 to 0.25")
    ranks = _ranks()
    if name not in ranks:
        raise RuntimeError(f"rank {name!r} does not run here: expected one of {', '.join(sorted(ranks)) or 'none'}")
    pid = ranks[name]
    entry = node_processes.stat(pid)
    control = os.path.join(directory, "rank-" + re.sub(r"[^A-Za-z0-9_.]+", "-", name))
    if entry is None or (entry.state == node_processes.STOPPED and not os.path.exists(control)):
        what = "has ended" if entry is None else "is stopped already (SIGSTOP)"
        raise RuntimeError(f"process {pid} of rank {name!r} {what}: cluster status")
    program = [sys.executable, "-S", "-E", _program("rank_pauser.py"), control, f"{pid}:{entry.start_ticks}"]
    # Whoever ended the program, and its guard with it, left the rank stopped perhaps.
    undo: list[Step] = [["remove", control], ["continue", [[pid, entry.start_ticks]]]]
    return 0.0, [["control", control, share], ["start", control, program]], undo


def _ranks() -> dict[str, int]:
    """Return the process of every rank on this node, by its worker's name and the title that the engine gave it."""
    found: dict[str, int] = {}
    for worker, pids in _workers().items():
        titles = {pid: _title(pid) for pid in pids}
        for prefix in RANK_TITLES:
            ranks = {f"{worker}/{title}": pid for pid, title in titles.items() if title.startswith(prefix)}
            if ranks:
                found.update(ranks)
                break
    return found


def _title(pid: int) -> str:
    try:
        words = _text(f"/proc/{pid}/cmdline").split("\0")
    except OSError:
        return ""
    return words[0].strip()


# Clocks and power limits -----------------------------------------------------------------------


def _setting(change: Change, _directory: str) -> Plan:
    """Set what the profile names: a file of the kernel, or a pair of commands that read and write."""
    before = _read_setting(change)
    return before, [_write_setting(change, change["value"])], [_write_setting(change, before)]


def _read_setting(setting: Change) -> str:
    if "path" in setting:
        return _text(_only(setting["path"]))
    return node_commands.output_of(setting["read"], timeout=COMMAND_SECONDS).strip().splitlines()[0].strip()


def _write_setting(setting: Change, value: object) -> Step:
    if "path" in setting:
        return ["write", _only(setting["path"]), str(value)]
    return ["run", [part.replace("{value}", str(value)) for part in setting["write"]]]


def _only(pattern: str) -> str:
    found = sorted(glob.glob(pattern))
    if len(found) != 1:
        raise RuntimeError(f"{pattern}: {len(found)} files on this node, expected one")
    return found[0]


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().strip()
