"""Compare what the kernel treats two processes by: a difference in speed that is none of these is their own."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def serving(lab: str, node: str) -> dict[int, dict[str, str]]:
    """Return the environment of each `vllm serve` that a node of a lab runs, by its process id on this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if not entry.name.isdigit():
                continue
            command = (entry / "cmdline").read_bytes().split(b"\0")
            at_node = f"/cluster/{lab}/{node}" in (entry / "cgroup").read_text()
            if at_node and b"serve" in command[:3] and any(part.endswith(b"bin/vllm") for part in command[:2]):
                pairs = [pair.partition("=") for pair in (entry / "environ").read_text().split("\0") if pair]
                found[int(entry.name)] = {key: value for key, _, value in pairs}
    return found


def attributes(pid: int, environment: dict[str, str]) -> dict[str, Any]:
    """Return niceness, scheduler, cores, limits, control groups and environment of a process."""
    folder = Path("/proc", str(pid))
    limits = {line[:26].strip(): line[26:].strip() for line in (folder / "limits").read_text().splitlines()[1:]}
    return {
        "niceness": os.getpriority(os.PRIO_PROCESS, pid),
        "scheduler": os.sched_getscheduler(pid),
        "cores": sorted(os.sched_getaffinity(pid)),
        "oom_score_adj": int((folder / "oom_score_adj").read_text()),
        "control groups": (folder / "cgroup").read_text(),
        **{f"limit {name}": value for name, value in limits.items()},
        **{f"environment {key}": value for key, value in environment.items()},
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    """Return what is not the same in both, each with both values."""
    names = sorted({*one, *other})
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}
