"""The link at which tensor and pipeline parallelism are equally fast."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from bottleneck.performance.collectives import Link
from bottleneck.performance.model import Split
from bottleneck.performance.workpoints import WorkPoints
from bottleneck.prediction.deployment import CannotTell, Scenario

_LATENCIES, _RATES = (1e-8, 10.0), (1e3, 1e15)


@dataclass(frozen=True)
class BreakEven:
    """The point where splitting every layer over ranks (TP) and taking turns on the layers (PP) decode equally fast.

    Attributes
    ----------
    latency_seconds : float or None
        One way, of a small message: TP is faster below it, at the link's rate. None when one is faster throughout.
    bytes_per_second : float or None
        TP is faster above it, at the link's latency. None when one is faster throughout.
    tensor_step_seconds, pipeline_step_seconds : float
        At the link as it is.
    """

    ranks: int
    latency_seconds: float | None
    bytes_per_second: float | None
    tensor_step_seconds: float
    pipeline_step_seconds: float

    @property
    def faster(self) -> str:
        """The faster of the two at the link as it is."""
        return "tensor parallel" if self.tensor_step_seconds < self.pipeline_step_seconds else "pipeline parallel"

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints."""
        return {**asdict(self), "faster": self.faster}


def break_even(scenario: Scenario, parameters: NDArray[np.float64], ranks: int) -> BreakEven:
    """Find the link at which tensor and pipeline parallelism over some ranks decode equally fast.

    Parameters
    ----------
    scenario : Scenario
        With the link in its split.
    parameters : array
        Logarithms of `PARAMETERS`.
    ranks : int
        Ranks to split the model over, at least 2.

    Returns
    -------
    BreakEven
        Latency and rate of that link, and both decode steps in seconds at the link as it is.

    Raises
    ------
    CannotTell
        When the model cannot be split over so many ranks in both ways, or no link is known.
    """
    link = scenario.split.link
    batch = -(-scenario.batch // scenario.replicas)
    if link is None:
        raise CannotTell("no link between ranks; expected its rate and latency")
    for split in (Split(ranks, 1, link), Split(1, ranks, link)):
        trouble = split.problem(scenario.served.shape)
        if trouble:
            raise CannotTell(trouble)

    def step(tensor: bool, over: Link) -> float:
        at = WorkPoints.of(
            scenario.served,
            scenario.accelerator,
            [(batch, scenario.input_tokens)],
            max(2, scenario.output_tokens),
            Split(ranks, 1, over) if tensor else Split(1, ranks, over),
        )
        return float(at.seconds(parameters)[1])

    def gain(change: Callable[[float], Link]) -> Callable[[float], float]:
        return lambda value: step(False, change(value)) - step(True, change(value))

    return BreakEven(
        ranks,
        _crossing(gain(lambda value: replace(link, latency_seconds=value)), *_LATENCIES),
        _crossing(gain(lambda value: replace(link, bytes_per_second=value)), *_RATES),
        step(True, link),
        step(False, link),
    )


def _crossing(gain: Callable[[float], float], low: float, high: float) -> float | None:
    """Return where a function of a positive number changes its sign, None when it does not."""
    if (gain(low) > 0) == (gain(high) > 0):
        return None
    root = scipy.optimize.brentq(lambda logarithm: gain(math.exp(logarithm)), math.log(low), math.log(high), xtol=1e-9)
    return float(math.exp(root))
