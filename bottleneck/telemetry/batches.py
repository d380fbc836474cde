"""Batches as they arrive: what a node's sampler sends, and the engine readings inside."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bottleneck.numbers import number
from bottleneck.telemetry.metrics import MetricsText

Batch = dict[str, Any]


def engine_readings(batches: Iterable[Batch], start: float, end: float) -> dict[str, list[tuple[float, MetricsText]]]:
    """Return the engine readings inside batches, by the node that took them, in order of time."""
    found: dict[str, list[tuple[float, MetricsText]]] = {}
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
