"""Keep the record of everything that the cluster did by itself, with its cause and what came of it.

One JSON object a line, synced to the disk before the next; the file before the present one is kept.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bottleneck.atomic_files import synchronise
from control import records

FILE = "audit.jsonl"
LARGEST_BYTES = 1_000_000


def note(opts: Mapping[str, Any], action: str, cause: str, result: str, **more: object) -> dict[str, Any]:
    """
    Add one entry and return it.

    action
        what was done: a few words
    cause
        why, with what was seen
    result
        what came of it
    more
        further plain values, such as ``node`` or ``seconds``
    """
    path = records.path_of(opts, FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"time": round(time.time(), 3), "action": action, "cause": cause, "result": result, **more}
    with path.with_suffix(".lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_size > LARGEST_BYTES:
            path.replace(_before(path))
            synchronise(path.parent)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return entry


def entries(opts: Mapping[str, Any], limit: int) -> list[dict[str, Any]]:
    """Return the newest entries, the oldest of them first; a line that a crash cut short is left out."""
    path = records.path_of(opts, FILE)
    found: list[dict[str, Any]] = []
    for each in (_before(path), path):
        try:
            lines = each.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
    return found[-limit:] if limit > 0 else []


def _before(path: Path) -> Path:
    return path.with_suffix(".jsonl.1")
