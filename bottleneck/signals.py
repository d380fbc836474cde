"""Everything that was measured of a run, gathered once: the ledger and the rules read nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bottleneck.client import ClientResult
from bottleneck.engine_signals import EngineFacts, engine_facts
from bottleneck.estimate import Estimate, estimate
from bottleneck.link_signals import LinkFacts, doubt_ceiling, link_facts
from bottleneck.node_signals import NodeFacts, node_facts
from bottleneck.run import Run, engine_readings
from bottleneck.samples import node_samples
from bottleneck.taxonomy import WORK_CLASSES
from bottleneck.topology import Topology, find_topology


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


@dataclass(frozen=True)
class Weakness:
    """Something that makes the measurements carry less.

    Attributes
    ----------
    factor : float
        Confidence is multiplied with it.
    statement : str
        Said in the verdict's notes.
    classes : frozenset of str or None
        Only these classes suffer from it; None is all.
    """

    factor: float
    statement: str
    classes: frozenset[str] | None = None


# Classes that rest on what steps are made of.
STEP_CLASSES = frozenset(
    {
        *WORK_CLASSES,
        "host_overhead",
        "link_bandwidth",
        "link_latency",
        "pipeline_bubble",
        "straggler",
        "balanced",
    }
)


# Of a matrix-multiply ceiling, what a whole model reaches; and from which share of that on it is called used up.
REACHED, SATURATING = 0.7, 0.7


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
    eager: bool = False

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
                used = max(used, rate / facts.gemm_flops_per_second / REACHED)
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


def finite(value: Any) -> Any:
    """Replace numbers that JSON does not know by None, all the way down."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


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


def gather(run: Run) -> Signals:
    """Gather every fact of a run or window.

    Parameters
    ----------
    run : Run
        Loaded run or live window.

    Returns
    -------
    Signals
        With a `Weakness` for everything that is missing or doubtful.
    """
    topology = find_topology(run)
    readings = engine_readings(run.batches, *run.interval)
    only = next(iter(readings.values())) if len(readings) == 1 and len(topology.groups) == 1 else []
    signals = Signals(topology)
    signals.engines = [engine_facts(group, readings.get(group.head, only), topology) for group in topology.groups]
    if run.live:
        for engine in signals.engines:
            taken = [moment for moment, _ in readings.get(engine.head, only)]
            engine.counted_seconds = max(taken) - min(taken) if taken else None
    if run.client is not None:
        signals.client = client_facts(run.client)
    _busy(signals, run)
    samples = node_samples(run.batches)
    for engine in signals.engines:
        seconds = engine.counted_seconds or signals.span_seconds
        if engine.front_cpu_seconds is not None and seconds > 0:
            engine.front_cpu_share = engine.front_cpu_seconds / seconds
    signals.nodes = node_facts(run, topology, samples, signals.busy_seconds)
    signals.link = link_facts(run, topology, samples, signals.busy_seconds)
    if signals.link is not None:
        doubt_ceiling(signals.link, signals.nodes, signals.busy_seconds, _prompt_share(signals))
    signals.eager = any("--enforce-eager" in (spec.get("argv") or []) for spec in run.plan)
    signals.weaknesses = list(_weaknesses(signals, run))
    return signals


def _prompt_share(signals: Signals) -> float:
    """Return the share of all computed tokens that were prompts, 0 to 1."""
    prompts = math.fsum(engine.prompt_tokens or 0.0 for engine in signals.engines)
    outputs = math.fsum(engine.generation_tokens or 0.0 for engine in signals.engines)
    if prompts + outputs <= 0 and signals.client is not None:
        prompts, outputs = float(signals.client.input_tokens), float(signals.client.output_tokens)
    return prompts / (prompts + outputs) if prompts + outputs > 0 else 0.0


