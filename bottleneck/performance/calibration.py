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
import scipy
from numpy.typing import NDArray

from bottleneck.estimate import Interval
from bottleneck.performance.efficiencies import EngineEfficiencies, efficiency
from bottleneck.performance.error_model import ErrorModel, discrepancy, noise
from bottleneck.performance.model import WHOLE, Split, WeightFormat
from bottleneck.performance.scheduler import Steps
from bottleneck.performance.served import Accelerator, Point, Served
from bottleneck.performance.step import PARAMETERS
from bottleneck.performance.workpoints import WorkPoints

Floats = NDArray[np.float64]

LEAST_POINTS = 2
"""Of an evaluation: one point leaves rates and overheads apart by their priors alone."""
CALIBRATION_POINTS = 6

# Parameters that are a count of kernel starts in the table, and seconds on a machine.
_STARTS = {"layer_seconds": "layer_launches", "eager_seconds": "eager_launches"}


def prior(weights: WeightFormat, accelerator: Accelerator) -> tuple[Floats, Floats]:
    """Return means and standard deviations of the logarithms of `PARAMETERS`.

    Parameters
    ----------
    weights : WeightFormat
        Format of the linear layers' weights, whose kernels the efficiencies are those of.
    accelerator : Accelerator
        The accelerator, whose start of a kernel the seconds of `PARAMETERS` begin with.

    Returns
    -------
    tuple[Floats, Floats]
        Two arrays of shape (len(PARAMETERS),): natural logarithms of medians, and their standard deviations. The values
        and their sources are in `bottleneck/performance/efficiencies.py`.
    """
    entries = [efficiency(_STARTS.get(name, name), weights.kernels) for name in PARAMETERS]
    starts = [accelerator.launch_seconds if name in _STARTS else 1.0 for name in PARAMETERS]
    medians = [entry.value * start for entry, start in zip(entries, starts, strict=True)]
    return np.log(medians), np.array([entry.spread for entry in entries])


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

    def quantile(self, coverage: float) -> float:
        """Return how many scales an interval reaches to each side.

        Parameters
        ----------
        coverage : float
            Share of measurements inside the interval, above 0 and below 1.

        Returns
        -------
        float
            Quantile of Student's t with as many degrees of freedom as the fit has.
        """
        return float(scipy.stats.t.ppf((1 + coverage) / 2, self.freedom))

    def predict(
        self, points: Sequence[tuple[int, int]], coverage: float = 0.9
    ) -> tuple[list[Interval], list[Interval]]:
        """Return prefill and decode step seconds at every (batch, prompt tokens), as a measurement would show them.

        Parameters
        ----------
        points : sequence of (int, int)
            Sequences in a batch, and tokens of each prompt.
        coverage : float
            Share of measurements that the intervals are to hold, above 0 and below 1.
        """
        found = self.forecast(self.at(points)).intervals(coverage)
        return found[: len(points)], found[len(points) :]

    def at(self, points: Sequence[tuple[int, int]]) -> WorkPoints:
        """Return other points of the same model, accelerator and split.

        Parameters
        ----------
        points : sequence of (int, int)
            Sequences in a batch, and tokens of each prompt.
        """
        return WorkPoints.of(self.served, self.accelerator, points, self.output_tokens, self.points.split)

    def forecast(self, at: WorkPoints, transfer: Transfer | None = None) -> Forecast:
        """Return the logarithms of prefill seconds, then of decode step seconds.

        Parameters
        ----------
        at : WorkPoints
            Points to predict, of a model like the one calibrated on.
        transfer : Transfer or None
            What is different about the machine or the weights; None when both are those of the calibration.
        """
        parameters = self.mean if transfer is None else self.mean + transfer.shift
        model = np.log(at.seconds(parameters))
        cross = discrepancy(at, self.points, self.errors)
        if transfer is not None:
            # Which kernels are chosen at which batch says nothing of other kernels.
            cross = np.zeros_like(cross)
        gain = cross @ self.error_inverse
        # Kriging with an unknown trend: what the points say of the trend, they do not say of the discrepancy.
        trend = _jacobian(at, parameters) - gain @ self.jacobian
        covariance = self.covariance
        if transfer is not None:
            covariance = covariance + np.diag(transfer.spread**2)
        own = discrepancy(at, at, self.errors) + np.diag(noise(at, self.errors, parameters))
        full = self.scale**2 * (own - gain @ cross.T) + trend @ covariance @ trend.T
        return Forecast(self, at, parameters, model + gain @ self.residuals, full, trend, gain, cross)


@dataclass(frozen=True)
class Transfer:
    """Change of the efficiencies' logarithms from one accelerator or precision to another."""

    shift: Floats
    spread: Floats


