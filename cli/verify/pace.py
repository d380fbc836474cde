"""Pace the benchmark's runs: what a load took, and how many requests make a run as long as it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cli.verify.loads import Load

# What a healthy run is to last: some windows of the sampler's readings, and no longer.
HEALTHY_SECONDS = 5.0
# Requests are counted anew for a load whose first run lasted a time outside of these.
TOO_SHORT, TOO_LONG = 0.6 * HEALTHY_SECONDS, 1.8 * HEALTHY_SECONDS
LEAST_ROUNDS, LEAST_REQUESTS = 2, 3


@dataclass(frozen=True)
class Measured:
    """Measured figures of a run's load; None in a run that failed."""

    seconds_per_token: float
    requests_per_second: float
    seconds: float

    @classmethod
    def of(cls, headline: Mapping[str, Any]) -> Measured | None:
        """Read what the bench says of its only point."""
        values = [headline.get(key) for key in ("output_tokens_per_second", "requests_per_second", "duration_seconds")]
        tokens, requests, seconds = (float(value) if value else math.nan for value in values)
        if headline.get("failed") or not (tokens > 0 and requests > 0 and seconds > 0):
            return None
        return cls(1.0 / tokens, requests, seconds)


def requests_for(load: Load, sent: int, seconds: float) -> int:
    """Return the requests, in whole rounds, with which a healthy run lasts about as long as it should."""
    rounds = max(round(HEALTHY_SECONDS / seconds * sent / load.concurrency), LEAST_ROUNDS)
    return max(rounds * load.concurrency, LEAST_REQUESTS)
