"""Carry a calibration to another workload, split, link, precision or accelerator, and compare."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bottleneck.estimate import Interval
from bottleneck.performance.calibration import Calibration, Forecast, Transfer, prior
from bottleneck.performance.efficiencies import KERNEL_PARAMETERS, efficiency
from bottleneck.performance.model import Split, WeightFormat, kv_bytes_per_token, resident_bytes
from bottleneck.performance.served import Accelerator, Served
from bottleneck.performance.step import PARAMETERS
from bottleneck.performance.workpoints import WorkPoints
from bottleneck.prediction.sweep import MOST_BATCH_TOKENS
from bottleneck.units import size_text

COVERAGE = 0.9
WIDEST = 4.0
"""Upper over lower bound of an interval above which a prediction is refused."""
MOST_BATCH, MOST_TOKENS = 65536, 2**22


class CannotTell(Exception):  # noqa: N818 - it is no mistake of the asker
    """A prediction that would be a guess; the text says why and what would help."""


@dataclass(frozen=True)
class Scenario:
    """A deployment under a workload.

    Attributes
    ----------
    batch : int
        Requests that are served at the same time, over all replicas.
    input_tokens, output_tokens : int
        Tokens of each prompt and of each answer.
    memory_bytes : int or None
        What one rank's accelerator has; None when that is not known.
    """

    served: Served
    accelerator: Accelerator
    split: Split
    replicas: int
    batch: int
    input_tokens: int
    output_tokens: int
    memory_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints."""
        document = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            **document,
            "served": self.served.to_json(),
            "accelerator": asdict(self.accelerator),
            "split": asdict(self.split),
        }

    def problem(self) -> str | None:
        """Return why it cannot be, or None."""
        shape = self.served.shape
        for name, value, most in (
            ("batch", self.batch, MOST_BATCH),
            ("input tokens", self.input_tokens, MOST_TOKENS),
            ("output tokens", self.output_tokens, MOST_TOKENS),
            ("replicas", self.replicas, MOST_BATCH),
        ):
            if not 1 <= value <= most:
                return f"{name} {value}; expected 1 to {most}"
        if self.input_tokens + self.output_tokens > shape.context_length:
            return (
                f"{self.input_tokens} input and {self.output_tokens} output tokens; expected at most "
                f"{shape.context_length} together, the model's context length"
            )
        if self.batch * self.input_tokens > MOST_BATCH_TOKENS:
            return f"batch {self.batch} of {self.input_tokens} tokens; expected at most {MOST_BATCH_TOKENS} together"
        return self.split.problem(shape) or self._link_problem() or self._memory_problem()

    def _link_problem(self) -> str | None:
        if self.split.ranks > 1 and self.split.link is None:
            return f"{self.split.ranks} ranks and no link between them; expected its rate and latency"
        return None

    def _memory_problem(self) -> str | None:
        if self.memory_bytes is None:
            return None
        served, split = self.served, self.split
        tokens = -(-self.batch // self.replicas) * (self.input_tokens + self.output_tokens)
        needs = [
            (
                resident_bytes(served.shape, served.weights, split, stage),
                tokens * kv_bytes_per_token(served.shape, split, stage, served.kv_value_bytes),
            )
            for stage in range(split.pipeline_parallel)
        ]
        weights, cache = max(needs, key=sum)
        if weights + cache <= self.memory_bytes:
            return None
        return (
            f"a rank needs {size_text(weights)} of weights and {size_text(cache)} of KV cache; expected at most "
            f"{size_text(self.memory_bytes)}, the memory of {self.accelerator.name}"
        )


@dataclass(frozen=True)
class Outcome:
    """Predictions of a scenario.

    Attributes
    ----------
    ttft_seconds : Interval
        Until every request of a batch that comes at once has its first token.
    itl_seconds : Interval
        Between tokens after it.
    tokens_per_second : Interval
        Output tokens over the whole time, first tokens included, over all replicas.
    prefill_parts, decode_parts : dict
        Seconds by what they go to.
    """

    ttft_seconds: Interval
    itl_seconds: Interval
    tokens_per_second: Interval
    prefill_parts: dict[str, float]
    decode_parts: dict[str, float]

    @property
    def prefill_binds(self) -> str:
        """The resource that most of a first token's time goes to."""
        return max(self.prefill_parts, key=lambda name: self.prefill_parts[name])

    @property
    def decode_binds(self) -> str:
        """The resource that most of a later token's time goes to."""
        return max(self.decode_parts, key=lambda name: self.decode_parts[name])

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints."""
        return {**asdict(self), "prefill_binds": self.prefill_binds, "decode_binds": self.decode_binds}


@dataclass(frozen=True)
class Comparison:
    """A base, a change, and the ratios between them (changed over base)."""

    base: Outcome
    changed: Outcome
    ttft_ratio: Interval
    itl_ratio: Interval
    throughput_ratio: Interval

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints."""
        ratios = {name: asdict(getattr(self, name)) for name in ("ttft_ratio", "itl_ratio", "throughput_ratio")}
        return {"base": self.base.to_json(), "changed": self.changed.to_json(), **ratios}


def transfer_to(calibration: Calibration, weights: WeightFormat, accelerator: Accelerator) -> Transfer | None:
    """Return what carrying the efficiencies over does to them; None when nothing about kernels changes.

    Parameters
    ----------
    calibration
        Of this deployment, by `calibrate`.
    weights
        How the weights are stored there.
    accelerator
        What it would run on.
    """
    shift, variance = np.zeros(len(PARAMETERS)), np.zeros(len(PARAMETERS))
    if weights != calibration.served.weights or accelerator != calibration.accelerator:
        before, spread = prior(calibration.served.weights, calibration.accelerator)
        after, _ = prior(weights, accelerator)
        # A constant cost follows the launch of kernels; what was learned of it otherwise stays.
        shift = after - before
    if weights != calibration.served.weights:
        kernel = np.array([name in KERNEL_PARAMETERS for name in PARAMETERS])
        variance += np.where(kernel, spread**2, 0.0)
    if accelerator != calibration.accelerator:
        variance += efficiency("other_accelerator").spread ** 2
    return Transfer(shift, np.sqrt(variance)) if variance.any() else None


def parameters(calibration: Calibration, scenario: Scenario) -> NDArray[np.float64]:
    """Return the logarithms of `PARAMETERS` for a scenario's weights and accelerator.

    Parameters
    ----------
    calibration : Calibration
        Fit on measured points of one deployment.
    scenario : Scenario
        Deployment and load to predict.

    Returns
    -------
    NDArray[np.float64]
        Shape (len(PARAMETERS),), natural logarithms.
    """
    transfer = transfer_to(calibration, scenario.served.weights, scenario.accelerator)
    return calibration.mean if transfer is None else calibration.mean + transfer.shift


def forecast(calibration: Calibration, scenario: Scenario, widest: float | None = WIDEST) -> Forecast:
    """Return the prefill and decode times of one replica.

    Parameters
    ----------
    calibration : Calibration
        Fit on measured points of this deployment, or of another one of its engine.
    scenario : Scenario
        Deployment and load to predict.
    widest : float or None
        Upper over lower bound above which there is no answer; None answers with whatever interval there is.

    Raises
    ------
    CannotTell
        When the scenario cannot be, or its interval would be too wide to be of use.
    """
    trouble = scenario.problem()
    if trouble:
        raise CannotTell(trouble)
    batch = -(-scenario.batch // scenario.replicas)
    at = WorkPoints.of(
        scenario.served,
        scenario.accelerator,
        [(batch, scenario.input_tokens)],
        max(2, scenario.output_tokens),
        scenario.split,
    )
    found = calibration.forecast(at, transfer_to(calibration, scenario.served.weights, scenario.accelerator))
    for name, each in zip(("time to first token", "time between tokens"), found.intervals(COVERAGE), strict=True):
        if widest is not None and not each.high / each.low < widest:
            seen = calibration.points
            raise CannotTell(
                f"the {name} would be between {each.low:.3g} and {each.high:.3g} s, too wide to say anything: measured "
                f"were batch {seen.batch.min()} to {seen.batch.max()} and input {seen.prompt.min()} to "
                f"{seen.prompt.max()}, asked is batch {batch}, input {scenario.input_tokens}; measure a point there "
                "and calibrate on it too"
            )
    return found


def outcome(found: Forecast, scenario: Scenario) -> Outcome:
    """Return what a forecast means for people who wait for tokens.

    Parameters
    ----------
    found : Forecast
        Forecast of the scenario's one point.
    scenario : Scenario
        The same scenario, whose lengths and batch are multiplied out.

    Returns
    -------
    Outcome
        Seconds, tokens per second, and the seconds of both phases by what they go to.
    """
    ttft, itl = found.intervals(COVERAGE)
    tokens = scenario.output_tokens
    # Both are right or wrong together in the worst case, so their bounds are combined.
    rates = [
        scenario.batch * tokens / (first + (tokens - 1) * each)
        for first, each in ((ttft.median, itl.median), (ttft.high, itl.high), (ttft.low, itl.low))
    ]
    return Outcome(
        ttft,
        itl,
        Interval(*rates),
        found.at.prefill_shares(found.parameters),
        found.at.decode_shares(found.parameters),
    )


def compare(calibration: Calibration, base: Scenario, changed: Scenario) -> Comparison:
    """Return both predictions and their ratios; what is uncertain about both alike cancels in a ratio.

    Parameters
    ----------
    calibration : Calibration
        Of this deployment, by `calibrate`.
    base : Scenario
        The deployment and load as they are.
    changed : Scenario
        As they would be.
    """
    one, two = forecast(calibration, base), forecast(calibration, changed)
    related = changed.served.weights == base.served.weights and changed.accelerator == base.accelerator
    both = one.shared(two, related)
    wide = calibration.quantile(COVERAGE)
    ratios = []
    for index in range(2):
        variance = one.covariance[index, index] + two.covariance[index, index] - 2 * both[index, index]
        middle, half = two.center[index] - one.center[index], wide * math.sqrt(max(variance, 0.0))
        ratios.append(Interval.of_logarithm(middle, half))
    before, after = outcome(one, base), outcome(two, changed)
    share = _first_share(before, base), _first_share(after, changed)
    prefill = sum(share) / 2
    middle = after.tokens_per_second.median / before.tokens_per_second.median
    # In proportion to the time that each phase takes of the whole.
    up = _mixed(ratios, prefill, "high")
    down = _mixed(ratios, prefill, "low")
    throughput = Interval(middle, middle / up, middle / down)
    return Comparison(before, after, ratios[0], ratios[1], throughput)


def _first_share(found: Outcome, scenario: Scenario) -> float:
    decode = (scenario.output_tokens - 1) * found.itl_seconds.median
    return found.ttft_seconds.median / (found.ttft_seconds.median + decode)


def _mixed(ratios: list[Interval], prefill: float, bound: str) -> float:
    factors = [getattr(each, bound) / each.median for each in ratios]
    return float(factors[0] ** prefill * factors[1] ** (1 - prefill))
