"""Pause a process of the engine for a share of the time, in short pauses at random distances.

Every pause has the same length, so that a larger share is more of the same; how far apart they are is random, or they
would fall into step with the engine. A pause that came out longer makes the next one shorter: the share is what was
really paused.

A program of its own, started by ``perturb``; it lives as long as its control file, which holds the share. However it
ends, the process runs again: a guard, a process in a session of its own, waits for this program's end and continues
what it may have left stopped. Where both are killed, the watchdog of ``perturb`` does it.

    rank_pauser.py CONTROL_FILE PID:STARTED...

STARTED is field 22 of /proc/PID/stat: another process of the same number is left alone.
"""

import contextlib
import fcntl
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence

PAUSE_SECONDS = 0.002
LEAST_PAUSE_SECONDS = 0.0003
LOOK_SECONDS = 0.05
LARGEST_SHARE = 0.25
NICENESS = -20


def main(control: str, *names: str) -> None:
    """Pause the processes until the control file is gone, this program is asked to end, or they have ended."""
    lock = os.open(f"{control}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(lock, 0)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda seen, _frame: asked.append(seen))
    with contextlib.suppress(OSError):
        # Behind a busy engine it would wake late, and a pause be longer than it is to be.
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    processes = [process for name in names if (process := opened(name)) is not None]
    with guarded(processes, lock) as guard:
        os.write(lock, str(os.getpid()).encode())
        for share in shares(control):
            # Without its guard it would be dangerous.
            if asked or os.waitpid(guard, os.WNOHANG)[0]:
                return
            if not share:
                time.sleep(LOOK_SECONDS)
            elif not pause_for_a_while(processes, share):
                return


def opened(name: str) -> int | None:
    """Return a descriptor of the process, None when it has ended."""
    pid, _, started = name.partition(":")
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(int(pid))
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            if file.read().rpartition(")")[2].split()[19] == started:
                return descriptor
        os.close(descriptor)
    return None


@contextlib.contextmanager
def guarded(processes: Sequence[int], lock: int) -> Iterator[int]:
    """Have a guard that continues the processes once this one has ended; the block gets its process id."""
    end, ours = os.pipe()
    guard = os.fork()
    if guard == 0:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # The lock says that the pausing program works: it is not the guard's.
        os.close(lock)
        os.close(ours)
        os.read(end, 1)
        send(processes, signal.SIGCONT)
        os._exit(0)
    os.close(end)
    try:
        yield guard
    finally:
        send(processes, signal.SIGCONT)
        os.close(ours)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(guard, 0)


def shares(control: str) -> Iterator[float]:
    """Return the share that the control file asks for, again and again, until it is gone."""
    while True:
        try:
            with open(control, encoding="utf-8") as file:
                yield min(LARGEST_SHARE, max(0.0, float(file.read())))
        except (FileNotFoundError, ValueError):
            return


def pause_for_a_while(processes: Sequence[int], share: float) -> bool:
    """Pause the processes for a share of some periods; return False when none of them is left."""
    period = PAUSE_SECONDS / share
    began = now = time.perf_counter()
    paused = 0.0
    # It ends with a pause, so that nothing is owed at the end.
    while now - began < LOOK_SECONDS:
        time.sleep(period * (1 - share) * random.uniform(0.5, 1.5))
        owed = min(share * (time.perf_counter() - began - paused) / (1 - share) - paused, 2 * PAUSE_SECONDS)
        if owed < LEAST_PAUSE_SECONDS:
            continue
        stopped = time.perf_counter()
        try:
            if not send(processes, signal.SIGSTOP):
                return False
            time.sleep(owed)
        finally:
            send(processes, signal.SIGCONT)
        now = time.perf_counter()
        paused += now - stopped
    return True


def send(processes: Sequence[int], number: signal.Signals) -> int:
    """Send a signal to the processes; return how many of them are left."""
    left = 0
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, number)
            left += 1
    return left


if __name__ == "__main__":
    main(*sys.argv[1:])
