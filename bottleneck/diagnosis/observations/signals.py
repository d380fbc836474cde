"""Everything that was measured of a run, gathered once: the ledger and the rules read nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bottleneck.diagnosis.observations.engine_signals import EngineFacts
from bottleneck.diagnosis.observations.link_signals import LinkFacts
from bottleneck.diagnosis.observations.node_signals import NodeFacts
from bottleneck.diagnosis.observations.settings import EngineSettings
from bottleneck.diagnosis.observations.weakness import Weakness
from bottleneck.estimate import Estimate, estimate
from bottleneck.json_numbers import finite
from bottleneck.load.client import ClientResult
from bottleneck.runs.topology import Topology


@dataclass
class ClientFacts:
    """What the load generator saw; sums over its good requests."""

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


# Of a matrix-multiply ceiling, what a whole model reaches; and from which share of that on it is called used up.
REACHED, SATURATING = 0.7, 0.7
# How far beyond a ceiling nothing honest goes.
BEYOND = 1.1


@dataclass
class Signals:
    """The facts of a run.

    Attributes
    ----------
    span_seconds : float
        Length of what was watched: the generator's own duration, else the interval.
    busy_seconds : float
        How much of it some request was under way.
    busy_source : str
        Where that is from; empty when it is only assumed.
    settings : EngineSettings
        How the engine runs, as its command line says.
    unsure : set of frozenset of str
        Classes between which the measurements cannot tell.
    start : bool
        Whether an engine was starting all the time: then there are no steps, and shares are of the whole span.
    """

    topology: Topology
    engines: list[EngineFacts] = field(default_factory=list)
    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    link: LinkFacts | None = None
    client: ClientFacts | None = None
    span_seconds: float = 0.0
    busy_seconds: float = 0.0
    busy_source: str = ""
    weaknesses: list[Weakness] = field(default_factory=list)
    settings: EngineSettings = field(default_factory=EngineSettings)
    unsure: set[frozenset[str]] = field(default_factory=set)
    start: bool = False

    @property
    def saturation(self) -> float:
        """How far the arithmetic of the busiest engine is used up, 0 to 1, by its own count and the ceiling.

        Matrix products inside a model reach about 0.7 of what one alone reaches: that counts as all of it. 0 when it
        is not known.
        """
        used = 0.0
        for engine, group in zip(self.engines, self.topology.groups, strict=True):
            facts = self.nodes.get(group.head)
            if engine.flops and facts is not None and facts.gemm_flops_per_second and self.busy_seconds > 0:
                rate = engine.flops / self.busy_seconds
                ceiling = facts.gemm_flops_per_second * self.settings.arithmetic_gain
                used = max(used, rate / ceiling / REACHED)
        return min(1.0, used) if used > SATURATING else 0.0

    @property
    def idle_share(self) -> float | None:
        """Share of the span without any request, 0 to 1; None when it was not measured."""
        if not self.busy_source or self.span_seconds <= 0:
            return None
        return min(1.0, max(0.0, 1.0 - self.busy_seconds / self.span_seconds))

    @property
    def suggested_concurrency(self) -> float | None:
        """A load that would fill the engine."""
        current = (self.client.concurrency if self.client else None) or max(
            (engine.running_max or 0.0 for engine in self.engines), default=0.0
        )
        wanted = 4 * current if current else None
        limit = self.topology.max_num_seqs
        return min(wanted, limit) if wanted and limit else (wanted or limit)

    def to_json(self) -> dict[str, Any]:
        """Return what was measured as JSON-able data; what is not known is null."""
        document = {
            "span_seconds": self.span_seconds,
            "busy_seconds": self.busy_seconds,
            "busy_source": self.busy_source,
            "idle_share": self.idle_share,
            "client": None if self.client is None else asdict(self.client),
            "engines": [engine.to_json() for engine in self.engines],
            "nodes": {name: asdict(facts) for name, facts in self.nodes.items()},
            "link": None if self.link is None else self.link.to_json(),
        }
        cleaned: dict[str, Any] = finite(document)
        return cleaned


def busy_time(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, in seconds."""
    total, end = 0.0, -math.inf
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def stalled_share(gaps: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Return the share of the time between tokens that is a wait for another request's prompt.

    A gap of more than 2.5 medians is a step that also computed a prompt; what it has above the median is the stall.
    The median itself is a step of decoding only: most steps are.
    """
    total = float(gaps.sum())
    if gaps.size == 0 or total <= 0:
        return 0.0
    median = float(np.median(gaps))
    return float((gaps[gaps > 2.5 * median] - median).sum()) / total


def client_facts(client: ClientResult) -> ClientFacts:
    """Sum up what the load generator saw."""
    good = client.good
    facts = ClientFacts(
        requests=len(good),
        failed=max(client.failed, len(client.requests) - len(good)),
        output_tokens=sum(request.output_tokens for request in good),
        input_tokens=sum(request.input_tokens for request in good),
        latency_seconds=math.fsum(request.latency_seconds for request in good),
        first_token_seconds=math.fsum(request.ttft_seconds for request in good),
        request_rate=client.request_rate,
        concurrency=client.concurrency,
        open_loop=client.request_rate is not None and math.isfinite(client.request_rate) and client.request_rate > 0,
    )
    gaps = np.array([gap for request in good for gap in request.itl_seconds if math.isfinite(gap)], dtype=np.float64)
    if gaps.size:
        facts.itl_median_seconds, facts.stalled_share = float(np.median(gaps)), stalled_share(gaps)
    if client.duration_seconds > 0:
        facts.output_tokens_per_second = facts.output_tokens / client.duration_seconds
    facts.ttft = estimate([request.ttft_seconds for request in good])
    facts.tpot = estimate([request.tpot_seconds for request in good])
    facts.latency = estimate([request.latency_seconds for request in good])
    return facts
