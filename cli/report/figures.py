"""A run's key figures: throughput and latencies as the client saw them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bottleneck.load.client import ClientResult

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Distribution:
    """Latencies in seconds, sorted, with the figures a person asks for."""

    name: str
    meaning: str
    values: list[float]

    @property
    def mean(self) -> float:
        """Mean, seconds."""
        return float(np.mean(self.values))

    def percentile(self, share: float) -> float:
        """Return the latency that `share` percent do not exceed, seconds."""
        return float(np.percentile(self.values, share))


@dataclass(frozen=True)
class Figures:
    """Measurements of a run by the load generator."""

    requests: int
    failed: int
    seconds: float
    output_tokens: int
    latencies: list[Distribution]

    @property
    def output_tokens_per_second(self) -> float | None:
        """Output tokens of the good requests over the length of the load."""
        return self.output_tokens / self.seconds if math.isfinite(self.seconds) and self.seconds > 0 else None

    def latency(self, name: str) -> Distribution | None:
        """Return one of the distributions by its short name."""
        return next((item for item in self.latencies if item.name == name), None)


def client_figures(client: ClientResult | None) -> Figures | None:
    """Return the figures of what the load generator recorded; None when it recorded no request."""
    if client is None or not client.requests:
        return None
    good = client.good
    found = (
        ("TTFT", "time to first token", [request.ttft_seconds for request in good]),
        ("ITL", "time between two tokens", [gap for request in good for gap in request.itl_seconds]),
        ("E2E", "time of a whole request", [request.latency_seconds for request in good]),
    )
    latencies = [
        Distribution(name, meaning, usable)
        for name, meaning, values in found
        if (usable := sorted(value for value in values if math.isfinite(value) and value >= 0))
    ]
    return Figures(
        requests=len(client.requests),
        failed=max(client.failed, len(client.requests) - len(good)),
        seconds=client.duration_seconds,
        output_tokens=sum(request.output_tokens for request in good),
        latencies=latencies,
    )
