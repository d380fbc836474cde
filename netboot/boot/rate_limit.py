"""Limit how often one source may be wrong, so that more wrong requests cost nothing.

A request that is right is never delayed: whoever proves its nonce is served, whatever else
comes from the same address. The limit only decides how much a wrong one may cost.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCES_KEPT = 1024


@dataclass
class Bucket:
    """Tokens that one source has left, and since when."""

    tokens: float
    at: float


class Budget:
    """A token bucket for each source, in bounded memory."""

    def __init__(self, burst: float = 30.0, per_second: float = 1.0) -> None:
        self._burst = burst
        self._rate = per_second
        self._buckets: dict[str, Bucket] = {}

    def spend(self, source: str, now: float) -> bool:
        """Take one token of `source`; return whether there was one."""
        bucket = self._buckets.pop(source, None) or Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + max(0.0, now - bucket.at) * self._rate)
        bucket.at = now
        # The most recent is last, so the first is the one that was quiet longest.
        self._buckets[source] = bucket
        if len(self._buckets) > SOURCES_KEPT:
            del self._buckets[next(iter(self._buckets))]
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True
