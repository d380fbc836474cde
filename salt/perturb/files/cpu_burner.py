"""Take a share of one core away from everyone else on it, which makes it a slower processor.

A CPU quota limits what a worker may use; one that waits half of its time is not slowed by half a core. This takes the
core away for a share of every few milliseconds whether it is wanted or not, so that work takes 1/(1 - share) times as
long and waiting is left alone.

A program of its own, started by ``perturb``; it lives as long as its control file, which holds the share.

    cpu_burner.py CONTROL_FILE CORE GROUP_FILE

GROUP_FILE is the file by which a process joins the engine's control group, empty when it is in ours.
"""

import contextlib
import fcntl
import os
import sys
import time

PERIOD_SECONDS = 0.004
LOOK_SECONDS = 0.05
LARGEST_SHARE = 0.95
NICENESS = -20


def main(control: str, core: str, group_file: str) -> None:
    """Take the core's share until the control file is gone."""
    lock = os.open(f"{control}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(lock, 0)
    os.sched_setaffinity(0, {int(core)})
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    if group_file:
        # Weights count inside a group: it has to compete where the engine is.
        with contextlib.suppress(OSError), open(group_file, "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))
    os.write(lock, str(os.getpid()).encode())
    share, looked = 0.0, -1.0
    began, used = time.perf_counter(), time.thread_time()
    while True:
        now = time.perf_counter()
        if now - looked >= LOOK_SECONDS:
            looked = now
            wanted = wanted_share(control)
            if wanted is None:
                return
            if wanted != share:
                share, began, used = wanted, now, time.thread_time()
        # What it got so far against what it is to have: short turns are made up for, a long pause is not.
        owed = min(share * (now - began) - (time.thread_time() - used), 2 * PERIOD_SECONDS)
        end = time.thread_time() + max(0.0, owed)
        while time.thread_time() < end:
            pass
        if owed <= -PERIOD_SECONDS or now - began > 1.0:
            began, used = time.perf_counter(), time.thread_time()
        time.sleep(PERIOD_SECONDS * (1 - share))


def wanted_share(control: str) -> float | None:
    """Return the share that the control file asks for; None when it is gone."""
    try:
        with open(control, encoding="utf-8") as file:
            return min(LARGEST_SHARE, max(0.0, float(file.read())))
    except (FileNotFoundError, ValueError):
        return None


if __name__ == "__main__":
    main(*sys.argv[1:4])
