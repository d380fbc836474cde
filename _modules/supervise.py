"""
Own a process and everything it starts.

vLLM starts processes that outlive it and hold its ports. A keeper process (``_utils/unit_keeper.py``) adopts
every descendant (it is their subreaper), so that ending the unit ends all of them. Where systemd runs, the keeper
is a transient unit, so that its control group holds the whole tree as well.

State is one JSON file a unit under ``/run/cluster/supervise``.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import node_files
import node_processes
import unit_keeper
import unit_sandbox

DIRECTORY = "/run/cluster/supervise"
# For a Python to start on a node that is busy with starting itself.
START_SECONDS = 30.0
KEEPER_SECONDS = 10.0
NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")


def __virtual__() -> str | tuple[bool, str]:
    return "supervise" if sys.platform == "linux" else (False, "supervise reads /proc")


def start(
    name: str,
    command: list[str],
    environment: Mapping[str, Any] | None = None,
    log: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """
    Start a unit unless it runs already; return its status.

    CLI Example:

    .. code-block:: bash

        salt node0 supervise.start sleeper '["sleep", "60"]'

    name
        lower-case letters, digits and dashes
    command
        list of the program and its arguments
    environment
        added to the minion's own; never shown in a process list
    log
        file that takes standard output and error; the last one is kept as ``.1``
    settings
        of systemd, for the unit (``unit_sandbox``); where systemd does not run they are left out
    """
    _check_name(name)
    if not isinstance(command, list) or not command:
        raise ValueError(f"supervise: command is {command!r}, expected a list of strings")
    current = status(name)
    if current["running"]:
        return current
    os.makedirs(DIRECTORY, mode=0o755, exist_ok=True)
    log = log or f"/var/log/cluster/{name}.log"
    os.makedirs(os.path.dirname(log), exist_ok=True)
    if os.path.exists(log):
        os.replace(log, log + ".1")
    specification = {
        "name": name,
        "command": [str(part) for part in command],
        "environment": {key: str(value) for key, value in (environment or {}).items()},
        "log": log,
        "started": time.time(),
    }
    node_files.write_json(_path(name, "spec"), specification, 0o600)
    node_files.remove(_path(name))
    keeper = [sys.executable, os.path.abspath(unit_keeper.__file__), _path(name, "spec")]
    if os.path.isdir(unit_keeper.SYSTEMD):
        unit = f"cluster-{name}"
        # A unit that failed stays, so that its result can be asked for, and has its name until it is forgotten.
        subprocess.run(["systemctl", "reset-failed", unit], capture_output=True, check=False, timeout=30)
        keeper = ["systemd-run", "--quiet", f"--unit={unit}", *unit_sandbox.arguments(settings), *keeper]
    # Not reaped by us when the minion forks a job; the keeper detaches itself.
    subprocess.run(keeper, stdin=subprocess.DEVNULL, check=True, timeout=30)
    return unit_keeper.wait(
        lambda: status(name), lambda seen: seen["running"] or seen["exit_code"] is not None, START_SECONDS
    )


def stop(name: str, at_once: bool = False) -> dict[str, Any]:
    """
    End a unit and every process it started; return its status.

    CLI Example:

    .. code-block:: bash

        salt node0 supervise.stop sleeper

    at_once
        kill them, without the seconds in which a process may end by itself
    """
    _check_name(name)
    record = node_files.read_json(_path(name))
    if record is None:
        return status(name)
    if _is_kept(record):
        os.kill(record["keeper"], unit_keeper.AT_ONCE if at_once else signal.SIGTERM)
        unit_keeper.wait(lambda: _is_kept(record), lambda kept: not kept, unit_keeper.GRACE_SECONDS + KEEPER_SECONDS)
        if _is_kept(record):
            os.kill(record["keeper"], signal.SIGKILL)
    # A keeper that was killed could not end its tree; its session is what is left.
    unit_keeper.wait(lambda: unit_keeper.kill_session(record["session"]), lambda left: left == 0, KEEPER_SECONDS)
    if record.get("exit_code") is None:
        record = node_files.read_json(_path(name)) or record
    node_files.write_json(_path(name), {**record, "stopped": True})
    return status(name)


def status(name: str) -> dict[str, Any]:
    """
    Return whether a unit runs, since when, how many processes it has, which were stopped, its exit code and its log.

    CLI Example:

    .. code-block:: bash

        salt node0 supervise.status sleeper
    """
    _check_name(name)
    record = node_files.read_json(_path(name)) or {}
    running = bool(record) and record.get("exit_code") is None and _is_kept(record)
    tree = _tree(record) if running else {}
    return {
        "name": name,
        "known": bool(record),
        "running": running,
        "pid": record.get("pid"),
        "exit_code": record.get("exit_code"),
        "stopped": bool(record.get("stopped")),
        "started": record.get("started"),
        "oom_kills": record.get("oom_kills"),
        "log": record.get("log"),
        "result": _result(name) if record and not running and record.get("exit_code") is None else None,
        "processes": len(tree),
        "stopped_processes": [pid for pid, entry in tree.items() if entry.state == node_processes.STOPPED],
    }


def processes(name: str) -> list[int]:
    """
    Return the process ids of a unit's tree.

    CLI Example:

    .. code-block:: bash

        salt node0 supervise.processes sleeper
    """
    record = node_files.read_json(_path(name))
    return list(_tree(record)) if record is not None and _is_kept(record) else []


def units() -> dict[str, dict[str, Any]]:
    """
    Return the status of every unit this node knows.

    CLI Example:

    .. code-block:: bash

        salt '*' supervise.units
    """
    if not os.path.isdir(DIRECTORY):
        return {}
    names = sorted(entry.removesuffix(".json") for entry in os.listdir(DIRECTORY) if entry.endswith(".json"))
    return {name: status(name) for name in names}


def _result(name: str) -> str | None:
    """Return why systemd says that a unit has failed whose keeper could not say it, such as ``oom-kill``."""
    if not os.path.isdir(unit_keeper.SYSTEMD):
        return None
    asked = ["systemctl", "show", "--value", "--property=Result", f"cluster-{name}"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    return found if found and found != "success" else None


def _check_name(name: str) -> None:
    if not NAME.match(str(name)):
        raise ValueError(f"supervise: {name!r} is no unit name, expected lower-case letters, digits and dashes")


def _path(name: str, suffix: str = "json") -> str:
    return os.path.join(DIRECTORY, f"{name}.{suffix}")


def _tree(record: dict[str, Any]) -> dict[int, node_processes.Stat]:
    """Return the processes below a unit's keeper, the nearest first."""
    table = node_processes.table()
    return {pid: table[pid] for pid in node_processes.descendants(table, record["keeper"])}


def _is_kept(record: dict[str, Any]) -> bool:
    return node_processes.is_alive(record["keeper"], record["keeper_start"])
