"""
Own a process and everything it starts.

vLLM starts processes that outlive it and hold its ports. A keeper process adopts
every descendant (it is their subreaper), so that ending the unit ends all of them.
Where systemd runs, the keeper is a transient unit, so that its cgroup holds the
whole tree as well.

State is one JSON file a unit under ``/run/cluster/supervise``.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

DIRECTORY = "/run/cluster/supervise"
GRACE_SECONDS = 3.0
# For a Python to start on a node that is busy with starting itself.
START_SECONDS = 30.0
PR_SET_CHILD_SUBREAPER = 36
NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")


def __virtual__():
    return "supervise" if sys.platform == "linux" else (False, "supervise reads /proc")


def start(name, command, environment=None, log=None):
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
    _write(_path(name, "spec"), specification, 0o600)
    _remove(_path(name))
    keeper = [sys.executable, os.path.abspath(__file__.removesuffix("c")), _path(name, "spec")]
    if os.path.isdir("/run/systemd/system"):
        keeper = ["systemd-run", "--quiet", "--collect", f"--unit=cluster-{name}", *keeper]
    # Not reaped by us when the minion forks a job; the keeper detaches itself.
    subprocess.run(keeper, stdin=subprocess.DEVNULL, check=True, timeout=30)
    return _wait(lambda: status(name), lambda seen: seen["running"] or seen["exit_code"] is not None, START_SECONDS)


def stop(name, grace=GRACE_SECONDS):
    """
    End a unit and every process it started; return its status.

    CLI Example:

    .. code-block:: bash

        salt node0 supervise.stop sleeper
    """
    _check_name(name)
    record = _read(_path(name))
    if record is None:
        return status(name)
    if _alive(record["keeper"], record["keeper_start"]):
        os.kill(record["keeper"], signal.SIGTERM)
        _wait(
            lambda: _alive(record["keeper"], record["keeper_start"]),
            lambda alive: not alive,
            float(grace) + 10.0,
        )
        if _alive(record["keeper"], record["keeper_start"]):
            os.kill(record["keeper"], signal.SIGKILL)
    # A keeper that was killed could not end its tree; its session is what is left.
    _wait(lambda: _kill_session(record["session"]), lambda left: left == 0, 10.0)
    record["running"] = False
    if record.get("exit_code") is None:
        record = dict(_read(_path(name)) or record)
    record["stopped"] = True
    _write(_path(name), record, 0o644)
    return status(name)


def status(name):
    """
    Return whether a unit runs, since when, its exit code and its log.

    CLI Example:

    .. code-block:: bash

        salt node0 supervise.status sleeper
    """
    _check_name(name)
    record = _read(_path(name)) or {}
    running = bool(record) and record.get("exit_code") is None and _alive(record["keeper"], record["keeper_start"])
    return {
        "name": name,
        "known": bool(record),
        "running": running,
        "pid": record.get("pid"),
        "exit_code": record.get("exit_code"),
        "stopped": bool(record.get("stopped")),
        "started": record.get("started"),
        "log": record.get("log"),
        "processes": len(processes(name)) if running else 0,
    }


def processes(name):
    """
    Return the process ids of a unit's tree.

    CLI Example:

    .. code-block:: bash

        salt node0 supervise.processes sleeper
    """
    record = _read(_path(name))
    if record is None or not _alive(record["keeper"], record["keeper_start"]):
        return []
    return _descendants(record["keeper"])


def units():
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


def _check_name(name):
    if not NAME.match(str(name)):
        raise ValueError(f"supervise: {name!r} is no unit name, expected lower-case letters, digits and dashes")


def _path(name, suffix="json"):
    return os.path.join(DIRECTORY, f"{name}.{suffix}")


def _write(path, content, mode):
    partial = f"{path}.{os.getpid()}"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(partial, path)


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None


def _remove(path):
    if os.path.exists(path):
        os.unlink(path)


def _wait(look, good, seconds):
    """Look until what is seen is good or the time is up; return what was seen last."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if good(seen) or time.monotonic() > deadline:
            return seen
        time.sleep(0.05)


def _stat(pid):
    """Return the fields of /proc/PID/stat after the command name, or None."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _start_time(pid):
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def _alive(pid, started):
    return _start_time(pid) == started


def _all_stats():
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields is not None:
                yield int(entry), fields


def _descendants(ancestor):
    children = {}
    for pid, fields in _all_stats():
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(pid)
    found, queue = [], [ancestor]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found


def _kill_session(session):
    left = [pid for pid, fields in _all_stats() if int(fields[3]) == session and fields[0] != "Z"]
    _signal_all(left, signal.SIGKILL)
    return len(left)


def _signal_all(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _keep(specification_path):
    """Be the keeper: run the unit, end its whole tree when told or when it ends."""
    import ctypes

    state = specification_path.removesuffix(".spec") + ".json"
    specification = _read(specification_path)
    _remove(specification_path)
    if not os.path.isdir("/run/systemd/system") and os.fork():
        return
    # systemd has made the keeper the leader of a session already, and it cannot become that twice.
    if os.getsid(0) != os.getpid():
        os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asked = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    record = {
        "name": specification["name"],
        "keeper": os.getpid(),
        "keeper_start": _start_time(os.getpid()),
        "log": specification["log"],
        "started": specification["started"],
        "command": specification["command"],
        "pid": None,
        "session": -1,
        "exit_code": None,
    }
    with open(specification["log"], "ab", buffering=0) as log:
        try:
            child = subprocess.Popen(
                specification["command"],
                env={**os.environ, **specification["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"cannot start: {error}\n".encode())
            record["exit_code"] = 127
            _write(state, record, 0o644)
            return
    for descriptor in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    record.update(pid=child.pid, session=child.pid)
    _write(state, record, 0o644)
    exit_code = None
    while exit_code is None and not asked:
        exit_code = _reap(child.pid, 0.2)
    if exit_code is None:
        exit_code = _end_tree(child.pid)
    _wait(lambda: _kill_rest(child.pid), lambda left: left == 0, 10.0)
    record["exit_code"] = exit_code
    _write(state, record, 0o644)


def _reap(main, seconds):
    """Reap what has ended after `seconds`; return the main child's exit code once it has."""
    time.sleep(seconds)
    code = None
    try:
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == main:
                code = os.waitstatus_to_exitcode(wait_status)
    except ChildProcessError:
        pass
    return code


def _end_tree(main):
    """Ask the main process to end, wait for it, then end it; return its exit code."""
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 5.0)):
        _signal_all([main] if number == signal.SIGTERM else [main, *_descendants(os.getpid())], number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            code = _reap(main, 0.1)
            if code is not None:
                return code
    return -signal.SIGKILL


def _kill_rest(main):
    left = _descendants(os.getpid())
    _signal_all(left, signal.SIGKILL)
    _reap(main, 0.05)
    return len(left)


if __name__ == "__main__":
    _keep(sys.argv[1])
