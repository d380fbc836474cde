"""Fit the efficiencies of the step model to a few points, and predict others with an interval.

Bayesian: efficiencies have priors (log-normal, around what kernels of that precision reach), so that points which say
nothing of an efficiency leave it at a sane value with an honest spread. What the physics leaves out (which kernel an
engine picks at which batch, how it splits attention, in which order requests arrive) is a Gaussian process on the
logarithm of the time, as in Kennedy and O'Hagan, "Bayesian calibration of computer models" (2001): near a calibration
point the prediction follows it, far away the physics, and the interval grows with the distance. The posterior of the
efficiencies is taken as normal around its mode (Laplace); the scale of all errors is learned from the points, so the
intervals are Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, stats

from bottleneck.whatif.step import PARAMETERS
from bottleneck.whatif.sweep import Accelerator, Point, Precision, Served
from bottleneck.whatif.workpoints import WorkPoints

Floats = NDArray[np.float64]

LEAST_POINTS = 2
"""One point leaves a scale and an overhead apart by their priors alone."""
MOST_POINTS = 6

# Medians of the priors by precision; the rest in the order of PARAMETERS. Sources: see doc/explanation/what-if.md.
_WEIGHT = {"bf16": 0.94, "w8a16": 0.7, "w4a16": 0.56, "fp8": 0.82, "w8a8": 0.82}
_OVERLAP = {"bf16": 1.2, "w8a16": 0.5, "w4a16": 0.35, "fp8": 2.0, "w8a8": 2.0}
_KERNELS = {"bf16": 4.0, "w4a16": 7.0}
_SPREADS = np.array([0.12, 0.1, 0.5, 0.4, 0.12, 0.25, 0.6, 0.5, 0.8])


@dataclass(frozen=True)
class ErrorModel:
    """Size of what the physics does not say, relative to the time (log scale), before calibration.

    Attributes
    ----------
    batch, smooth
        Of decode: what belongs to a batch size alone (kernels chosen by it), and what varies slowly with batch and
        length.
    prefill
        Of prefill, varying slowly with tokens and length.
    arrival
        Of prefill, as a share of the time of the smallest step: requests that arrive while a step has begun wait.
    noise, timer
        Of each measurement; and of a decode step as a share of the prefill time that was subtracted to get it.
    weight
        How many measurements the error model's scale is worth.
    """

    batch: float = 0.02
    smooth: float = 0.02
    prefill: float = 0.016
    arrival: float = 0.13
    noise: float = 0.009
    timer: float = 0.0035
    weight: float = 4.5

    @classmethod
    def of(cls, precision: Precision) -> ErrorModel:
        """Return the error model of a precision: kernels for quantised weights differ more from batch to batch."""
        plain = cls()
        if precision.bits == 16:
            return plain
        more = 1.9
        return replace(plain, batch=more * plain.batch, smooth=more * plain.smooth, prefill=more * plain.prefill)


def prior(precision: Precision, accelerator: Accelerator) -> tuple[Floats, Floats]:
    """Return means and standard deviations of the logarithms of `PARAMETERS`."""
    name = precision.name
    layer = _KERNELS.get(name, 4.5) * accelerator.launch_seconds
    medians = [_WEIGHT[name], 0.84, _OVERLAP[name], layer, 0.95, 0.68, 7e-6, 3e-3, 100e-6]
    return np.log(medians), _SPREADS


@dataclass(frozen=True)
class Interval:
    """A prediction in seconds with the bounds of its interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Efficiencies of one model on one accelerator, with what was learned of the errors.

    Attributes
    ----------
    mean, covariance : array of shape (parameters,) and (parameters, parameters)
        Of the logarithms of `PARAMETERS`.
    scale : float
        Errors, relative to the error model's.
    freedom : float
        Degrees of freedom of the scale.
    """

    served: Served
    accelerator: Accelerator
    output_tokens: int
    points: WorkPoints
    residuals: Floats
    mean: Floats
    covariance: Floats
    error_inverse: Floats
    jacobian: Floats
    scale: float
    freedom: float
    errors: ErrorModel

    def predict(
        self, points: Sequence[tuple[int, int]], coverage: float = 0.9
    ) -> tuple[list[Interval], list[Interval]]:
        """Return prefill and decode step seconds at every (batch, prompt tokens), as a measurement would show them."""
        at = WorkPoints.of(self.served, self.accelerator, points, self.output_tokens)
        center, spread = self.predict_log(at)
        wide = float(stats.t.ppf((1 + coverage) / 2, self.freedom)) * spread
        found = [
            Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))
            for middle, half in zip(center, wide, strict=True)
        ]
        return found[: len(points)], found[len(points) :]

    def predict_log(self, at: WorkPoints) -> tuple[Floats, Floats]:
        """Return the logarithms' centers and scales (of Student's t), prefill first; each of shape (2 * points,)."""
        model = np.log(at.seconds(self.mean))
        cross = discrepancy(at, self.points, self.errors)
        gain = cross @ self.error_inverse
        center = model + gain @ self.residuals
        # Kriging with an unknown trend: what the points say of the trend, they do not say of the discrepancy.
        trend = _jacobian(at, self.mean) - gain @ self.jacobian
        own = np.diag(discrepancy(at, at, self.errors)) + noise(at, self.errors, self.mean)
        variance = self.scale**2 * (own - np.einsum("ij,ij->i", gain, cross))
        variance += np.einsum("ij,jk,ik->i", trend, self.covariance, trend)
        return center, np.sqrt(np.maximum(variance, 1e-12))


def discrepancy(one: WorkPoints, two: WorkPoints, errors: ErrorModel) -> Floats:
    """Return the covariance of what the physics leaves out; shape (2 * points of one, 2 * points of two)."""

    def distance(left: NDArray[np.int64], right: NDArray[np.int64], length: float) -> Floats:
        # In octaves: kernels and splits change with doublings.
        return ((np.log2(left)[:, None] - np.log2(right)[None, :]) / length) ** 2

    batches, prompts = distance(one.batch, two.batch, 1.0), distance(one.prompt, two.prompt, 2.0)
    decode = errors.batch**2 * np.exp(-0.5 * distance(one.batch, two.batch, 0.4))
    decode += errors.smooth**2 * np.exp(-0.5 * (batches + prompts))
    tokens = distance(one.batch * one.prompt, two.batch * two.prompt, 1.0)
    shared = np.exp(-0.5 * (tokens + prompts))
    prefill = errors.prefill**2 * shared
    blocks = np.zeros((2 * one.batch.size, 2 * two.batch.size))
    blocks[: one.batch.size, : two.batch.size] = prefill
    blocks[one.batch.size :, two.batch.size :] = decode
    return blocks


def noise(at: WorkPoints, errors: ErrorModel, parameters: Floats) -> Floats:
    """Return the variance of single measurements; shape (2 * points,)."""
    seconds = at.seconds(parameters)
    count = at.batch.size
    prefill, decode = seconds[:count], seconds[count:]
    smallest = decode_floor(at, parameters)
    timer = errors.timer * prefill / (max(1, at.output_tokens - 1) * decode)
    arrival = errors.arrival * smallest / prefill
    return np.concatenate([errors.noise**2 + arrival**2, errors.noise**2 + timer**2])


def decode_floor(at: WorkPoints, parameters: Floats) -> float:
    """Return the seconds of the smallest step: every weight read once, every layer started once."""
    weight, layer = np.exp(parameters[0]), np.exp(parameters[3])
    read = at.served.weight_read_bytes / (at.accelerator.memory_bytes_per_second * weight)
    return float(read + at.served.shape.layers * layer)


def _jacobian(at: WorkPoints, parameters: Floats, step: float = 1e-4) -> Floats:
    columns = []
    for index in range(parameters.size):
        shift = np.zeros_like(parameters)
        shift[index] = step
        columns.append((np.log(at.seconds(parameters + shift)) - np.log(at.seconds(parameters - shift))) / (2 * step))
    return np.stack(columns, axis=1)


def calibrate(
    served: Served,
    accelerator: Accelerator,
    points: Sequence[Point],
    output_tokens: int,
    errors: ErrorModel | None = None,
) -> Calibration:
    """Fit the efficiencies to measured points.

    Parameters
    ----------
    points : sequence of Point
        At least `LEAST_POINTS`; more than `MOST_POINTS` are welcome.

    Raises
    ------
    ValueError
        With fewer points.
    """
    if len(points) < LEAST_POINTS:
        raise ValueError(f"{len(points)} points; expected at least {LEAST_POINTS} to calibrate on")
    errors = errors or ErrorModel.of(served.precision)
    at = WorkPoints.of(served, accelerator, [(point.batch, point.prompt) for point in points], output_tokens)
    measured = np.log([*(point.prefill_seconds for point in points), *(point.decode_step_seconds for point in points)])
    middle, spread = prior(served.precision, accelerator)
    mean = middle
    covariance = np.eye(measured.size)
    for _ in range(2):  # the size of absolute errors depends on the times, which the first round finds
        covariance = discrepancy(at, at, errors) + np.diag(noise(at, errors, mean))
        whiten = linalg.cholesky(covariance, lower=True)

        def cost(parameters: Floats, whiten: Floats = whiten) -> Floats:
            misfit = linalg.solve_triangular(whiten, np.log(at.seconds(parameters)) - measured, lower=True)
            return np.concatenate([misfit, (parameters - middle) / spread])

        found = optimize.least_squares(cost, mean, method="trf", x_scale=spread, max_nfev=60)
        mean = found.x
    inverse = linalg.inv(covariance)
    jacobian = _jacobian(at, mean)
    # Under the model the cost at the mode is chi-squared with as many degrees of freedom as measurements.
    freedom = errors.weight + measured.size
    scale = math.sqrt((errors.weight + 2 * float(found.cost)) / freedom)
    posterior = linalg.inv(jacobian.T @ inverse @ jacobian / scale**2 + np.diag(spread**-2.0))
    return Calibration(
        served,
        accelerator,
        output_tokens,
        at,
        measured - np.log(at.seconds(mean)),
        mean,
        posterior,
        inverse,
        jacobian,
        scale,
        freedom,
        errors,
    )


def efficiencies(calibration: Calibration) -> dict[str, Interval]:
    """Return what was fitted, with 90 % intervals; shares of a ceiling, seconds, the overlap's p - 1."""
    wide = float(stats.t.ppf(0.95, calibration.freedom)) * np.sqrt(np.diag(calibration.covariance))
    return {
        name: Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))
        for name, middle, half in zip(PARAMETERS, calibration.mean, wide, strict=True)
    }
