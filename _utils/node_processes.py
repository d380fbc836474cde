"""
Read the kernel's process table: who is whose parent, since when, and whether a process is still the one it was.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

STAT_BYTES = 1024
ZOMBIE = "Z"
# Somebody stopped it (SIGSTOP). One that a debugger holds has another state: whoever debugs knows what they do.
STOPPED = "T"


class Stat(NamedTuple):
    """
    Fields of /proc/PID/stat; ``start_ticks`` since boot tells two processes of one number apart.

    ``user_ticks`` and ``system_ticks`` count what its threads computed, ended ones too.
    """

    name: str
    state: str
    parent: int
    session: int
    user_ticks: int
    system_ticks: int
    start_ticks: int
    resident_pages: int


def parse_stat(text: str) -> Stat:
    """Return the fields of /proc/PID/stat, counted from the end of the name, which may hold blanks and brackets."""
    head, _, rest = text.rpartition(")")
    fields = rest.split(None, 22)
    return Stat(
        name=head.partition("(")[2],
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        user_ticks=int(fields[11]),
        system_ticks=int(fields[12]),
        start_ticks=int(fields[19]),
        resident_pages=int(fields[21]),
    )


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
    return parse_stat(content.decode("utf-8", "replace")) if content else None


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
