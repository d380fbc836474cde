"""Tell an engine that works from one that stands still, by one reading of its metrics and the next."""

from __future__ import annotations

from bottleneck.telemetry.engine_names import REQUESTS, WORK
from bottleneck.telemetry.prometheus_text import MetricsText


def engine_work(metrics: MetricsText) -> tuple[float, float]:
    """Return the requests that the engine has now, and all tokens and steps that it has made: a sum that only grows.

    Parameters
    ----------
    metrics : MetricsText
        One reading of an engine; what it does not have counts as 0.
    """
    requests = sum(metrics.value(name) or 0.0 for name in REQUESTS)
    return requests, sum(metrics.value(name) or 0.0 for name in WORK)
