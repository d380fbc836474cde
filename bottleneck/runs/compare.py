"""Two sets of runs side by side: is the difference larger than the noise?

The noise is that of the requests, by bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, chapters 8
and 13). Requests that ran together shared their steps and are not independent, so what is drawn again are blocks of
neighbours in time, and whole runs first where a side has several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bottleneck.estimate import Estimate, estimate
from bottleneck.json_numbers import finite
from bottleneck.load.client import ClientRequest, ClientResult
from bottleneck.runs.run import Run

Array = npt.NDArray[np.float64]
Blocks = list[Array]

RESAMPLES = 2000
# Five metrics are looked at: 99 % each keeps the chance of any false alarm at 5 % (Bonferroni).
CONFIDENCE = 0.99
# Fewer blocks than this on a side say nothing about noise.
FEWEST_BLOCKS = 3


@dataclass(frozen=True)
class Comparison:
    """One metric of two sides.

    Attributes
    ----------
    a, b : Estimate or None
        The sides' values; medians, for throughput the rate; the interval is at 95 %.
    difference : float or None
        b minus a, in `unit`.
    low, high : float or None
        Bounds of the difference at `confidence`.
    ratio : float or None
        b over a.
    word : str
        `beyond noise`, `within noise`, or `not known` when there is too little to tell.
    better : str or None
        `a` or `b`, only beyond noise.
    """

    metric: str
    unit: str
    lower_is_better: bool
    a: Estimate | None
    b: Estimate | None
    difference: float | None
    low: float | None
    high: float | None
    ratio: float | None
    word: str
    better: str | None
    confidence: float = CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-able data."""
        document: dict[str, Any] = finite(asdict(self))
        return document


def _per_request(value: Callable[[ClientRequest], float]) -> Callable[[ClientResult], Blocks]:
    def blocks(client: ClientResult) -> Blocks:
        good = sorted(client.good, key=lambda request: request.start_seconds or 0.0)
        values = np.array([value(request) for request in good], dtype=np.float64)
        values = values[np.isfinite(values)]
        # Neighbours that ran together, but enough blocks to draw from.
        size = max(1, min(client.concurrency or 1, values.size // (2 * FEWEST_BLOCKS)))
        return [values[start : start + size] for start in range(0, values.size, size)]

    return blocks


def _throughput(client: ClientResult) -> Blocks:
    """Return seconds per output token of the whole client, one value a request, in blocks.

    By Little's law the client's throughput is the mean number of requests under way over the mean latency: a
    request stands for its latency per token, shared by as many as were under way. The inverse of their mean is the
    throughput (exactly so when the requests have the same number of tokens, as a bench's do).
    """
    good = client.good
    starts = [request.start_seconds for request in good if request.start_seconds is not None]
    span = client.duration_seconds
    if not span > 0 and len(starts) == len(good) > 0:
        span = max((request.start_seconds or 0.0) + request.latency_seconds for request in good) - min(starts)
    if not span > 0 or not good:
        return []
    under_way = math.fsum(request.latency_seconds for request in good) / span
    return _per_request(lambda request: request.latency_seconds / request.output_tokens / under_way)(client)


def _itl(request: ClientRequest) -> float:
    gaps = [gap for gap in request.itl_seconds if math.isfinite(gap)]
    return float(np.median(gaps)) if gaps else math.nan


_Statistic = Callable[[Array], float]


def _median(values: Array) -> float:
    return float(np.median(values))


def _inverse_mean(values: Array) -> float:
    return 1.0 / float(np.mean(values))


_METRICS: tuple[tuple[str, str, bool, Callable[[ClientResult], Blocks], _Statistic], ...] = (
    ("ttft", "s", True, _per_request(lambda request: request.ttft_seconds), _median),
    ("tpot", "s", True, _per_request(lambda request: request.tpot_seconds), _median),
    ("itl", "s", True, _per_request(_itl), _median),
    ("e2e", "s", True, _per_request(lambda request: request.latency_seconds), _median),
    ("throughput", "tokens/s", False, _throughput, _inverse_mean),
)


def _draw(runs: list[Blocks], statistic: _Statistic, random: np.random.Generator) -> float:
    chosen = runs if len(runs) == 1 else [runs[index] for index in random.integers(0, len(runs), len(runs))]
    drawn = [blocks[index] for blocks in chosen for index in random.integers(0, len(blocks), len(blocks))]
    return statistic(np.concatenate(drawn))


def _summary(runs: list[Blocks], statistic: _Statistic, draws: Array) -> Estimate | None:
    values = [value for blocks in runs for block in blocks for value in block]
    if not values:
        return None
    if statistic is _median and len(runs) == 1:
        return estimate(values)
    low, high = np.quantile(draws, (0.025, 0.975)) if draws.size else (math.nan, math.nan)
    return Estimate(statistic(np.array(values)), float(low), float(high), len(values))


def compare(runs_a: Sequence[Run], runs_b: Sequence[Run], seed: int = 1) -> list[Comparison]:
    """Compare what clients saw in two sets of runs.

    Parameters
    ----------
    runs_a, runs_b : sequence of Run
        One run a side or several; several also tell how much runs differ from each other.
    seed : int
        Of the drawing, so that the same runs give the same words.

    Returns
    -------
    list of Comparison
        Time to first token, time per output token, gap between tokens (per request: its median), latency, throughput.
    """
    found = []
    for name, unit, lower, blocks_of, statistic in _METRICS:
        sides: list[list[Blocks]] = []
        for runs in (runs_a, runs_b):
            blocks = [blocks_of(run.client) for run in runs if run.client is not None]
            sides.append([part for part in blocks if part])
        found.append(_compare(name, unit, lower, sides[0], sides[1], statistic, seed))
    return found


def _compare(
    name: str, unit: str, lower: bool, side_a: list[Blocks], side_b: list[Blocks], statistic: _Statistic, seed: int
) -> Comparison:
    random = np.random.default_rng(seed)
    enough = all(sum(len(blocks) for blocks in side) >= FEWEST_BLOCKS for side in (side_a, side_b))
    draws = [
        np.array([_draw(side, statistic, random) for _ in range(RESAMPLES)]) if enough else np.empty(0)
        for side in (side_a, side_b)
    ]
    a, b = _summary(side_a, statistic, draws[0]), _summary(side_b, statistic, draws[1])
    if a is None or b is None:
        return Comparison(name, unit, lower, a, b, None, None, None, None, "not known", None)
    difference, ratio = b.median - a.median, b.median / a.median if a.median else None
    if not enough:
        return Comparison(name, unit, lower, a, b, difference, None, None, ratio, "not known", None)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(bound) for bound in np.quantile(draws[1] - draws[0], (tail, 1 - tail)))
    beyond = low > 0 or high < 0
    better = None
    if beyond:
        better = "b" if (difference < 0) == lower else "a"
    word = "beyond noise" if beyond else "within noise"
    return Comparison(name, unit, lower, a, b, difference, low, high, ratio, word, better)
