"""Evaluate how far off the step model is on a sweep: calibrated on a few random points, compared with the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bottleneck.performance.calibration import LEAST_POINTS, Calibration, calibrate
from bottleneck.performance.served import Accelerator
from bottleneck.prediction.sweep import Sweep, SweepError

COVERAGE = 0.9
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Draw:
    """One calibration on random points, and its errors on all others.

    Attributes
    ----------
    calibrated_on : list of list of int
        Batch and prompt tokens of the calibration points.
    decode_mape, prefill_mape : float
        Mean absolute percentage errors over the held-out points, as shares (0.03 is 3 %).
    decode_coverage, prefill_coverage : float
        Share of held-out points inside their 90 % interval.
    """

    seed: int
    calibrated_on: list[list[int]]
    decode_mape: float
    prefill_mape: float
    decode_coverage: float
    prefill_coverage: float
    held_out: int


@dataclass(frozen=True)
class Evaluation:
    """All draws of one sweep."""

    sweep: str
    points: int
    draws: tuple[Draw, ...]
    notes: tuple[str, ...] = ()

    def distribution(self, attribute: str) -> dict[str, float]:
        """Return quantiles of one of a draw's numbers, and its mean.

        Parameters
        ----------
        attribute : str
            Name of a field of `Draw` that is a number.

        Returns
        -------
        dict[str, float]
            "mean", "median", and a name such as "p90" for each of `QUANTILES` -> value in the field's unit.
        """
        values = np.array([getattr(draw, attribute) for draw in self.draws])
        named = {f"p{100 * quantile:g}": float(np.quantile(values, quantile)) for quantile in QUANTILES}
        return {"mean": float(values.mean()), "median": named["p50"], **named}

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints."""
        overall = {name: self.distribution(name) for name in ("decode_mape", "prefill_mape")}
        for phase in ("decode", "prefill"):
            values = [getattr(draw, f"{phase}_coverage") for draw in self.draws]
            overall[f"{phase}_coverage"] = {"mean": float(np.mean(values))}
        both = [(draw.decode_coverage + draw.prefill_coverage) / 2 for draw in self.draws]
        overall["coverage"] = {"mean": float(np.mean(both))}
        return {
            "sweep": self.sweep,
            "calibration_points": self.points,
            "seeds": len(self.draws),
            "interval": COVERAGE,
            "overall": overall,
            "per_seed": [asdict(draw) for draw in self.draws],
            "notes": list(self.notes),
        }


def held_out_draw(
    sweep: Sweep, accelerator: Accelerator, points: int, seed: int, loose: float = 1.0
) -> tuple[Draw, Calibration]:
    """Calibrate on `points` random points of a sweep and compare with all others; `loose` as in `calibrate`.

    Parameters
    ----------
    sweep : Sweep
        Recorded points: batch, prompt, seconds.
    accelerator : Accelerator
        What it was made on, as probes measured it.
    points : int
        How many points are calibrated on.
    seed : int
        Of the draw.
    loose : float
        How much wider the priors are, as in `calibrate`.

    Returns
    -------
    tuple[Draw, Calibration]
        Errors on the points that were held out, and the fit.
    """
    order = np.random.default_rng(seed).permutation(len(sweep.points))
    chosen, others = ([sweep.points[index] for index in part] for part in (order[:points], order[points:]))
    calibration = calibrate(sweep.served, accelerator, chosen, sweep.output_tokens, loose=loose)
    forecast = calibration.forecast(calibration.at([(point.batch, point.prompt) for point in others]))
    measured = np.log([*(point.prefill_seconds for point in others), *(point.decode_step_seconds for point in others)])
    error = np.abs(np.expm1(forecast.center - measured))
    inside = np.abs(forecast.center - measured) <= forecast.spread * calibration.quantile(COVERAGE)
    count = len(others)
    draw = Draw(
        seed,
        [[point.batch, point.prompt] for point in chosen],
        float(error[count:].mean()),
        float(error[:count].mean()),
        float(inside[count:].mean()),
        float(inside[:count].mean()),
        count,
    )
    return draw, calibration


def evaluate(
    sweep: Sweep,
    accelerator: Accelerator,
    points: int,
    seeds: int,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Return the draws with seeds 0 to `seeds` - 1, and their distributions.

    Parameters
    ----------
    sweep : Sweep
        Recorded points: batch, prompt, seconds.
    accelerator : Accelerator
        What it was made on, as probes measured it.
    points : int
        How many points are calibrated on.
    seeds : int
        How many draws.
    progress : Callable[[int], None] or None
        Called with the number of each draw that is done.

    Raises
    ------
    SweepError
        When the sweep has no points left to compare with.
    """
    if points < LEAST_POINTS:
        raise SweepError(f"--points {points}; expected at least {LEAST_POINTS} to calibrate on")
    if len(sweep.points) <= points:
        raise SweepError(
            f"{sweep.name}: points: {len(sweep.points)} of them; expected more than the {points} to calibrate on "
            "(--points), so that some are left to compare with"
        )
    draws = []
    for seed in range(seeds):
        draws.append(held_out_draw(sweep, accelerator, points, seed)[0])
        if progress:
            progress(seed + 1)
    return Evaluation(sweep.name, points, tuple(draws), sweep.notes)
