"""Estimates: median, interval, count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bottleneck.estimate import estimate


def test_nothing_finite_is_no_estimate() -> None:
    assert estimate([]) is None
    assert estimate([math.nan, math.inf]) is None


def test_few_samples_give_their_whole_range() -> None:
    found = estimate([5.0, 1.0, math.nan, 3.0])
    assert found is not None
    assert found.to_json() == {"median": 3.0, "low": 1.0, "high": 5.0, "samples": 3}


def test_interval_covers_the_true_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        found = estimate(random.exponential(1.0, 25))
        assert found is not None
        covered += found.low <= math.log(2) <= found.high
    assert covered / 400 >= 0.94


def test_interval_narrows_with_samples() -> None:
    random = np.random.default_rng(4)
    few, many = estimate(random.normal(size=10)), estimate(random.normal(size=1000))
    assert few is not None and many is not None
    assert many.high - many.low < 0.3 * (few.high - few.low)
    assert many.median == pytest.approx(0.0, abs=0.15)
