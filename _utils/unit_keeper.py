"""
Keep one unit: run its command, adopt whatever that starts, and end all of it when asked or when the command ends.

A program of its own, started by ``supervise`` with the path of a specification, which it removes. It needs Python and
the files beside it, no Salt.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import memory_kills
import node_files
import node_processes

Seen = TypeVar("Seen")

# Asks a keeper to end its tree without a word to it: what it serves can only be broken off.
AT_ONCE = signal.SIGUSR1
GRACE_SECONDS = 3.0
KILL_SECONDS = 5.0
REAP_SECONDS = 0.2
LAST_SECONDS = 10.0
PR_SET_CHILD_SUBREAPER = 36
SYSTEMD = "/run/systemd/system"
CANNOT_START = 127
# Where systemd learns that a unit is up and lives; for the keeper alone.
NOTIFY = "NOTIFY_SOCKET"


def keep(specification_path: str) -> None:
    """Run the unit that a specification describes, to its end; its record lies beside the specification."""
    record_path = specification_path.removesuffix(".spec") + ".json"
    specification = node_files.read_json(specification_path)
    node_files.remove(specification_path)
    if not os.path.isdir(SYSTEMD) and os.fork():
        return
    # systemd has made the keeper the leader of a session already, and it cannot become that twice.
    if os.getsid(0) != os.getpid():
        os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    systemd = os.environ.pop(NOTIFY, None)
    asked: list[int] = []
    for number in (signal.SIGTERM, AT_ONCE):
        signal.signal(number, lambda number, _frame: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    record: dict[str, Any] = {
        "name": specification["name"],
        "keeper": os.getpid(),
        "keeper_start": node_processes.start_ticks(os.getpid()),
        "log": specification["log"],
        "started": specification["started"],
        "command": specification["command"],
        "pid": None,
        "session": -1,
        "exit_code": None,
    }
    killed = memory_kills.count()
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
            node_files.write_json(record_path, {**record, "exit_code": CANNOT_START})
            notify(systemd, "READY=1")
            return
    for descriptor in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    record.update(pid=child.pid, session=child.pid)
    node_files.write_json(record_path, record)
    notify(systemd, "READY=1")
    exit_code = None
    while exit_code is None and not asked:
        notify(systemd, "WATCHDOG=1")
        exit_code = _reap(child.pid, REAP_SECONDS)
    if exit_code is None:
        exit_code = _end_tree(child.pid, AT_ONCE in asked)
    wait(lambda: _kill_rest(child.pid), lambda left: left == 0, LAST_SECONDS)
    # An end that was asked for is no failure, from the moment on record.
    ended = {"exit_code": exit_code, "stopped": bool(asked), "oom_kills": memory_kills.since(killed)}
    node_files.write_json(record_path, {**record, **ended})


def notify(address: str | None, text: str) -> None:
    """Tell systemd, at the address that it gave; without one, nobody."""
    if address is None:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # An @ stands for the zero byte of an address that is no file.
        sender.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)


def wait(look: Callable[[], Seen], good: Callable[[Seen], bool], seconds: float) -> Seen:
    """Look until what is seen is good or the time is up; return what was seen last."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if good(seen) or time.monotonic() > deadline:
            return seen
        time.sleep(0.05)


def kill_session(session: int) -> int:
    """End every process of a session; return how many there were."""
    left = [
        pid
        for pid, entry in node_processes.table().items()
        if entry.session == session and entry.state != node_processes.ZOMBIE
    ]
    _signal_all(left, signal.SIGKILL)
    return len(left)


def _reap(main: int, seconds: float) -> int | None:
    """Reap what has ended after `seconds`; return the main child's exit code once it has."""
    time.sleep(seconds)
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == main:
                code = os.waitstatus_to_exitcode(wait_status)
    return code


def _end_tree(main: int, at_once: bool) -> int:
    """Ask the main process to end and wait for it, unless at once; then end it; return its exit code."""
    steps = ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, KILL_SECONDS))
    for number, patience in steps[1:] if at_once else steps:
        below = [] if number == signal.SIGTERM else node_processes.descendants(node_processes.table(), os.getpid())
        _signal_all([main, *below], number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            code = _reap(main, 0.1)
            if code is not None:
                return code
    return -signal.SIGKILL


def _kill_rest(main: int) -> int:
    left = node_processes.descendants(node_processes.table(), os.getpid())
    _signal_all(left, signal.SIGKILL)
    _reap(main, 0.05)
    return len(left)


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    keep(sys.argv[1])
