"""
Measure what this node and its links can do.

The work is done by ``probe.py``, run by the engine's own Python under the supervisor,
so that nothing of it outlives ``probe.stop``. What comes back are raw repeats.
"""

import glob
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import engine_environment
import node_files

if TYPE_CHECKING:
    from loader_dunders import __grains__, __salt__

SCRIPT = "/opt/cluster/probe/probe.py"
RUNTIME_DIRECTORY = "/run/cluster"
STATE_DIRECTORY = "/var/lib/cluster"
UNITS = ("probe", "probe-serve")


def __virtual__() -> str | tuple[bool, str]:
    return "probe" if sys.platform == "linux" else (False, "probes read /proc")


def machine() -> dict[str, Any]:
    """
    Return what identifies this machine: its CPU, cores, memory, kernel and a digest of its machine id.

    CLI Example:

    .. code-block:: bash

        salt '*' probe.machine
    """
    return {
        "cpu_model": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": os.uname().release,
        "machine_id_digest": hashlib.sha256(_first_line("/etc/machine-id").encode()).hexdigest()[:16],
    }


def node(specifications: Mapping[str, Any], measure: bool = True, seconds: float = 60) -> dict[str, Any]:
    """
    Measure this node, then the collectives it takes part in; return the raw repeats and the machine.

    CLI Example:

    .. code-block:: bash

        salt-run probe.run    # works out the specifications and calls this on every node

    specifications
        by minion id: ``cores``, the ``collectives`` with this node's rank, ``engine``: the accelerator's
        entry of the engine map with ``directory``, ``preload`` and ``environment``, ``device``: what torch calls
        the accelerator, or None, and then ``bench``: the engine's own, or nothing measures the accelerator
    measure
        False leaves the node itself out
    seconds
        everything is ended after this long
    """
    own = specifications[__grains__["id"]]
    bench = own.get("bench")
    if bench:
        argv = engine_environment.command(own["engine"], bench["program"], bench["argv"])
        bench = {"argv": argv, "seconds": bench["seconds"], "host": bench["host"]}
    specification = {
        "measure": bool(measure),
        "cores": own["cores"],
        "directory": STATE_DIRECTORY,
        "collectives": own["collectives"],
        "device": own.get("device"),
        "bench": bench,
        "deadline_seconds": int(seconds),
    }
    os.makedirs(STATE_DIRECTORY, exist_ok=True)
    found = _measured("node", specification, own["engine"], float(seconds))
    return {**found, "machine": machine()}


def serve(address: str, port: int, engine: Mapping[str, Any], seconds: float = 60) -> dict[str, Any]:
    """
    Answer link probes on an address until ``probe.stop``; return once they are answered.

    CLI Example:

    .. code-block:: bash

        salt node1 probe.serve 10.77.1.11 29610 '{"directory": "/opt/cluster/engine"}'
    """
    specification = {"address": address, "port": int(port), "deadline_seconds": int(seconds)}
    started = _start("probe-serve", ["serve", json.dumps(specification)], engine)
    deadline = time.monotonic() + 15
    # Not the bandwidth port: iperf3 takes a connection for a test that has begun.
    while not _listening(address, int(port) + 1):
        if time.monotonic() > deadline or not __salt__["supervise.status"]("probe-serve")["running"]:
            reason = _reason(started["log"])
            __salt__["supervise.stop"]("probe-serve")
            raise RuntimeError(f"the link probe does not listen on {address}:{port}: {reason}")
        time.sleep(0.05)
    return {"address": address, "port": int(port)}


def link(address: str, peer: str, port: int, engine: Mapping[str, Any], load_seconds: float = 2) -> dict[str, Any]:
    """
    Measure the link from this node's address to a peer that serves; return both directions' raw repeats.

    CLI Example:

    .. code-block:: bash

        salt node0 probe.link 10.77.1.10 10.77.1.11 29610 '{"directory": "/opt/cluster/engine"}'
    """
    specification = {
        "address": address,
        "peer": peer,
        "port": int(port),
        "seconds": int(load_seconds),
        "deadline_seconds": 60,
    }
    return _measured("link", specification, engine, 60.0)


def stop() -> list[str]:
    """
    End every probe of this node and remove what they left; return what was running.

    CLI Example:

    .. code-block:: bash

        salt '*' probe.stop
    """
    ended = []
    for unit in UNITS:
        if __salt__["supervise.status"](unit)["running"]:
            ended.append(unit)
            __salt__["supervise.stop"](unit)
    for directory, prefix in ((RUNTIME_DIRECTORY, "probe-result."), (STATE_DIRECTORY, "probe-disk.")):
        for name in os.listdir(directory) if os.path.isdir(directory) else []:
            if name.startswith(prefix):
                os.unlink(os.path.join(directory, name))
    return ended


def _measured(
    command: str, specification: Mapping[str, Any], engine: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Run one probe to its end; return its result."""
    output = os.path.join(RUNTIME_DIRECTORY, f"probe-result.{os.getpid()}.json")
    os.makedirs(RUNTIME_DIRECTORY, exist_ok=True)
    unit = _start("probe", [command, json.dumps(specification), output], engine)
    deadline = time.monotonic() + seconds + 5
    look_again = 0.0
    try:
        # Asking the supervisor reads all of /proc: seldom, for it is this node that is measured.
        while not os.path.exists(output):
            if time.monotonic() > look_again:
                look_again = time.monotonic() + 2.0
                if not __salt__["supervise.status"]("probe")["running"] and not os.path.exists(output):
                    raise RuntimeError(f"the {command} probe failed: {_reason(unit['log'])}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the {command} probe did not end within {seconds:.0f} s")
            time.sleep(0.1)
        found: dict[str, Any] = node_files.read_json(output)
        return found
    finally:
        __salt__["supervise.stop"]("probe")
        # A probe that was ended while it wrote leaves the beginning of its result.
        for path in glob.glob(f"{output}*"):
            node_files.remove(path)


def _start(unit: str, arguments: list[str], engine: Mapping[str, Any]) -> dict[str, Any]:
    directory = engine["directory"]
    python = os.path.join(directory, "bin/python")
    if os.path.isdir(directory) and not os.path.exists(python):
        # An engine without Python: what is measured without torch needs none of its own.
        python = sys.executable
    for path, what in ((python, "the engine"), (SCRIPT, "the probe")):
        if not os.path.exists(path):
            raise RuntimeError(f"{what} is not installed ({path} is missing): run state.apply first")
    if __salt__["supervise.status"](unit)["running"]:
        raise RuntimeError("another probe runs on this node: wait for it, or end it with probe.stop")
    environment = {**(engine.get("environment") or {}), **engine_environment.preload(engine)}
    started: dict[str, Any] = __salt__["supervise.start"](
        # Without bytecode: the state keeps the folder as it is in the repository.
        unit,
        [python, "-B", SCRIPT, *arguments],
        environment,
        f"/var/log/cluster/{unit}.log",
    )
    return started


def _reason(log: str) -> str:
    """Return a log's last line that is not empty."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "its log is empty (its deadline passed, or it was stopped)"


def _listening(address: str, port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(0.5)
        return attempt.connect_ex((address, port)) == 0


def _cpu_model() -> str:
    # Not all architectures name their model.
    names = ("model name", "Hardware", "cpu model")
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        fields = [line.partition(":") for line in file]
    found = [value.strip() for key, _, value in fields if key.strip() in names]
    return found[0] if found else os.uname().machine


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return ""
