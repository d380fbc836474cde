"""Notice the end of a worker's processes at once, by their pidfds, and those that somebody stopped.

Watched are the worker's own program, its keeper, and what the worker started and kept: an engine's ranks. What lived
for less than the time between two searches of the process table, as a compiler does while an engine starts, is none of
those. A pidfd becomes readable when its process ends, whoever its parent is. One that was stopped (SIGSTOP) ends no
pidfd and stands still for ever: its state is looked at every second, and counts when it is the same at two looks.
"""

import contextlib
import os
import select
from collections.abc import Iterator, Mapping
from typing import Any

import node_processes
from workers import unit_records

# How often the records of units are looked at for new ones; an end is seen at the next look, whatever this is.
SEARCH_SECONDS = 1.0
# A start lays a record down and its processes come and go; what is there at two of these looks stays.
TREE_SECONDS = 10.0


class WorkerExits:
    """The running workers' processes; `look` costs one system call while none ends.

    Parameters
    ----------
    directory
        Where the records of units are (``_modules/supervise.py``).
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._poll = select.poll()
        # pidfd -> worker, process id, what it is.
        self._watched: dict[int, tuple[str, int, str]] = {}
        self._seen: set[tuple[int, int]] = set()
        self._keepers: dict[str, int] = {}
        # Process ids that were stopped at the last look, and those that were reported.
        self._stopped: set[int] = set()
        self._reported: set[int] = set()
        self._searched = self._looked_at_trees = -TREE_SECONDS

    def look(self, now: float) -> list[dict[str, Any]]:
        """Return what ended or was stopped since the last look; ``now`` is a monotonic time in seconds."""
        ended = []
        if not 0.0 <= now - self._searched < SEARCH_SECONDS:
            self._searched = now
            self._search()
            ended += self._look_for_stopped()
        if self._keepers and not 0.0 <= now - self._looked_at_trees < TREE_SECONDS:
            self._looked_at_trees = now
            self._look_at_trees(node_processes.table())
        for descriptor, _ in self._poll.poll(0) if self._watched else ():
            worker, pid, kind = self._forget(descriptor)
            ended.append({"worker": worker, "pid": pid, "kind": kind})
        return ended

    def _look_for_stopped(self) -> list[dict[str, Any]]:
        stopped = {pid: (worker, kind) for worker, pid, kind in self._watched.values() if _is_stopped(pid)}
        news = (stopped.keys() & self._stopped) - self._reported
        self._stopped = set(stopped)
        self._reported = (self._reported | news) & stopped.keys()
        return [{"worker": stopped[pid][0], "pid": pid, "kind": "stopped"} for pid in sorted(news)]

    def _search(self) -> None:
        """Watch the program and the keeper of each unit that is new."""
        watched = {pid for _, pid, _ in self._watched.values()}
        keepers = {}
        for worker, record in _running(self._directory):
            keepers[worker] = record["keeper"]
            for key, kind in (("pid", "program"), ("keeper", "keeper")):
                if record[key] not in watched:
                    self._watch(worker, record[key], kind)
        self._keepers = keepers

    def _look_at_trees(self, table: Mapping[int, node_processes.Stat]) -> None:
        watched = {pid for _, pid, _ in self._watched.values()}
        seen = set()
        for worker, keeper in self._keepers.items():
            for pid in node_processes.descendants(table, keeper):
                process = (pid, table[pid].start_ticks)
                seen.add(process)
                if process in self._seen and pid not in watched:
                    self._watch(worker, pid, "part")
        self._seen = seen

    def _watch(self, worker: str, pid: int, kind: str) -> None:
        # It may have ended since it was seen; then its end was no news when the watch began.
        with contextlib.suppress(OSError, OverflowError):
            descriptor = os.pidfd_open(pid)
            self._watched[descriptor] = (worker, pid, kind)
            self._poll.register(descriptor, select.POLLIN)

    def _forget(self, descriptor: int) -> tuple[str, int, str]:
        self._poll.unregister(descriptor)
        os.close(descriptor)
        return self._watched.pop(descriptor)


def _is_stopped(pid: int) -> bool:
    found = node_processes.stat(pid)
    return found is not None and found.state == node_processes.STOPPED


def _running(directory: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each worker whose unit has a program and runs, and its record."""
    for worker, record in unit_records(directory):
        # The record outlives a keeper that was killed; its number may belong to another process by now.
        if record.get("pid") and node_processes.is_alive(record.get("keeper", 0), record.get("keeper_start", 0)):
            yield worker, record
