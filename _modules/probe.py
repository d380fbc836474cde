"""
Measure what this node and its links can do.

The work is done by ``probe.py``, run by the engine's own Python under the supervisor,
so that nothing of it outlives ``probe.stop``. What comes back are raw repeats.
"""

import hashlib
import json
import os
import socket
import sys
import time

SCRIPT = "/opt/cluster/probe/probe.py"
RUNTIME_DIRECTORY = "/run/cluster"
STATE_DIRECTORY = "/var/lib/cluster"
UNITS = ("probe", "probe-serve")


def __virtual__():
    return "probe" if sys.platform == "linux" else (False, "probes read /proc")


def machine():
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


def node(specifications, measure=True, seconds=60):
    """
    Measure this node, then the collectives it takes part in; return the raw repeats and the machine.

    CLI Example:

    .. code-block:: bash

        salt-run probe.run    # works out the specifications and calls this on every node

    specifications
        by minion id: ``cores``, the ``collectives`` with this node's rank, and ``engine``: the accelerator's
        entry of the engine map with ``directory``, ``preload`` and ``environment``
    measure
        False leaves the node itself out
    seconds
        everything is ended after this long
    """
    told = specifications[__grains__["id"]]
    specification = {
        "measure": bool(measure),
        "cores": told["cores"],
        "directory": STATE_DIRECTORY,
        "collectives": told["collectives"],
        "deadline_seconds": int(seconds),
    }
    os.makedirs(STATE_DIRECTORY, exist_ok=True)
    found = _measured("node", specification, told["engine"], float(seconds))
    return {**found, "machine": machine()}


def serve(address, port, engine, seconds=60):
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


def link(address, peer, port, engine, load_seconds=2):
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


def stop():
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


def _measured(command, specification, engine, seconds):
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
        with open(output, encoding="utf-8") as file:
            return json.load(file)
    finally:
        __salt__["supervise.stop"]("probe")
        for path in (output, output + ".partial"):
            if os.path.exists(path):
                os.unlink(path)


def _start(unit, arguments, engine):
    directory = engine["directory"]
    python = os.path.join(directory, "bin/python")
    for path, what in ((python, "the engine"), (SCRIPT, "the probe")):
        if not os.path.exists(path):
            raise RuntimeError(f"{what} is not installed ({path} is missing): run state.apply first")
    if __salt__["supervise.status"](unit)["running"]:
        raise RuntimeError("another probe runs on this node: wait for it, or end it with probe.stop")
    environment = dict(engine.get("environment") or {})
    preload = [os.path.join(directory, path) for path in engine.get("preload") or []]
    if preload:
        environment["LD_PRELOAD"] = ":".join(preload)
    return __salt__["supervise.start"](unit, [python, SCRIPT, *arguments], environment, f"/var/log/cluster/{unit}.log")


def _reason(log):
    """Return the last line of a log that says anything."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, TypeError):
        lines = []
    return lines[-1][:300] if lines else "it ended and said nothing (its deadline, or it was stopped)"


def _listening(address, port):
    with socket.socket() as attempt:
        attempt.settimeout(0.5)
        return attempt.connect_ex((address, port)) == 0


def _cpu_model():
    # Not all architectures name their model.
    names = ("model name", "Hardware", "cpu model")
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        fields = [line.partition(":") for line in file]
    found = [value.strip() for key, _, value in fields if key.strip() in names]
    return found[0] if found else os.uname().machine


def _first_line(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return ""
