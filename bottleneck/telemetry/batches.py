"""Batches as they arrive: what a node's sampler sends, and the engine readings inside."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bottleneck.json_numbers import number
from bottleneck.telemetry.prometheus_text import MetricsText

Batch = dict[str, Any]


def engine_readings(batches: Iterable[Batch], start: float, end: float) -> dict[str, list[tuple[float, MetricsText]]]:
    """Return the engine readings inside batches, by the node that took them, in order of time."""
    return {
        node: [(moment, MetricsText.from_flat(flat)) for moment, flat in readings]
        for node, readings in flat_readings(batches, start, end).items()
    }


def flat_readings(batches: Iterable[Batch], start: float, end: float) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Return the same as they were sent, `{sample as the exposition text writes it: value}`: not all need parsing."""
    found: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for batch in batches:
        engine = batch.get("engine")
        if not isinstance(engine, dict) or not isinstance(engine.get("metrics"), dict):
            continue
        moment = number(engine.get("t", batch.get("t1")))
        if math.isfinite(moment) and start <= moment <= end and engine["metrics"]:
            found.setdefault(str(batch.get("node", "")), []).append((moment, engine["metrics"]))
    for readings in found.values():
        readings.sort(key=lambda pair: pair[0])
    return found