def _busy(signals: Signals, run: Run) -> None:
    signals.span_seconds = run.seconds if math.isfinite(run.seconds) else 0.0
    shares = [engine.busy_share for engine in signals.engines if engine.busy_share is not None]
    timed = [
        (request.start_seconds, request.start_seconds + request.latency_seconds)
        for request in (run.client.good if run.client else [])
        if request.start_seconds is not None
    ]
    if timed:
        first, last = min(start for start, _ in timed), max(end for _, end in timed)
        duration = run.client.duration_seconds if run.client else math.nan
        signals.busy_seconds, signals.busy_source = busy_time(timed), "client timings"
        # Between the points of a sweep the load generator starts again: that is not the load's idleness.
        signals.span_seconds = max(duration if duration > 0 else last - first, signals.busy_seconds)
    elif shares:
        if run.client is not None and run.client.duration_seconds > 0:
            signals.span_seconds = run.client.duration_seconds
        signals.busy_seconds = signals.span_seconds * max(shares)
        signals.busy_source = "engine metrics, num_requests_running"
    else:
        if run.client is not None and run.client.duration_seconds > 0:
            signals.span_seconds = run.client.duration_seconds
        signals.busy_seconds = signals.span_seconds


def _weaknesses(signals: Signals, run: Run) -> Iterable[Weakness]:
    yield from (Weakness(1.0, problem) for problem in run.problems)
    if run.status != "complete":
        yield Weakness(0.85, f"the run is marked {run.status}: it was cut short, and stands for what it got to")
    yield from _client_weaknesses(signals, run)
    if signals.topology.profile is None:
        lack = "no profile with this deployment: the model's arithmetic, the link and the limits are not known"
        yield Weakness(0.9, lack, STEP_CLASSES)
    if not any(engine.has_times or engine.readings for engine in signals.engines):
        yield Weakness(0.5, "no engine metrics: queueing and cache cannot be told from slow steps")
    elif not any(engine.has_times for engine in signals.engines):
        yield Weakness(0.8, "no request finished between the engine's readings: phases are estimated")
    elif not run.live and not any(engine.readings for engine in signals.engines):
        yield Weakness(0.8, "no engine readings during the run: why requests waited was not seen")
    for engine in signals.engines:
        if engine.reset:
            yield Weakness(0.6, f"a counter of the engine on {engine.head or 'the head'} went backwards: it restarted")
        if engine.unusable:
            yield Weakness(0.9, f"{engine.unusable} engine metrics of {engine.head or 'the head'} are not numbers")
    if not any(facts.covered_share > 0 for facts in signals.nodes.values()):
        yield Weakness(0.7, "no samples of the nodes: a slow link or node cannot be seen", STEP_CLASSES)
        return
    for node, facts in signals.nodes.items():
        if facts.covered_share < 0.8:
            yield Weakness(0.7, f"samples of {node} cover {facts.covered_share:.0%} of the interval", STEP_CLASSES)
        if facts.missing_batches or facts.dropped:
            lost = f"{facts.missing_batches} batches of {node} never came, its sampler dropped {facts.dropped} samples"
            yield Weakness(0.95, lost, STEP_CLASSES)
        if facts.resets:
            yield Weakness(0.9, f"link counters of {node} went backwards {facts.resets} times", STEP_CLASSES)
    if signals.link is not None:
        yield from (Weakness(0.85, note, STEP_CLASSES) for note in signals.link.notes)
        if not signals.link.sent_bytes:
            yield Weakness(0.7, f"no samples of link {signals.link.name}: its bytes are not known", STEP_CLASSES)
        if signals.link.capacity_bytes_per_second is None:
            yield Weakness(0.6, f"link {signals.link.name} has no ceiling: measure it with cluster probe", STEP_CLASSES)


def _client_weaknesses(signals: Signals, run: Run) -> Iterable[Weakness]:
    client = signals.client
    if client is None or client.requests == 0:
        if not run.live:
            yield Weakness(0.85, "no client timings: the ledger is the engine's own account")
        return
    if run.client is not None and len(run.client.points) > 1:
        yield Weakness(0.9, f"a sweep of {len(run.client.points)} points is judged as one")
    if client.output_tokens == 0:
        yield Weakness(0.5, "no output token was counted")
    if client.requests == 1:
        yield Weakness(0.5, "one request: its times may be chance")
    elif client.requests < 4:
        yield Weakness(0.75, f"only {client.requests} requests")
    if client.failed:
        share = client.failed / (client.failed + client.requests)
        yield Weakness(1.0 - 0.5 * share, f"{client.failed} requests failed and are left out")
