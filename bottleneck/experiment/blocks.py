"""A block: one burst of requests while one resource, or none, is slowed; and what it measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bottleneck.experiment.resources import Resource

TIME, TTFT, ITL = "time", "ttft", "itl"
METRICS = (TIME, TTFT, ITL)
METRIC_WORDS = {TIME: "time per output token", TTFT: "time to first token", ITL: "time between tokens"}


class BlockError(ValueError):
    """A burst did not measure what a block needs; the text says what came back."""


@dataclass(frozen=True)
class Block:
    """One block of the experiment.

    Attributes
    ----------
    index
        From 0, in the order in which they ran.
    resource
        The resource that is slowed; None is baseline.
    slowdown
        By how much; 1 with a resource is its placebo, below 1 an upgrade that is really made.
    """

    index: int
    resource: Resource | None = None
    slowdown: float = 1.0

    @property
    def label(self) -> str:
        """The change, in a few words."""
        if self.resource is None:
            return "baseline"
        return f"{self.resource.name} x{self.slowdown:.3g}"


@dataclass(frozen=True)
class Measurement:
    """Measurements of one block; seconds.

    Attributes
    ----------
    started_seconds
        Since the session began.
    time_seconds
        Length of the burst per output token of it: the inverse of the throughput.
    ttft_seconds, itl_seconds
        Means over the burst's requests and over all gaps between tokens; NaN when there is none.
    """

    block: Block
    started_seconds: float
    burst_seconds: float
    time_seconds: float
    ttft_seconds: float
    itl_seconds: float
    requests: int

    def metric(self, name: str) -> float:
        """Return one of `METRICS`.

        Parameters
        ----------
        name : str
            One of `METRICS`.

        Returns
        -------
        float
            Seconds.

        Raises
        ------
        KeyError
            For any other name.
        """
        return {TIME: self.time_seconds, TTFT: self.ttft_seconds, ITL: self.itl_seconds}[name]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        numbers = {key: value for key, value in asdict(self).items() if key != "block"}
        resource = self.block.resource
        return {
            "index": self.block.index,
            "resource": resource.name if resource else None,
            "slowdown": self.block.slowdown,
            **{
                key: None if isinstance(value, float) and math.isnan(value) else value for key, value in numbers.items()
            },
        }


def measurement(block: Block, started_seconds: float, requests: Sequence[dict[str, Any]]) -> Measurement:
    """Return what a burst measured.

    Parameters
    ----------
    block : Block
        The block that was run.
    started_seconds : float
        Time from the experiment's start to the burst.
    requests : Sequence[dict[str, Any]]
        Of each request: `sent` and `token_times` in seconds on one clock, `error` when it failed.

    Raises
    ------
    BlockError
        When a request failed or brought no token: what such a burst took measures something else.
    """
    failed = [request for request in requests if request.get("error") or not request["token_times"]]
    if failed or not requests:
        reason = failed[0].get("error") or "no token came back" if failed else "no request was sent"
        raise BlockError(f"block {block.index} ({block.label}): {len(failed)} of {len(requests)} failed: {reason}")
    tokens = sum(len(request["token_times"]) for request in requests)
    burst = max(request["token_times"][-1] for request in requests) - min(request["sent"] for request in requests)
    firsts = [request["token_times"][0] - request["sent"] for request in requests]
    gaps = [
        later - earlier
        for request in requests
        for earlier, later in zip(request["token_times"], request["token_times"][1:], strict=False)
    ]
    return Measurement(
        block=block,
        started_seconds=started_seconds,
        burst_seconds=burst,
        time_seconds=burst / tokens,
        ttft_seconds=math.fsum(firsts) / len(firsts),
        itl_seconds=math.fsum(gaps) / len(gaps) if gaps else math.nan,
        requests=len(requests),
    )
