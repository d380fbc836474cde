"""
Keep what is slowed on this node on record, and put it back when its lease has expired.

As a program, started by ``perturb`` with the folder of the record: the watchdog, which waits for the end of the lease,
puts everything back and ends. It needs Python and the files beside it, no Salt.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import node_commands
import node_files
import node_processes

COMMAND_SECONDS = 20.0
PROGRAM_SECONDS = 5.0
LOOK_SECONDS = 0.1
RETRY_SECONDS = 1.0

# A step is data: its kind, then its arguments. Every one of them may be done twice.
Step = list[Any]


class Entry(TypedDict):
    """One change that is in effect: what was there before it, and the steps that lead back."""

    change: dict[str, Any]
    before: object
    undo: list[Step]


class State(TypedDict):
    """The record: when the lease expires, in seconds since boot (None without one), and what is in effect."""

    deadline: float | None
    applied: list[Entry]


def now() -> float:
    """Return seconds since boot, suspended time included: a deadline is a deadline."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Keep everybody else from the record."""
    os.makedirs(directory, mode=0o755, exist_ok=True)
    descriptor = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(directory: str) -> State:
    """Return the record; one without a lease when there is none."""
    found: State | None = node_files.read_json(_path(directory))
    return found or {"deadline": None, "applied": []}


def write(directory: str, state: State) -> None:
    """Replace the record; it must survive a crash, because it holds the way back."""
    node_files.write_json(_path(directory), state, durable=True)


def forget(directory: str) -> None:
    """Remove the record: nothing is in effect and nobody has a lease."""
    node_files.remove(_path(directory))


def put_back(directory: str, state: State, entries: Sequence[Entry]) -> State:
    """
    Undo entries of the record, the last one first; return the record without them.

    One that fails does not keep the others from it: then RuntimeError names what could not be put back, which stays on
    record.
    """
    problems = []
    for entry in reversed(entries):
        try:
            perform(entry["undo"])
        except (OSError, RuntimeError) as error:
            problems.append(str(error))
            continue
        state = {**state, "applied": [each for each in state["applied"] if each is not entry]}
        write(directory, state)
    if problems:
        raise RuntimeError(f"could not be put back: {'; '.join(problems)}")
    return state


def perform(steps: Sequence[Step]) -> None:
    """Do steps, one after the other."""
    for kind, *arguments in steps:
        _KINDS[kind](*arguments)


def lock_owner(path: str) -> int | None:
    """Return the process id of the program that has a control file's lock, once it works; None without one."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # The program writes its id when it works.
        written = os.read(descriptor, 32).decode().strip()
        return int(written) if written.isdigit() else None
    finally:
        os.close(descriptor)
    return None


def is_armed(directory: str) -> bool:
    """Return whether the watchdog runs."""
    return lock_owner(os.path.join(directory, "watchdog")) is not None


def watch(directory: str) -> None:
    """Wait for the end of the lease, put everything back, end; asked to end, put everything back at once."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda seen, _frame: asked.append(seen))
    lock = os.open(os.path.join(directory, "watchdog.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    while True:
        with locked(directory):
            state = read(directory)
            if state["deadline"] is None or asked or now() >= state["deadline"]:
                try:
                    put_back(directory, state, state["applied"])
                    forget(directory)
                    # Released while the other lock is ours: whoever arms next finds no watchdog and starts one.
                    os.close(lock)
                    return
                except RuntimeError as error:
                    print(error, flush=True)
                    write(directory, {**read(directory), "deadline": now() + RETRY_SECONDS})
                    asked.clear()
        time.sleep(LOOK_SECONDS)


def _path(directory: str) -> str:
    return os.path.join(directory, "state.json")


# Steps ---------------------------------------------------------------------------------------


def _run(command: list[str]) -> None:
    node_commands.output_of(command, timeout=COMMAND_SECONDS)


def _write(path: str, text: object) -> None:
    # No O_CREAT: a kernel's file that is not there must fail, not become a file.
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(descriptor, str(text).encode())
    finally:
        os.close(descriptor)


def _control(path: str, value: object) -> None:
    """Set what a program does, through its control file; it lives as long as the file."""
    node_files.write_text(path, str(value))


def _start(path: str, command: list[str]) -> None:
    """Start the program of a control file unless it runs; wait until it works."""
    if lock_owner(path) is None:
        with open(f"{path}.log", "wb") as log:
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                close_fds=True,
            )
    deadline = time.monotonic() + PROGRAM_SECONDS
    while lock_owner(path) is None:
        if time.monotonic() > deadline:
            with open(f"{path}.log", encoding="utf-8", errors="replace") as log_text:
                lines = log_text.read().strip().splitlines()
            raise RuntimeError(f"{command[0]} of {path} does not work: {lines[-1] if lines else 'its log is empty'}")
        time.sleep(0.01)


def _remove(path: str) -> None:
    """End the program of a control file: take the file away, and insist when it does not end."""
    node_files.remove(path)
    deadline = time.monotonic() + PROGRAM_SECONDS
    while (owner := lock_owner(path)) is not None:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner, signal.SIGKILL)
        time.sleep(0.01)


def _continue(processes: Sequence[Sequence[int]]) -> None:
    """Have processes run that were stopped, each a process id and when it started; one that has ended is left out."""
    for pid, started in processes:
        if node_processes.is_alive(pid, started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


_KINDS: dict[str, Callable[..., None]] = {
    "continue": _continue,
    "run": _run,
    "write": _write,
    "control": _control,
    "start": _start,
    "remove": _remove,
}


if __name__ == "__main__":
    watch(sys.argv[1])
