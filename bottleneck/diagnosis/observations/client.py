"""Client timings summed up: requests, tokens, latencies, stalls, and when any request was under way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.diagnosis import thresholds
from bottleneck.estimate import Estimate, estimate
from bottleneck.load.client import ClientResult
from bottleneck.telemetry.samples import Array


@dataclass(frozen=True)
class ClientFacts:
    """Measurements of the load generator; sums over its good requests, in seconds and tokens."""

    requests: int = 0
    failed: int = 0
    output_tokens: int = 0
    input_tokens: int = 0
    latency_seconds: float = 0.0
    first_token_seconds: float = 0.0
    itl_median_seconds: float | None = None
    stalled_share: float | None = None
    open_loop: bool = False
    request_rate: float | None = None
    concurrency: int | None = None
    output_tokens_per_second: float | None = None
    ttft: Estimate | None = None
    tpot: Estimate | None = None
    latency: Estimate | None = None


def client_facts(client: ClientResult) -> ClientFacts:
    """Sum up the load generator's record.

    Parameters
    ----------
    client : ClientResult
        Record of the load generator.

    Returns
    -------
    ClientFacts
        Sums over good requests; None for what no request shows.
    """
    good = client.good
    output = sum(request.output_tokens for request in good)
    answers = [
        np.array([gap for gap in request.itl_seconds if math.isfinite(gap)], dtype=np.float64) for request in good
    ]
    gaps = np.concatenate(answers) if answers else np.empty(0)
    rate = client.request_rate
    return ClientFacts(
        requests=len(good),
        failed=max(client.failed, len(client.requests) - len(good)),
        output_tokens=output,
        input_tokens=sum(request.input_tokens for request in good),
        latency_seconds=math.fsum(request.latency_seconds for request in good),
        first_token_seconds=math.fsum(request.ttft_seconds for request in good),
        itl_median_seconds=float(np.median(gaps)) if gaps.size else None,
        stalled_share=stalled_share(answers) if gaps.size else None,
        open_loop=rate is not None and math.isfinite(rate) and rate > 0,
        request_rate=rate,
        concurrency=client.concurrency,
        output_tokens_per_second=output / client.duration_seconds if client.duration_seconds > 0 else None,
        ttft=estimate([request.ttft_seconds for request in good]),
        tpot=estimate([request.tpot_seconds for request in good]),
        latency=estimate([request.latency_seconds for request in good]),
    )


def stalled_share(answers: Sequence[Array]) -> float:
    """Return the share of the time between tokens that is a wait for another request's prompt, 0 to 1.

    A gap of more than `STALL_GAP` medians is a step that also computed a prompt; what it has above the median is the
    stall. The median itself is a step of decoding only: most steps are. A prompt delays all tokens after it; where the
    next ones come early by as much, they had been made in time and were only sent late, and that is no stall.

    Parameters
    ----------
    answers : sequence of arrays of shape (n,)
        Seconds between the tokens of each request, in their order.
    """
    gaps = np.concatenate(answers) if answers else np.empty(0)
    if gaps.size == 0 or gaps.sum() <= 0:
        return 0.0
    median = float(np.median(gaps))
    stalled = 0.0
    for answer in answers:
        late = 0.0
        for beyond in answer - median:
            if beyond > (thresholds.STALL_GAP - 1) * median:
                late, stalled = late + beyond, stalled + beyond
            else:
                early = min(late, max(0.0, -beyond))
                stalled -= early
                # Tokens that keep their pace again show that what is left of the delay was the engine's.
                late = late - early if early > 0 else 0.0
    return float(stalled / gaps.sum())


def busy_time(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, in seconds.

    Parameters
    ----------
    intervals : Iterable[tuple[float, float]]
        Begin and end of each, in seconds on one clock, in any order; they may overlap.
    """
    total, end = 0.0, -math.inf
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total
