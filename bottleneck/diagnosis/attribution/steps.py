"""What the engine did in its busy time: steps with prompts in them, steps of decoding only, and what each is made of.

Two kinds of work share the engine. A step that computes prompt tokens is long and sends large messages; a step that
only decodes is short and sends small ones. A request feels both: while it decodes, prompts of others stall it. So the
busy time is split by kind first, each kind is taken apart by resource, and a request's time is put together from the
kinds it lived through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bottleneck.diagnosis.attribution.accelerator_time import fill_work, floors, watched_from_outside
from bottleneck.diagnosis.attribution.link_time import link_parts
from bottleneck.diagnosis.attribution.node_time import local_parts
from bottleneck.diagnosis.attribution.step_parts import DECODE, PREFILL, Part, Work
from bottleneck.diagnosis.attribution.wait_time import asleep_parts
from bottleneck.diagnosis.observations.engine_signals import EngineFacts
from bottleneck.diagnosis.observations.signals import REACHED, Signals
from bottleneck.performance.server_limits import server_defaults
from bottleneck.runs.topology import Group

__all__ = ["DECODE", "PREFILL", "EngineTime", "Part", "Work", "engine_time"]


@dataclass
class EngineTime:
    """Request time of one engine, in seconds summed over requests, and the work behind it.

    Attributes
    ----------
    queue_seconds, prefill_seconds, decode_seconds : float
        As the engine counts them.
    step_wait_seconds : float
        From arrival at the server until the engine took the request in, which it does only between two steps.
    tokens : float
        Output tokens of those requests.
    stalled_share : float
        Share of the decode time that was a wait for prompts of other requests.
    source : str
        Where the three are from.
    """

    group: Group
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    tokens: float
    stalled_share: float
    source: str
    step_wait_seconds: float = 0.0
    work: dict[str, Work] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def total_seconds(self) -> float:
        """Request time in the engine."""
        return self.step_wait_seconds + self.queue_seconds + self.prefill_seconds + self.decode_seconds


def engine_time(signals: Signals, group: Group, facts: EngineFacts) -> EngineTime | None:
    """Put together the request time of one engine and split its busy time by kind of work.

    Three sources, the first that is there: the engine's own sums over finished requests; the client's first-token
    and total times (queueing is then inside prefill); or, for a window in which nothing finished, Little's law
    (request-seconds = mean number of requests times time) with the gaps between tokens as the decode part.

    Every running request lives through every step. So the busy time divides between the kinds of work as the
    request time does: prefill plus stalls to the one, the rest of decode to the other.

    Returns
    -------
    EngineTime or None
        None when no request time or no output token is known.
    """
    times = _request_time(signals, group, facts)
    if times is None or times.tokens <= 0 or times.prefill_seconds + times.decode_seconds <= 0:
        return None
    prefill, decode = _divide(signals, facts, times)
    if watched_from_outside(signals, group):
        fill_work(signals, group, facts, (prefill, decode))
    else:
        for work in (prefill, decode):
            _take_apart(signals, group, work, (prefill, decode), times)
        slept = asleep_parts(signals, group, (prefill, decode))
        for work in (prefill, decode):
            work.parts += slept[work.kind]
    times.work = {PREFILL: prefill, DECODE: decode}
    return times


def _divide(signals: Signals, facts: EngineFacts, times: EngineTime) -> tuple[Work, Work]:
    """Divide the busy time between the kinds of work, and count their steps and tokens."""
    stalled = times.decode_seconds * times.stalled_share
    in_prompts, in_decode = times.prefill_seconds + stalled, times.decode_seconds - stalled
    busy = signals.busy_seconds
    # Pipeline stages overlap different batches: request time passes through them one after the other.
    prefill = Work(PREFILL, busy * in_prompts / (in_prompts + in_decode))
    decode = Work(DECODE, busy * in_decode / (in_prompts + in_decode))
    _count_steps(signals, facts, times, prefill, decode)
    if watched_from_outside(signals, times.group):
        # Where prompts are computed in steps that also decode, gaps between tokens are all alike and show no stall. But
        # prompts cannot take less than their operations at what a model reaches of the ceiling.
        least = floors(signals, times.group, facts, (prefill, decode))
        wanted = min(least[PREFILL].compute / REACHED, busy - least[DECODE].seconds)
        if wanted > prefill.wall_seconds and times.decode_seconds > 0:
            wanted_prompts = wanted / busy * (in_prompts + in_decode)
            times.stalled_share = min(1.0, max(0.0, (wanted_prompts - times.prefill_seconds) / times.decode_seconds))
            prefill.wall_seconds, decode.wall_seconds = wanted, busy - wanted
            _count_steps(signals, facts, times, prefill, decode)
    return prefill, decode


def _request_time(signals: Signals, group: Group, facts: EngineFacts) -> EngineTime | None:
    client = signals.client
    stalled = client.stalled_share if client is not None else None
    if stalled is None:
        stalled = _stalled_by_histogram(facts)
    if facts.has_times and facts.finished_tokens:
        return EngineTime(
            group,
            max(0.0, facts.queue_seconds or 0.0),
            max(0.0, facts.prefill_seconds or 0.0),
            max(0.0, facts.decode_seconds or 0.0),
            facts.finished_tokens,
            stalled,
            "engine: request_queue_time, request_prefill_time, request_decode_time",
            _step_wait(facts),
        )
    if client is not None and client.output_tokens > 0 and len(signals.engines) == 1:
        first = client.first_token_seconds if math.isfinite(client.first_token_seconds) else 0.0
        # Little's law: as many requests as waited on average, for as long as any request was there.
        waited = min((facts.waiting_mean or 0.0) * (facts.busy_share or 0.0) * signals.span_seconds, 0.95 * first)
        times = EngineTime(
            group,
            waited,
            first - waited,
            max(0.0, client.latency_seconds - first),
            client.output_tokens,
            stalled,
            "client timings",
        )
        times.notes.append("the engine did not tell its phases: prefill is the first token's time less the mean queue")
        return times
    tokens = facts.generation_tokens
    if tokens and facts.running_mean is not None and facts.busy_share is not None and signals.span_seconds > 0:
        seconds = (facts.counted_seconds or signals.span_seconds) * facts.busy_share
        running, waiting = facts.running_mean * seconds, (facts.waiting_mean or 0.0) * seconds
        gaps = facts.itl.total if facts.itl is not None else running
        times = EngineTime(
            group,
            waiting,
            max(0.0, running - gaps),
            min(gaps, running),
            tokens,
            stalled,
            "engine: requests running and waiting (Little's law), inter_token_latency",
        )
        times.notes.append("no request finished in the interval: request time is the mean number of requests x time")
        return times
    return None


def _step_wait(facts: EngineFacts) -> float:
    """Return how long requests waited for a running step to end before the engine so much as counted them.

    The engine's queue time begins when its core takes a request in, and the core looks for new ones only between
    steps. A request that comes while a step of other requests runs waits unseen; only the whole latency, which counts
    from the arrival at the server, has that wait. Without any sign of other requests the difference is something else.
    """
    others = (facts.running_max or 0.0) > 1 or (facts.waiting_mean or 0.0) > 0
    if facts.latency_seconds is None or not others:
        return 0.0
    seen = (facts.queue_seconds or 0.0) + (facts.prefill_seconds or 0.0) + (facts.decode_seconds or 0.0)
    return max(0.0, facts.latency_seconds - seen)


def _stalled_by_histogram(facts: EngineFacts) -> float:
    """Estimate the stalled share from a histogram of gaps: those far above the bucket of the median are stalls.

    Buckets are wide: where the median falls inside one is not known, so only buckets that begin 2.5 times above its end
    count, each with its middle less that end.
    """
    gaps = facts.itl
    if gaps is None or not gaps.counts or not gaps.total > 0:
        return 0.0
    usual = next(
        (bound for bound, below in zip(gaps.bounds, gaps.counts, strict=True) if below >= gaps.counts[-1] / 2), math.inf
    )
    stalled, lower, before = 0.0, 0.0, 0.0
    for bound, below in zip(gaps.bounds, gaps.counts, strict=True):
        if lower >= 2.5 * usual:
            middle = (lower + bound) / 2 if math.isfinite(bound) else lower
            stalled += (below - before) * (middle - usual)
        lower, before = bound, below
    return min(0.95, max(0.0, stalled / gaps.total))


def _count_steps(signals: Signals, facts: EngineFacts, times: EngineTime, prefill: Work, decode: Work) -> None:
    client = signals.client
    # Counts of a window are those between two readings inside it; the busy time is the whole window's.
    scale = signals.span_seconds / facts.counted_seconds if facts.counted_seconds else 1.0
    requests = scale * facts.requests or (client.requests if client else 0) or 1.0
    prefill.tokens = scale * (facts.prompt_tokens or 0.0) or float(client.input_tokens if client else 0)
    # The first token of a request comes out of the step that computes its prompt.
    decode.tokens = max(0.0, scale * (facts.generation_tokens or times.tokens) - requests)
    counted = scale * (facts.steps or 0.0)
    budget = signals.topology.max_num_batched_tokens or server_defaults().batched_tokens
    fewest = math.ceil(prefill.tokens / budget)
    gap = client.itl_median_seconds if client else None
    if gap is None and not counted and facts.itl is not None:
        gap = facts.itl.quantile(0.5)
    if gap:
        decode.steps = decode.wall_seconds / gap
        prefill.steps = min(max(counted - decode.steps, fewest), max(requests, fewest)) if prefill.tokens else 0.0
    else:
        # A prompt ends in one step, and several may share it.
        prefill.steps = min(max(requests, fewest), max(counted / 2, fewest)) if prefill.tokens else 0.0
        decode.steps = max(0.0, counted - prefill.steps)


def _take_apart(signals: Signals, group: Group, work: Work, both: tuple[Work, Work], times: EngineTime) -> None:
    """Fill a work's parts: the critical path is the slowest node plus the link.

    In a collective every rank waits for the slowest, so what nodes do side by side is not added up: the node with the
    most of its own work, throttling and waiting stands for all. Pipeline stages take turns, so there every node counts.
    """
    if work.wall_seconds <= 0:
        return
    local = [local_parts(signals, group, node, both, both.index(work)) for node in group.nodes]
    if signals.topology.pipeline_parallel > 1 and len(group.nodes) > 1:
        chosen = [part for parts in local for part in parts]
    else:
        chosen = max(local, key=lambda parts: math.fsum(part.seconds for part in parts), default=[])
    work.parts = [
        part for part in (*chosen, *link_parts(signals, group, work, both)) if part.seconds > 1e-6 * work.wall_seconds
    ]
    _fit(work, times)


def _fit(work: Work, times: EngineTime) -> None:
    """Make the parts fit into the wall time.

    A worker's wait for its core is the one part that may overlap others: its threads wait for one another too, and
    also while bytes are on the link, where it delays nothing. So it gives way first; the rest is scaled.
    """
    firm = math.fsum(part.seconds for part in work.parts if part.resource != "cpu_wait")
    waited = work.explained_seconds - firm
    if waited > 0:
        kept = min(1.0, max(0.0, work.wall_seconds - firm) / waited)
        work.parts = [part.scaled(kept) if part.resource == "cpu_wait" else part for part in work.parts]
    excess = work.explained_seconds / work.wall_seconds
    if excess > 1.0:
        if excess > 1.1:  # less is within the error of the parts
            times.notes.append(
                f"{work.kind}: the parts come to {excess:.2f} times the measured time and are scaled down to it "
                "(ceilings too low, or parts that overlap)"
            )
        work.parts = [part.scaled(1.0 / excess) for part in work.parts]
