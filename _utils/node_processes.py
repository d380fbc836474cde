"""
Read the kernel's process table: who is whose parent, since when, and whether a process is still the one it was.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

STAT_BYTES = 1024
ZOMBIE = "Z"


class Stat(NamedTuple):
    """Fields of /proc/PID/stat; ``start_ticks`` since boot tells two processes of one number apart."""

    state: str
    parent: int
    session: int
    start_ticks: int


def parse_stat(content: bytes) -> Stat:
    """Return the fields of /proc/PID/stat, counted from the end of the name, which may hold blanks and brackets."""
    fields = content.rpartition(b")")[2].split(None, 20)
    return Stat(fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def stat(pid: int, proc: str = "/proc") -> Stat | None:
    """Return a process's entry, or None when there is no such process."""
    try:
        # Not open(): its text layer costs more than the read, and a table has hundreds.
        descriptor = os.open(f"{proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = os.read(descriptor, STAT_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return parse_stat(content) if content else None


def table(proc: str = "/proc") -> dict[int, Stat]:
    """Return the entry of every process."""
    found = {int(name): stat(int(name), proc) for name in os.listdir(proc) if name.isdigit()}
    return {pid: entry for pid, entry in found.items() if entry is not None}


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it has ended."""
    entry = stat(pid)
    return None if entry is None or entry.state == ZOMBIE else entry.start_ticks


def is_alive(pid: int, started: int) -> bool:
    """Return whether the process that started then still runs, and no other has its number."""
    return start_ticks(pid) == started


def descendants(processes: Mapping[int, Stat], ancestor: int) -> list[int]:
    """Return every running process below one, the nearest first."""
    children: dict[int, list[int]] = {}
    for pid, entry in processes.items():
        if entry.state != ZOMBIE:
            children.setdefault(entry.parent, []).append(pid)
    found: list[int] = []
    queue = [ancestor]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
