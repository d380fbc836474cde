"""Reach into a lab that serves: its processes, what its control node has on record, how far its samples are."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.profile import Profile, load_profile
from lab import node_processes, operations
from lab.layout import CONTROL, LabError, Record, load_record
from lab.requirements import find_hierarchy

POLL_SECONDS = 0.25
CALL_SECONDS = 120.0
STATE_DIRECTORY = "/var/lib/cluster"


@dataclass(frozen=True)
class Process:
    """A process of the lab: its number on this machine, its place, and its command line."""

    pid: int
    place: str
    command: str


class Site:
    """One lab, and the deployment that it serves."""

    def __init__(self, name: str) -> None:
        record = load_record(name)
        if record is None or record.state != "up":
            raise LabError(f"lab {name} is not up", f"cluster lab up {name}", code=4)
        self.name = name
        self.record: Record = record
        self.profile: Profile = load_profile(Path(record.profile_path))
        self._hierarchy = find_hierarchy()

    @property
    def nodes(self) -> list[str]:
        """The compute nodes, in the profile's order."""
        return list(self.profile.nodes)

    def path(self, place: str, path: str) -> Path:
        """Return the host's way to a path of a place."""
        return operations.inside(self.record.inits[place][0], path)

    def run(self, place: str, *argv: str, timeout: float = CALL_SECONDS, check: bool = True) -> str:
        """Run a command on a place and return its standard output."""
        command = operations.command(self.name, place, argv)
        finished = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        if check and finished.returncode:
            words = " ".join(finished.stderr.split())[-300:]
            raise LabError(f"{' '.join(argv[:3])} on {place} ended with {finished.returncode}: {words}")
        return finished.stdout

    def runner(self, function: str, *arguments: str, timeout: float = CALL_SECONDS) -> Any:
        """Call a runner on the control node and return what it returned."""
        text = self.run(CONTROL, "salt-run", "--out=json", function, *arguments, timeout=timeout)
        return json.loads(text)

    def processes(self, place: str) -> list[Process]:
        """Return the processes of a place, by number; those that have ended are left out."""
        found = []
        for pid in self._hierarchy.processes(self.name, place):
            entry = node_processes.stat(pid)
            if entry is not None and entry.state != node_processes.ZOMBIE:
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(Process(pid, place, command.strip()))
        return found

    def find(self, place: str, *words: str) -> list[Process]:
        """Return the processes of a place whose command line has all of these words.

        Raises
        ------
        LabError
            When there is none.
        """
        found = [each for each in self.processes(place) if all(word in each.command for word in words)]
        if not found:
            raise LabError(f"no process with {' and '.join(words)} on {place}", f"cluster status --lab {self.name}")
        return found

    def signal(self, processes: list[Process], number: int) -> None:
        """Send a signal to processes; one that has ended meanwhile is left out."""
        for each in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, number)

    def deployment(self) -> dict[str, Any]:
        """Return what is deployed, as the control node has it on record; an empty dict without."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(self.path(CONTROL, f"{STATE_DIRECTORY}/deployment.json").read_text())
            return found
        return {}

    def audit(self) -> list[dict[str, Any]]:
        """Return what the cluster did by itself, the oldest first."""
        found = []
        with contextlib.suppress(OSError):
            for line in self.path(CONTROL, f"{STATE_DIRECTORY}/audit.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def sampler(self, node: str) -> Mapping[str, Any]:
        """Return what a node's sampler wrote of itself last; empty while there is nothing."""
        with contextlib.suppress(OSError, ValueError):
            found: Mapping[str, Any] = json.loads(self.path(node, "/run/cluster/telemetry/status.json").read_text())
            return found
        return {}


def wait_for(condition: Callable[[], bool], seconds: float) -> float | None:
    """Return after how many seconds a condition held, or None when it did not in the time."""
    began = time.monotonic()
    while True:
        if condition():
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            return None
        time.sleep(POLL_SECONDS)
