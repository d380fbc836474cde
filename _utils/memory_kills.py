"""
Count the processes that the kernel ended because memory ran out: in this process's control group, or on the machine.
"""

import os

GROUPS = "/sys/fs/cgroup"
# The controllers of a line of /proc/self/cgroup (none is version 2) -> where its groups are, and the file that counts.
COUNTERS = {"": ("", "memory.events"), "memory": ("memory", "memory.oom_control")}
KEY = "oom_kill"


def count(groups: str = GROUPS, proc: str = "/proc") -> int | None:
    """Return how many there were; the machine's count where the group has none, None where nothing counts."""
    try:
        with open(os.path.join(proc, "self", "cgroup"), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        lines = []
    paths = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in COUNTERS:
                folder, name = COUNTERS[controller]
                paths.append(os.path.join(groups, folder, path.lstrip("/"), name))
    found = [_counted(path) for path in (*paths, os.path.join(proc, "vmstat"))]
    return next((each for each in found if each is not None), None)


def since(before: int | None) -> int | None:
    """Return how many there were since the count was ``before``; None where nothing counts."""
    now = count()
    return None if now is None or before is None else now - before


def _counted(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                key, _, value = line.partition(" ")
                if key == KEY:
                    return int(value)
    except (OSError, ValueError):
        pass
    return None
