"""Intervals, and estimates: a median with its interval and the number of samples behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy  # its parts load when first used: the command line starts in half the time


@dataclass(frozen=True)
class Interval:
    """A median and the bounds of its confidence interval, in the unit of what it is of."""

    median: float
    low: float
    high: float

    @classmethod
    def of_logarithm(cls, middle: float, half_width: float) -> Interval:
        """Return an interval that is symmetric in the logarithm.

        Parameters
        ----------
        middle : float
            Natural logarithm of the middle.
        half_width : float
            Natural logarithm of the ratio between an end and the middle; at least 0.
        """
        return cls(math.exp(middle), math.exp(middle - half_width), math.exp(middle + half_width))


@dataclass(frozen=True)
class Estimate(Interval):
    """An interval with the number of samples behind it."""

    samples: int

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as the ceilings file writes it."""
        return asdict(self)


def estimate(values: Iterable[float], confidence: float = 0.95) -> Estimate | None:
    """Estimate a median.

    Parameters
    ----------
    values : iterable of float
        Independent measurements; those that are not finite are left out.
    confidence : float
        Coverage of the interval, 0 to 1.

    Returns
    -------
    Estimate or None
        None without any finite value. The interval is that of the order statistics: the number of samples below the
        median is binomial with 1/2, whatever the distribution (Conover, Practical Nonparametric Statistics, 3.2).
        With too few samples for the coverage (under 6 at 95 %) it is the whole range of what was seen.

    Examples
    --------
    >>> estimate([3.0, 1.0, 2.0])
    Estimate(median=2.0, low=1.0, high=3.0, samples=3)
    """
    known = np.sort(np.array([value for value in values if math.isfinite(value)], dtype=np.float64))
    count = int(known.size)
    if count == 0:
        return None
    rank = int(scipy.stats.binom.ppf((1 - confidence) / 2, count, 0.5))
    # ppf gives the first rank at or above the tail: one below keeps the coverage at least what was asked.
    low = max(0, rank - 1)
    return Estimate(float(np.median(known)), float(known[low]), float(known[count - 1 - low]), count)
