"""Facts of a node's accelerators over the interval, which only a comparison with its peers gives a meaning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bottleneck.telemetry.samples import NodeSamples

_FIELDS = ("busy_ratio", "memory_busy_ratio", "power_watts", "power_limit_watts")


@dataclass(frozen=True)
class CardFacts:
    """Means over the interval and over the node's cards; None is unknown.

    A rank that waits for another spins in the collective, so its card looks as busy as one that works: what differs is
    how much its memory is read, and what it draws.

    Attributes
    ----------
    busy_share, memory_busy_share : float or None
        Of the time in which a kernel ran on it, and in which its memory was read or written, 0 to 1.
    """

    busy_share: float | None = None
    memory_busy_share: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None


def card_facts(series: NodeSamples, interval: tuple[float, float]) -> CardFacts | None:
    """Return what a node's cards did; None without a card in the samples.

    Parameters
    ----------
    series : NodeSamples
        Samples of one node.
    interval : (float, float)
        Start and end, unix seconds.
    """
    cards = series.keys("accelerator")
    if not cards:
        return None
    inside = (series.times >= interval[0]) & (series.times <= interval[1])
    means = []
    for name in _FIELDS:
        values = np.concatenate([series.values("accelerator", card, name)[inside] for card in cards])
        known = values[np.isfinite(values)]
        means.append(float(known.mean()) if known.size else None)
    return CardFacts(*means)
