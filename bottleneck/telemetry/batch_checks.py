"""Check a batch whole before anything is done with it: who sent it, its form, its size, its times.

A node may send anything under its own name, and the process that takes batches serves all nodes. So what is refused
here is refused before it is stored, and nothing that passes can make the store, the exporter or the analysis fail.
Nothing here recurses: depth is the sender's.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from bottleneck.json_numbers import number
from bottleneck.telemetry.cluster_view import Settings
from bottleneck.telemetry.sample_schema import PARTS

# A sampler sends at most five in one event (`salt/sampler/files/delivery.py`).
MOST_BATCHES = 50
# A batch is a second; ten samples of 256 cores are 18,000 values.
MOST_SAMPLES, MOST_METRICS, MOST_VALUES = 2000, 5000, 400_000
# batch, samples, sample, part, item, value; the rest is room.
DEEPEST = 8
LONGEST_TEXT, LONGEST_NAME, MOST_ITEMS, MOST_FIELDS = 4096, 200, 1024, 64
# Counters of the kernel have 64 bits.
LARGEST = float(1 << 64)
_TEXT, _NUMBERS = frozenset({str}), frozenset({int, float})
MOST_SEQUENCE = 1 << 53
# From its first sample to its last; a sampler that stood still begins a new one at the next tick.
LONGEST_SECONDS = 60.0
# How far a node's clock may be before the control node's. What lies beyond would stay the newest for as long.
AHEAD_SECONDS = 30.0

_PARTS = {part.key: part for part in PARTS}
# Names that become labels of metrics, where the machine and not the profile gives them.
_CORE = re.compile(r"[0-9]{1,5}")
_WORKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# What of a worker can end: the program that was started, its keeper, a process that it started; or one was stopped.
EXITS = ("program", "keeper", "part", "stopped", "cut")
_RESOURCES = frozenset({"cpu", "memory", "io", "irq"})


def problem(batch: object, sender: object, settings: Settings, now: float) -> str | None:
    """Return why a batch cannot be taken, or None.

    Parameters
    ----------
    batch : object
        What came; it may be anything.
    sender : object
        Id of the minion that the master names as the event's sender.
    settings : Settings
        Settings of the cluster: which minion is which node, and its links.
    now : float
        Unix seconds of the control node.
    """
    if not isinstance(batch, dict):
        return f"a batch is a mapping, this is {type(batch).__name__}"
    node = batch.get("node")
    if not isinstance(node, str) or node not in settings.senders:
        return f"node {_shown(node)} is not in the profile"
    if settings.senders[node] != sender:
        return f"minion {_shown(sender)} sent a batch of {node}, expected it from {settings.senders[node]!r}"
    reason = _not_plain(batch) or _identity(batch) or _times(batch, settings, now) or _content(batch)
    return reason and f"{node}: {reason}"


def refused_for_good(batch: object, sender: object, settings: Settings, now: float) -> tuple[str, str, int] | None:
    """Return node, boot and number of a batch that is refused however often it comes again; else None.

    One without a number, or from another sender, is no node's own; one ahead of the control node's time is taken when
    that time has come.

    Parameters
    ----------
    batch : object
        What came; it may be anything.
    sender : object
        Id of the minion that the master names as the event's sender.
    settings
        The nodes, and how long batches are kept.
    now : float
        Unix seconds of the control node.
    """
    if not isinstance(batch, dict) or not isinstance(batch.get("node"), str) or _identity(batch):
        return None
    node: str = batch["node"]
    is_ahead = _moment(batch.get("t1")) > now + AHEAD_SECONDS
    if is_ahead or node not in settings.senders or settings.senders[node] != sender:
        return None
    is_refused = problem(batch, sender, settings, now) is not None
    return (node, batch["boot"], batch["sequence"]) if is_refused else None


def _shown(value: object) -> str:
    """Return a text or number, cut, as Python writes it; of anything else its type, for it may be large or deep."""
    return repr(value[:50]) if isinstance(value, str) else type(value).__name__


def _not_plain(document: object) -> str | None:
    """Return why a document is not plain, small JSON, or None; level by level, so that depth costs no stack."""
    level: list[Any] = [document]
    seen = depth = 0
    while level:
        depth += 1
        seen += len(level)
        if depth > DEEPEST:
            return f"nested deeper than {DEEPEST} levels"
        if seen > MOST_VALUES:
            return f"more than {MOST_VALUES} values"
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is float:
                # First: nearly all are.
                continue
            if kind is dict:
                if not _are_names(value):
                    return f"a key that is no text of at most {LONGEST_TEXT} characters"
                below.extend(value.values())
            elif kind is list:
                below.extend(value)
            elif kind is str:
                if not _is_text(value):
                    return f"a text that is longer than {LONGEST_TEXT} characters or no Unicode"
            elif kind is int:
                if not -LARGEST <= value <= LARGEST:
                    return "a number of more than 64 bits"
            elif kind is not bool and value is not None:
                return f"a value of type {kind.__name__}, expected JSON's types"
        level = below
    return None


def _are_names(keys: Iterable[object]) -> bool:
    """Return whether all keys of a mapping are texts."""
    # Thousands a second: what takes no turn of the interpreter for each key settles nearly all of them.
    if _TEXT.issuperset(map(type, keys)):
        texts = cast("Iterable[str]", keys)
        if "".join(texts).isascii() and max(map(len, texts), default=0) <= LONGEST_TEXT:
            return True
    return all(isinstance(key, str) and _is_text(key) for key in keys)


def _is_text(text: str) -> bool:
    if len(text) > LONGEST_TEXT:
        return False
    try:
        # A lone surrogate is a str and no Unicode: no file and no database takes it.
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _identity(batch: Mapping[str, Any]) -> str | None:
    boot, sequence = batch.get("boot"), batch.get("sequence")
    if not isinstance(boot, str) or not 0 < len(boot) <= 100:
        return f"boot {_shown(boot)}, expected a name"
    if type(sequence) is not int or not 0 < sequence < MOST_SEQUENCE:
        return f"sequence {str(sequence)[:50]!r}, expected a whole number from 1"
    return None


def _times(batch: Mapping[str, Any], settings: Settings, now: float) -> str | None:
    start, end = _moment(batch.get("t0")), _moment(batch.get("t1"))
    if not start <= end < math.inf:
        return f"from {start} to {end}, expected two moments in order"
    if end - start > LONGEST_SECONDS:
        return f"{end - start:.0f} s long, expected at most {LONGEST_SECONDS:.0f}"
    if end > now + AHEAD_SECONDS:
        return f"ends {end - now:.0f} s after the control node's time: is the node's clock set? (chronyc tracking)"
    if end < now - settings.retention_seconds:
        return f"ended {now - end:.0f} s before the control node's time, {settings.retention_seconds:.0f} s are kept"
    return None


def _moment(value: object) -> float:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else math.nan  # type: ignore[arg-type]


def _content(batch: Mapping[str, Any]) -> str | None:
    samples, engine, sampler = batch.get("samples"), batch.get("engine"), batch.get("sampler", {})
    if not isinstance(samples, list) or not 0 < len(samples) <= MOST_SAMPLES:
        return f"no list of 1 to {MOST_SAMPLES} samples"
    start = float(batch["t0"])
    for sample in samples:
        if not isinstance(sample, dict) or not abs(_moment(sample.get("t")) - start) <= LONGEST_SECONDS:
            return "a sample without a time in the batch"
        for key, part in sample.items():
            reason = _part(key, part)
            if reason:
                return f"{_shown(key)} of a sample: {reason}"
    if engine is not None:
        metrics = engine.get("metrics") if isinstance(engine, dict) else None
        if not isinstance(metrics, dict) or len(metrics) > MOST_METRICS:
            return "an engine part that is no reading"
        # What an engine reports may be NaN; a text or a list is no value.
        if not all(type(value) in (int, float) for value in metrics.values()):
            return "a metric of the engine that is no number"
        if not abs(_moment(engine.get("t", start)) - start) <= LONGEST_SECONDS:
            return "an engine reading without a time in the batch"
    if not isinstance(sampler, dict) or not _are_scalars(sampler.values()):
        return "a sampler part that is no mapping of numbers"
    return _exits(batch.get("exits", []))


def _exits(exits: object) -> str | None:
    """Return why what a batch says of ended processes is not in its form, or None."""
    if not isinstance(exits, list) or len(exits) > MOST_ITEMS:
        return f"exits that are no list of at most {MOST_ITEMS}"
    for exit_ in exits:
        worker, pid, kind = (exit_.get(key) for key in ("worker", "pid", "kind")) if isinstance(exit_, dict) else "   "
        if not isinstance(worker, str) or not _WORKER.fullmatch(worker) or type(pid) is not int or kind not in EXITS:
            return "an exit without worker, pid and kind"
    return None


def _part(key: str, part: object) -> str | None:
    """Return why a part of a sample is not what the schema says, or None. A part that it does not know may be there."""
    known = _PARTS.get(key)
    if known is None or part is None:
        return None
    if not isinstance(part, dict) or len(part) > MOST_ITEMS:
        return f"expected a mapping of at most {MOST_ITEMS} items"
    if not known.of:
        return None if _are_scalars(part.values()) else "expected numbers"
    for name, row in part.items():
        if not _is_name(known.of, name):
            return f"{_shown(name)} is no name of a {known.of}"
        if known.listed:
            fits = isinstance(row, list) and len(row) <= MOST_FIELDS and _are_scalars(row)
        else:
            fits = isinstance(row, dict) and len(row) <= MOST_FIELDS and _are_scalars(row.values(), texts=True)
        if not fits:
            return f"{_shown(name)} has no values of the schema's form"
    return None


def _is_name(of: str, name: str) -> bool:
    if of == "core":
        return _CORE.fullmatch(name) is not None
    if of == "resource":
        return name in _RESOURCES
    if of == "worker":
        return _WORKER.fullmatch(name) is not None
    return 0 < len(name) <= LONGEST_NAME


def _are_scalars(values: Iterable[object], texts: bool = False) -> bool:
    """Return whether all are finite numbers or nothing; with `texts` a short text may be among them."""
    found = tuple(values)
    if _NUMBERS.issuperset(map(type, found)):
        # As for names. A sum that is finite has no part that is not.
        with contextlib.suppress(OverflowError, ValueError):
            if math.isfinite(math.fsum(cast("tuple[float, ...]", found))):
                return True
    return all(
        value is None
        or (math.isfinite(number(value)) if not isinstance(value, str) else texts and len(value) <= LONGEST_NAME)
        for value in found
    )
