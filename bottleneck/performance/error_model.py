"""Errors of the step model: a Gaussian process for what the physics leaves out, and the noise of measurements.

Which kernel an engine picks at which batch, how it splits attention, in which order requests arrive: errors of points
near each other are alike (Kennedy and O'Hagan, "Bayesian calibration of computer models", 2001).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bottleneck.performance.model import BF16, WeightFormat
from bottleneck.performance.roofline import demand
from bottleneck.performance.scheduler import Steps
from bottleneck.performance.workpoints import WorkPoints

Floats = NDArray[np.float64]


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
        Of prefill, as a share of the time of the smallest step: requests that arrive while a step has begun wait, so
        a batch takes one step more or does not; half a step is the standard deviation of an even chance of it.
    noise, timer
        Of each measurement; and of a decode step as a share of the prefill time that was subtracted to get it.
    weight
        How many measurements the error model's scale is worth.
    """

    batch: float = 0.036
    smooth: float = 0.022
    prefill: float = 0.017
    arrival: float = 0.5
    noise: float = 0.007
    timer: float = 0.0024
    weight: float = 3.5

    @classmethod
    def of(cls, weights: WeightFormat) -> ErrorModel:
        """Return the error model of a format: kernels for quantised weights differ more from batch to batch.

        Parameters
        ----------
        weights : WeightFormat
            Format of the linear layers' weights.
        """
        plain = cls()
        if weights.bits == BF16.bits:
            return plain
        more = 1.6
        return replace(plain, batch=more * plain.batch, smooth=more * plain.smooth, prefill=more * plain.prefill)


def discrepancy(one: WorkPoints, two: WorkPoints, errors: ErrorModel) -> Floats:
    """Return the covariance of what the physics leaves out; shape (2 * points of one, 2 * points of two).

    Parameters
    ----------
    one
        Points, of n.
    two
        Points, of m.
    errors
        Size of what the physics does not say.
    """

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
    """Return the variance of single measurements; shape (2 * points,).

    Parameters
    ----------
    at
        Points, of n.
    errors
        Size of the noise of a measurement.
    parameters
        As `PARAMETERS` lists them, shape (len(PARAMETERS),).
    """
    seconds = at.seconds(parameters)
    count = at.batch.size
    prefill, decode = seconds[:count], seconds[count:]
    smallest = decode_floor(at, parameters)
    timer = errors.timer * prefill / (max(1, at.output_tokens - 1) * decode)
    arrival = errors.arrival * smallest / prefill
    return np.concatenate([errors.noise**2 + arrival**2, errors.noise**2 + timer**2])


def decode_floor(at: WorkPoints, parameters: Floats) -> float:
    """Return the seconds of the smallest step: every weight read once, every layer started once.

    Parameters
    ----------
    at
        Points, of n.
    parameters
        As `PARAMETERS` lists them, shape (len(PARAMETERS),).
    """
    weight, layer = np.exp(parameters[0]), np.exp(parameters[3])
    read = demand(Steps.one(1, 1), at.served).weight_bytes[0]
    return float(read / (at.accelerator.memory_bytes_per_second * weight) + len(at.served.shape.layers) * layer)