@dataclass(frozen=True)
class Forecast:
    """Predictions at some points, prefill first.

    Attributes
    ----------
    center : array of shape (2 * points,)
        Logarithms of seconds.
    covariance : array of shape (2 * points, 2 * points)
        Of a new measurement's logarithms, on the scale of Student's t.
    """

    calibration: Calibration
    at: WorkPoints
    parameters: Floats
    center: Floats
    covariance: Floats
    trend: Floats
    gain: Floats
    cross: Floats

    @property
    def spread(self) -> Floats:
        """Scales of Student's t; shape (2 * points,)."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 1e-12))

    def intervals(self, coverage: float = 0.9) -> list[Interval]:
        """Return the predictions in seconds.

        Parameters
        ----------
        coverage : float
            Share of measurements that the intervals are to hold, above 0 and below 1.

        Returns
        -------
        list[Interval]
            Seconds: the prefill of every point, then its decode step.
        """
        wide = self.calibration.quantile(coverage) * self.spread
        return [Interval.of_logarithm(*each) for each in zip(self.center, wide, strict=True)]

    def shared(self, other: Forecast, related: bool) -> Floats:
        """Return the covariance with another forecast of the same calibration; shape (2 * points, 2 * points).

        Parameters
        ----------
        other : Forecast
            Forecast of the same calibration at the same number of points.
        related : bool
            Whether both are of one deployment on one machine, so that their model errors are one and the same, too.
        """
        known = self.calibration
        both = self.trend @ known.covariance @ other.trend.T
        if related:
            both += known.scale**2 * (discrepancy(self.at, other.at, known.errors) - self.gain @ other.cross.T)
        return np.asarray(both)


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
    split: Split = WHOLE,
    loose: float = 1.0,
) -> Calibration:
    """Return the efficiencies fitted to measured points.

    Parameters
    ----------
    served : Served
        The model as it was served when the points were measured.
    accelerator : Accelerator
        Ceilings of the accelerator that they were measured on.
    points : sequence of Point
        At least one.
    output_tokens : int
        Tokens of every answer.
    errors : ErrorModel or None
        Size of what the physics does not say; None is that of the format of the weights.
    split : Split
        How the model was split over ranks when they were measured.
    loose : float
        Factor on the priors' spread: above 1 for machines unlike those that the priors come from.

    Raises
    ------
    ValueError
        Without points.
    """
    if not points:
        raise ValueError("no points; expected at least one to calibrate on")
    errors = errors or ErrorModel.of(served.weights)
    at = WorkPoints.of(served, accelerator, [(point.batch, point.prompt) for point in points], output_tokens, split)
    measured = np.log([*(point.prefill_seconds for point in points), *(point.decode_step_seconds for point in points)])
    middle, spread = prior(served.weights, accelerator)
    spread = spread * loose
    mean = middle
    covariance = np.eye(measured.size)
    for _ in range(2):  # the size of absolute errors depends on the times, which the first round finds
        covariance = discrepancy(at, at, errors) + np.diag(noise(at, errors, mean))
        whiten = scipy.linalg.cholesky(covariance, lower=True)

        def cost(parameters: Floats, whiten: Floats = whiten) -> Floats:
            misfit = scipy.linalg.solve_triangular(whiten, np.log(at.seconds(parameters)) - measured, lower=True)
            return np.concatenate([misfit, (parameters - middle) / spread])

        found = scipy.optimize.least_squares(cost, mean, method="trf", x_scale=spread, max_nfev=60)
        mean = found.x
    inverse = scipy.linalg.inv(covariance)
    jacobian = _jacobian(at, mean)
    # Under the model the cost at the mode is chi-squared with as many degrees of freedom as measurements.
    freedom = errors.weight + measured.size
    scale = math.sqrt((errors.weight + 2 * float(found.cost)) / freedom)
    posterior = scipy.linalg.inv(jacobian.T @ inverse @ jacobian / scale**2 + np.diag(spread**-2.0))
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


def uncalibrated(
    served: Served,
    accelerator: Accelerator,
    output_tokens: int,
    split: Split = WHOLE,
    loose: float = 1.0,
    engine: EngineEfficiencies | None = None,
) -> Calibration:
    """Return what is known of a machine on which nothing was served: the priors, as they are on any accelerator.

    Parameters
    ----------
    served
        The model and how its engine is set.
    accelerator
        What it runs on, as probes measured it or a datasheet says.
    output_tokens
        Tokens of an answer.
    split
        How the model is cut into ranks and stages, and the link between them.
    loose
        How much wider the priors are, as in `calibrate`.
    engine
        What was fitted to runs of its engine on other machines; it takes the place of the priors.
    """
    errors = ErrorModel.of(served.weights)
    mean, spread = prior(served.weights, accelerator)
    spread = spread * loose
    freedom = errors.weight
    if engine is not None:
        for name, (value, deviation) in engine.values.items():
            mean[PARAMETERS.index(name)], spread[PARAMETERS.index(name)] = math.log(value), deviation
        errors = replace(errors, noise=engine.residual)
        freedom += engine.measurements
    variance = spread**2 + efficiency("other_accelerator").spread ** 2
    none = np.zeros(0)
    count = np.zeros(0, dtype=np.int64)
    steps = Steps(none, none, none, none, none)
    at = WorkPoints(served, accelerator, output_tokens, split, count, count, steps, np.zeros(0, dtype=np.intp))
    return Calibration(
        served,
        accelerator,
        output_tokens,
        at,
        residuals=none,
        mean=mean,
        covariance=np.diag(variance),
        error_inverse=np.zeros((0, 0)),
        jacobian=np.zeros((0, mean.size)),
        scale=1.0,
        freedom=freedom,
        errors=errors,
    )


def efficiencies(calibration: Calibration) -> dict[str, Interval]:
    """Return what was fitted, with 90 % intervals; shares of a ceiling, seconds, the overlap's p - 1.

    Parameters
    ----------
    calibration : Calibration
        A fit, or the prior alone.
    """
    wide = calibration.quantile(0.9) * np.sqrt(np.diag(calibration.covariance))
    return {
        name: Interval.of_logarithm(middle, half)
        for name, middle, half in zip(PARAMETERS, calibration.mean, wide, strict=True)
    }
