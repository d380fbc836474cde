"""Estimate how far the clocks of two nodes are apart, from traffic: what one sends, the other receives."""

from __future__ import annotations

import math

import numpy as np

from bottleneck.telemetry.samples import Array, NodeSamples, Steps

# Time between points of the compared rates, the largest difference looked for, and the smallest one worth a word.
GRID_SECONDS, MOST_SECONDS, LEAST_SECONDS = 0.1, 5.0, 0.5
# Two rates that fit worse than this at their best say nothing; a difference must fit better than none by the second.
FITS, BETTER = 0.8, 0.1


def clock_difference(sender: NodeSamples, receiver: NodeSamples, link: str, start: float, end: float) -> float | None:
    """Estimate how far the receiver's clock is ahead of the sender's.

    Parameters
    ----------
    sender, receiver : NodeSamples
        Two nodes of one link.
    link : str
        The link's name.
    start, end : float
        The interval to compare, unix seconds.

    Returns
    -------
    float or None
        Seconds; None when the traffic does not tell (steady, or too little of it). Rates of a load that repeats fit at
        several differences: the smallest counts.
    """
    sent, received = sender.link(link, "transmit_bytes"), receiver.link(link, "receive_bytes")
    if sent.growth.size < 20 or received.growth.size < 20 or end - start < MOST_SECONDS:
        return None
    moments = np.arange(start, end, GRID_SECONDS)
    ours, theirs = _rate(sent, moments), _rate(received, moments)
    # A comparison needs more that overlaps than not.
    most = int(min(MOST_SECONDS, (end - start) / 3) / GRID_SECONDS)
    lags = np.arange(-most, most + 1)
    fits = np.array([_correlation(ours, theirs, int(lag)) for lag in lags])
    if not np.isfinite(fits).any() or np.nanmax(fits) < FITS:
        return None
    best = min(lags[fits >= np.nanmax(fits) - 0.02], key=abs)
    if fits[lags == best][0] - fits[lags == 0][0] < BETTER:
        return 0.0
    return float(best) * GRID_SECONDS


def _rate(steps: Steps, moments: Array) -> Array:
    edges, total = np.append(steps.start[:1], steps.end), np.append(0.0, np.cumsum(steps.growth))
    return np.diff(np.interp(moments, edges, total))


def _correlation(ours: Array, theirs: Array, lag: int) -> float:
    """Return the correlation of two series when the second is `lag` points late, -1 to 1; NaN for steady ones."""
    if lag > 0:
        ours, theirs = ours[:-lag], theirs[lag:]
    elif lag < 0:
        ours, theirs = ours[-lag:], theirs[:lag]
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    size = float(ours @ ours) * float(theirs @ theirs)
    return float(ours @ theirs) / math.sqrt(size) if size > 0 else math.nan
