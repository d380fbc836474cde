"""Tell by a node's batches whether its clock is wrong, and put their times right.

A batch says how long before it was sent it ended, by the time since the node's boot, which nobody sets. Its own times
are by a clock that may be anything: a board without a battery begins in another year, and a person may set it at any
moment. What was measured is worth keeping; times that cannot be are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bottleneck.json_numbers import number

# A batch cannot end after it came, but for what clocks that are kept by NTP differ.
AHEAD_SECONDS = 30.0
# An event may be kept on its way, by the minion for one: it only looks as if the node's clock were behind.
BEHIND_SECONDS = 600.0
# Estimates of one clock differ by the time on the way; two that differ by more are of a clock that was set between.
SAME_SECONDS = 10.0


def clock_ahead(batch: Mapping[str, Any], now: float) -> float | None:
    """Estimate how far a node's clock is ahead of the control node's, by one of its batches.

    Parameters
    ----------
    batch : mapping
        With `t1` (unix seconds, the node's clock) and, where its sampler knows, `sampler.age_s`: seconds from its end
        until it was sent.
    now : float
        When it came, unix seconds of the control node.

    Returns
    -------
    float or None
        Seconds, negative when it is behind, less than it is by the time on the way. None when that cannot be told: an
        age is missing (a batch of before a boot) and the times are possible.
    """
    end, sampler = number(batch.get("t1")), batch.get("sampler")
    if not math.isfinite(end):
        return None
    age = number(sampler.get("age_s")) if isinstance(sampler, Mapping) else math.nan
    if math.isfinite(age) and age >= 0:
        return end - (now - age)
    return end - now if end - now > AHEAD_SECONDS else None


def is_wrong(ahead: float) -> bool:
    """Return whether a clock that is so far ahead (seconds) cannot be believed.

    Parameters
    ----------
    ahead : float
        Seconds by which the node's clock is ahead of the control node's; negative where it is behind.
    """
    return ahead > AHEAD_SECONDS or ahead < -BEHIND_SECONDS


def same_clock(ahead: float, before: float) -> float:
    """Return the earlier of two estimates while they may be of one clock: so its batches stay evenly spaced.

    Parameters
    ----------
    ahead : float
        New estimate, in seconds ahead of the control node's clock.
    before : float
        The estimate in use, the same way.

    Returns
    -------
    float
        `before` while it is that of a wrong clock (`is_wrong`) and within `SAME_SECONDS` of the new one, else `ahead`.
    """
    return before if abs(ahead - before) <= SAME_SECONDS and is_wrong(before) else ahead


def put_right(batch: Mapping[str, Any], ahead: float) -> dict[str, Any]:
    """Return a batch with the control node's times in place of those of a clock that is `ahead` seconds ahead.

    What is no number stays as it is: whether a batch is sound is checked elsewhere (`batch_checks`).

    Parameters
    ----------
    batch : Mapping[str, Any]
        Batch as it came, checked or not.
    ahead : float
        Seconds by which the node's clock is ahead.

    Returns
    -------
    dict[str, Any]
        A copy; of the sampler it has ``clock_ahead_s``, in seconds to the millisecond.
    """
    found = {**batch, "t0": _less(batch.get("t0"), ahead), "t1": _less(batch.get("t1"), ahead)}
    samples, engine, sampler = batch.get("samples"), batch.get("engine"), batch.get("sampler")
    if isinstance(samples, list):
        found["samples"] = [
            {**sample, "t": _less(sample.get("t"), ahead)} if isinstance(sample, dict) else sample for sample in samples
        ]
    if isinstance(engine, dict):
        found["engine"] = {**engine, "t": _less(engine.get("t"), ahead)}
    if isinstance(sampler, dict):
        found["sampler"] = {**sampler, "clock_ahead_s": round(ahead, 3)}
    return found


def _less(value: object, ahead: float) -> object:
    return value - ahead if isinstance(value, int | float) and math.isfinite(number(value)) else value
