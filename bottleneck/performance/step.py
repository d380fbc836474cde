"""Predict how long a step takes: floating point operations, bytes and fixed costs over ceilings and efficiencies.

::

    step = layers x layer_seconds
         + ((passes x weights / memory)^p + (operations / arithmetic)^p)^(1/p)
         + activations / memory + keys and values / memory + attention operations / arithmetic
         + sequences x sequence_seconds + messages x message_factor

Reading weights and multiplying overlap, but not perfectly: the exponent p is 1 where they take turns and large where
the longer one hides the other (a smooth roofline). The rest is done by other kernels, one after the other. `passes` is
1 but for some kernels that read weights more often (`kernels`). Large steps wait for the host if it cannot start their
kernels as fast (`eager_seconds` a layer).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from bottleneck.performance.efficiencies import EfficiencyName
from bottleneck.performance.kernels import weight_passes
from bottleneck.performance.model import WHOLE, Split
from bottleneck.performance.roofline import demand
from bottleneck.performance.scheduler import CAPTURED_SIZES, Floats, Steps
from bottleneck.performance.served import Accelerator, Served

PARAMETERS: tuple[str, ...] = get_args(EfficiencyName)
"""What is fitted, as logarithms: of the share of a ceiling that is reached, of seconds, of the overlap's p - 1.

`run_seconds` and `request_seconds` are spent around the steps, once for a batch of requests and for each of them;
`message_factor` is what messages between ranks take over what link and message size would have them take.
`eager_seconds` is what the host takes to start a layer's kernels one by one, in steps too large for a recorded graph.
"""

_STARTS_OVERLAP = 8.0


@dataclass(frozen=True)
class Parts:
    """Seconds of each step by what they go to; every attribute has shape (steps,)."""

    weights: Floats
    arithmetic: Floats
    linear: Floats
    activations: Floats
    cache: Floats
    attention: Floats
    host: Floats
    messages: Floats

    @property
    def total(self) -> Floats:
        """Seconds of each step."""
        return self.linear + self.activations + self.cache + self.attention + self.host + self.messages


def step_parts(
    steps: Steps,
    served: Served,
    accelerator: Accelerator,
    parameters: NDArray[np.float64],
    split: Split = WHOLE,
    stage: int | None = None,
) -> Parts:
    """Return where the time of each step goes.

    Parameters
    ----------
    steps : Steps
        Steps to be made; every field has shape (steps,).
    served : Served
        The model as it is served.
    accelerator : Accelerator
        Ceilings of the accelerator.
    parameters : array of shape (len(PARAMETERS),)
        Logarithms, in the order of `PARAMETERS`.
    split, stage : Split, int or None
        How the layers are shared, as in `demand`.

    Returns
    -------
    Parts
        Seconds; every field has shape (steps,).
    """
    weight, gemm, overlap, layer, cache, attention, sequence, _, _, factor, eager = np.exp(parameters)
    memory, peak = accelerator.memory_bytes_per_second, accelerator.flops_per_second
    asked = demand(steps, served, split, stage)
    layers = len(split.layers_of(served.shape, stage))
    passes = weight_passes(served.weights, accelerator, served.shape, steps.tokens)
    weights = passes * asked.weight_bytes / (memory * weight)
    arithmetic = asked.operations / (peak * served.weights.arithmetic_gain * gemm)
    parts = Parts(
        weights=weights,
        arithmetic=arithmetic,
        linear=_smooth_maximum(weights, arithmetic, 1.0 + overlap),
        activations=asked.activation_bytes / memory,
        cache=asked.cache_bytes / (memory * cache),
        attention=asked.attention_operations / (peak * attention),
        host=layers * layer + steps.sequences * sequence,
        messages=asked.latency_seconds * factor,
    )
    parts = replace(parts, messages=parts.messages + asked.waited_transfer(parts.total) * factor)
    # Above the largest recorded graph the host starts every kernel itself, and the accelerator may wait for it.
    started = np.where(steps.tokens > CAPTURED_SIZES[-1], layers * eager, 0.0)
    return replace(parts, host=parts.host + _smooth_maximum(parts.total, started, _STARTS_OVERLAP) - parts.total)


def _smooth_maximum(one: Floats, two: Floats, power: float) -> Floats:
    longer, shorter = np.maximum(one, two), np.minimum(one, two)
    # Where the power is infinite the longer hides the other entirely.
    return np.asarray(longer * (1.0 + (shorter / longer) ** power) ** (1.0 / power))


def prefill_overhead(batch: NDArray[np.int64], parameters: NDArray[np.float64]) -> Floats:
    """Return the seconds around the steps until the first tokens are there: requests in, tokens out.

    Parameters
    ----------
    batch : array of int, shape (n,)
        Requests that are sent at once.
    parameters : array of shape (len(PARAMETERS),)
        Natural logarithms, in the order of `PARAMETERS`.

    Returns
    -------
    Floats
        Shape (n,): seconds of a run, and seconds of a request times the requests.
    """
    run, request = np.exp(parameters[7:9])
    return np.asarray(run + batch * request, dtype=np.float64)
