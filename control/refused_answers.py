"""Count the answers that were refused because their node had not sealed them: on record, for the exporter."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping

from pydantic import TypeAdapter

from bottleneck import atomic_files
from bottleneck.json_files import JsonFileError, read_json
from control import records
from control.records import Options

FILE = "refused-answers.json"
# Minion to how many.
_COUNTS: TypeAdapter[dict[str, int]] = TypeAdapter(dict[str, int])


def note(opts: Options, counts: Mapping[str, int]) -> None:
    """Add to how many answers in a minion's name were refused."""
    path = records.path_of(opts, FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read(opts)
        total = {name: known.get(name, 0) + counts.get(name, 0) for name in sorted({*known, *counts})}
        atomic_files.replace_json(path, total)


def read(opts: Options) -> dict[str, int]:
    """Return how many answers in each minion's name were refused; a record that cannot be read is none."""
    try:
        return read_json(records.path_of(opts, FILE), _COUNTS) or {}
    except JsonFileError:
        return {}


def values(opts: Options, senders: Mapping[str, str]) -> Iterator[tuple[str, tuple[str], float]]:
    """Yield (metric, label values, value) of every node; `senders` is node to minion."""
    known = read(opts)
    for node, minion in sorted(senders.items()):
        yield "cluster_answers_refused_total", (node,), float(known.get(minion, 0))
