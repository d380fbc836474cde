"""Batches as they arrive: what a node's sampler sends, and the engine readings inside."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bottleneck.json_numbers import number
from bottleneck.telemetry.prometheus_text import MetricsText
from bottleneck.telemetry.sample_schema import OLDER_KEYS

Batch = dict[str, Any]
# Of one engine, in order of time: unix seconds and metrics.
Readings = list[tuple[float, MetricsText]]
# In the text, before it is parsed: a run has tens of thousands of such keys.
_OLDER = re.compile(f'"({"|".join(OLDER_KEYS)})"')


def engine_readings(batches: Iterable[Batch], start: float, end: float) -> dict[str, Readings]:
    """Return the engine readings inside batches, by the node that took them, in order of time.

    Parameters
    ----------
    batches
        Of any nodes, in any order.
    start
        Start, unix seconds.
    end
        End, unix seconds.
    """
    found: dict[str, Readings] = {}
    for batch in batches:
        engine = batch.get("engine")
        if not isinstance(engine, dict) or not isinstance(engine.get("metrics"), dict):
            continue
        moment = number(engine.get("t", batch.get("t1")))
        if math.isfinite(moment) and start <= moment <= end and engine["metrics"]:
            reading = MetricsText.from_flat(engine["metrics"])
            found.setdefault(str(batch.get("node", "")), []).append((moment, reading))
    for readings in found.values():
        readings.sort(key=lambda pair: pair[0])
    return found


def read_batches(path: Path) -> tuple[list[Batch], list[str]]:
    """Read `samples.jsonl.gz`; a cut file gives what came before the cut, and a sentence about it.

    Parameters
    ----------
    path : Path
        File with one batch a line, compressed by gzip where its name ends in .gz.

    Returns
    -------
    tuple[list[Batch], list[str]]
        Batches in the file's order, with today's names for keys that were called otherwise; and one sentence for each
        kind of damage.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    """
    batches: list[Batch] = []
    broken = 0
    problems: list[str] = []
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if not line.strip():
                    continue
                try:
                    batch = json.loads(_OLDER.sub(lambda found: f'"{OLDER_KEYS[found[1]]}"', line))
                except ValueError:
                    broken += 1
                    continue
                if isinstance(batch, dict):
                    batches.append(batch)
                else:
                    broken += 1
    except (EOFError, OSError, zlib.error) as error:
        problems.append(f"{path.name}: cut short after {len(batches)} batches ({error})")
    if not batches and not problems:
        problems.append(f"{path.name}: no batch in it")
    if broken:
        problems.append(f"{path.name}: {broken} lines are not batches")
    return batches, problems


def write_batches(path: Path, batches: Iterable[Batch]) -> None:
    """Write batches, one a line, compressed.

    Parameters
    ----------
    path : Path
        File to write; one that is there is replaced.
    batches : Iterable[Batch]
        Batches in the order in which they are to be read.

    Raises
    ------
    OSError
        When it cannot be written.
    """
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for batch in batches:
            stream.write(json.dumps(batch, separators=(",", ":")) + "\n")
