"""Split the engine's busy time into steps with prompts in them and steps of decoding only, and take each apart.

Two kinds of work share the engine. A step that computes prompt tokens is long and sends large messages; a step that
only decodes is short and sends small ones. A request feels both: while it decodes, prompts of others stall it. So the
busy time is split by kind first, each kind is taken apart by resource, and a request's time is put together from the
kinds it lived through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.attribution.accelerator_time import accelerator_work, floors, watched_from_outside
from bottleneck.diagnosis.attribution.link_time import link_parts
from bottleneck.diagnosis.attribution.node_time import local_parts
from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL, Both, Part, Work, total
from bottleneck.diagnosis.attribution.wait_time import asleep_parts
from bottleneck.diagnosis.observations.engine import EngineFacts
from bottleneck.diagnosis.observations.issues import Issue
from bottleneck.diagnosis.observations.observed import Observations
from bottleneck.performance.efficiencies import efficiency
from bottleneck.performance.server_limits import server_defaults
from bottleneck.runs.topology import Group


@dataclass(frozen=True)
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
    host_or_kernels : bool
        Whether the host's share of decode steps cannot be told from slow kernels.
    """

    group: Group
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    tokens: float
    stalled_share: float
    source: str
    step_wait_seconds: float = 0.0
    work: tuple[Work, ...] = ()
    notes: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = ()
    host_or_kernels: bool = False

    @property
    def total_seconds(self) -> float:
        """Request time in the engine."""
        return self.step_wait_seconds + self.queue_seconds + self.prefill_seconds + self.decode_seconds


def engine_time(seen: Observations, group: Group, facts: EngineFacts) -> EngineTime | None:
    """Put together the request time of one engine and split its busy time by kind of work.

    Three sources, the first that is there: the engine's own sums over finished requests; the client's first-token
    and total times (queueing is then inside prefill); or, for a window in which nothing finished, Little's law
    (request-seconds = mean number of requests times time) with the gaps between tokens as the decode part.

    Every running request lives through every step. So the busy time divides between the kinds of work as the
    request time does: prefill plus stalls to the one, the rest of decode to the other.

    Parameters
    ----------
    seen
        All that was observed of the run.
    group
        The engine: its head and its nodes in rank order.
    facts
        What was read of the group's engine.

    Returns
    -------
    EngineTime or None
        None when no request time or no output token is known.
    """
    times = _request_time(seen, group, facts)
    if times is None or times.tokens <= 0 or times.prefill_seconds + times.decode_seconds <= 0:
        return None
    times, both = _divide(seen, facts, times)
    if watched_from_outside(seen, group):
        work, issues, unsure = accelerator_work(seen, group, facts, both)
        return replace(times, work=work, issues=issues, host_or_kernels=unsure)
    local = [local_parts(seen, group, node, both) for node in group.nodes]
    found = [_take_apart(seen, group, both, index, [parts[index] for parts in local]) for index in (0, 1)]
    taken = (found[0][0], found[1][0])
    slept = asleep_parts(seen, group, taken)
    work = tuple(each.with_parts((*each.parts, *slept[each.kind])) for each in taken)
    return replace(times, work=work, notes=(*times.notes, *(note for _, notes in found for note in notes)))


def _divide(seen: Observations, facts: EngineFacts, times: EngineTime) -> tuple[EngineTime, Both]:
    """Divide the busy time between the kinds of work, and count their steps and tokens."""
    stalled = times.decode_seconds * times.stalled_share
    in_prompts, whole = times.prefill_seconds + stalled, times.prefill_seconds + times.decode_seconds
    busy = seen.busy_seconds
    # Pipeline stages overlap different batches: request time passes through them one after the other.
    both = _counted(seen, facts, times, busy * in_prompts / whole, busy * (whole - in_prompts) / whole)
    if not watched_from_outside(seen, times.group):
        return times, both
    # Where prompts are computed in steps that also decode, gaps between tokens are all alike and show no stall. But
    # prompts cannot take less than their operations at what a model reaches of the ceiling.
    least = floors(seen, times.group, facts, both)
    wanted = min(least[PREFILL].compute / efficiency("prefill_step").value, busy - least[DECODE].seconds)
    if wanted <= both[0].wall_seconds or times.decode_seconds <= 0:
        return times, both
    share = min(1.0, max(0.0, (wanted / busy * whole - times.prefill_seconds) / times.decode_seconds))
    return replace(times, stalled_share=share), _counted(seen, facts, times, wanted, busy - wanted)


def _request_time(seen: Observations, group: Group, facts: EngineFacts) -> EngineTime | None:
    client = seen.client
    stalled = client.stalled_share if client is not None else None
    if stalled is None:
        stalled = _stalled_by_histogram(facts)
    if facts.has_times and facts.finished_tokens:
        return EngineTime(
            group,
            max(facts.queue_seconds or 0.0, _still_queued(seen, facts)),
            max(0.0, facts.prefill_seconds or 0.0),
            max(0.0, facts.decode_seconds or 0.0),
            facts.finished_tokens,
            stalled,
            "engine: request_queue_time, request_prefill_time, request_decode_time",
            _step_wait(facts),
        )
    if client is not None and client.output_tokens > 0 and len(seen.engines) == 1:
        first = client.first_token_seconds if math.isfinite(client.first_token_seconds) else 0.0
        # Little's law: as many requests as waited on average, for as long as any request was there.
        waited = min((facts.waiting_mean or 0.0) * (facts.busy_share or 0.0) * seen.span_seconds, first)
        return EngineTime(
            group,
            waited,
            first - waited,
            max(0.0, client.latency_seconds - first),
            client.output_tokens,
            stalled,
            "client timings",
            notes=("the engine did not tell its phases: prefill is the first token's time less the mean queue",),
        )
    tokens = facts.generation_tokens
    if tokens and facts.running_mean is not None and facts.busy_share is not None and seen.span_seconds > 0:
        seconds = (facts.counted_seconds or seen.span_seconds) * facts.busy_share
        running, waiting = facts.running_mean * seconds, (facts.waiting_mean or 0.0) * seconds
        gaps = facts.itl.total if facts.itl is not None else running
        return EngineTime(
            group,
            waiting,
            max(0.0, running - gaps),
            min(gaps, running),
            tokens,
            stalled,
            "engine: requests running and waiting (Little's law), inter_token_latency",
            notes=("no request finished in the interval: request time is the mean number of requests x time",),
        )
    return None


def _still_queued(seen: Observations, facts: EngineFacts) -> float:
    """Return the time of those who wait in a window for a slot or for cache, and finish after it.

    Times are those of finished requests; who waits for long is not among them. Little's law: as many request-seconds of
    waiting for each one of running as there are requests waiting for each that runs.
    """
    if not seen.live or facts.waiting is None or not facts.running_mean or not facts.waiting_mean:
        return 0.0
    waiting = facts.waiting_mean * (facts.waiting.slots + facts.waiting.cache)
    return waiting / facts.running_mean * ((facts.prefill_seconds or 0.0) + (facts.decode_seconds or 0.0))


def _step_wait(facts: EngineFacts) -> float:
    """Return how long requests waited for a running step to end before the engine so much as counted them.

    The engine's queue time begins when its core takes a request in, and the core looks for new ones only between
    steps. A request that comes while a step of other requests runs waits unseen; only the whole latency, which counts
    from the arrival at the server, has that wait. Without any sign of other requests the difference is something else.
    """
    others = (facts.running_max or 0.0) > 1 or (facts.waiting_mean or 0.0) > 0
    if facts.latency_seconds is None or not others:
        return 0.0
    return max(0.0, facts.latency_seconds - facts.phases_seconds)


def _stalled_by_histogram(facts: EngineFacts) -> float:
    """Estimate the stalled share from a histogram of gaps: those far above the bucket of the median are stalls.

    Buckets are wide: where the median falls inside one is not known, so only buckets that begin `STALL_GAP` times above
    its end count, each with its middle less that end.
    """
    gaps = facts.itl
    if gaps is None or not gaps.counts or not gaps.total > 0:
        return 0.0
    usual = next(
        (bound for bound, below in zip(gaps.bounds, gaps.counts, strict=True) if below >= gaps.counts[-1] / 2), math.inf
    )
    stalled, lower, before = 0.0, 0.0, 0.0
    for bound, below in zip(gaps.bounds, gaps.counts, strict=True):
        if lower >= thresholds.STALL_GAP * usual:
            middle = (lower + bound) / 2 if math.isfinite(bound) else lower
            stalled += (below - before) * (middle - usual)
        lower, before = bound, below
    # Buckets that come to more than the whole are damaged, and say nothing.
    return stalled / gaps.total if 0.0 < stalled < gaps.total else 0.0


def _counted(
    seen: Observations, facts: EngineFacts, times: EngineTime, prefill_seconds: float, decode_seconds: float
) -> Both:
    """Return both kinds of work with their steps and tokens."""
    client = seen.client
    # Counts of a window are those between two readings inside it; the busy time is the whole window's.
    scale = seen.span_seconds / facts.counted_seconds if facts.counted_seconds else 1.0
    requests = scale * facts.requests or (client.requests if client else 0) or 1.0
    prompts = scale * (facts.prompt_tokens or 0.0) or float(client.input_tokens if client else 0)
    # The first token of a request comes out of the step that computes its prompt.
    outputs = max(0.0, scale * (facts.generation_tokens or times.tokens) - requests)
    counted = scale * (facts.steps or 0.0)
    fewest = math.ceil(prompts / (seen.topology.max_num_batched_tokens or server_defaults().batched_tokens))
    gap = client.itl_median_seconds if client else None
    if gap is None and not counted and facts.itl is not None:
        gap = facts.itl.quantile(1 / 2)
    decoding = decode_seconds / gap if gap else None
    # A prompt ends in one step, and several may share it.
    left = counted - decoding if decoding is not None else counted / 2
    prompting = min(max(left, fewest), max(requests, fewest)) if prompts else 0.0
    if decoding is None:
        # A step out of which no token comes is not counted: of a prompt in pieces, the last.
        decoding = max(0.0, counted - min(prompting, requests))
    return (
        Work(PREFILL, prefill_seconds, prompting, prompts),
        Work(DECODE, decode_seconds, decoding, outputs),
    )


def _take_apart(
    seen: Observations, group: Group, both: Both, index: int, local: Sequence[list[Part]]
) -> tuple[Work, tuple[str, ...]]:
    """Return a kind of work with its parts, and notes: the critical path is the slowest node plus the link.

    In a collective every rank waits for the slowest, so what nodes do side by side is not added up: the node with the
    most of its own work, throttling and waiting stands for all. Pipeline stages take turns, so there every node counts.
    """
    work = both[index]
    if work.wall_seconds <= 0:
        return work, ()
    if seen.topology.pipeline_parallel > 1 and len(group.nodes) > 1:
        chosen = [part for parts in local for part in parts]
    else:
        chosen = max(local, key=total, default=[])
    filled = work.with_parts((*chosen, *link_parts(seen, group, work, both)))
    parts, notes = _fit(work, filled.parts)
    return replace(work, parts=tuple(parts)), notes


def _fit(work: Work, parts: Sequence[Part]) -> tuple[list[Part], tuple[str, ...]]:
    """Return parts that fit into the wall time, and a note where they did not.

    A worker's wait for its core is the one part that may overlap others: its threads wait for one another too, and
    also while bytes are on the link, where it delays nothing. So it gives way first; the rest is scaled.
    """
    firm = total(part for part in parts if part.resource != "cpu_wait")
    waited = total(parts) - firm
    if waited > 0:
        kept = min(1.0, max(0.0, work.wall_seconds - firm) / waited)
        parts = [part.scaled(kept) if part.resource == "cpu_wait" else part for part in parts]
    excess = total(parts) / work.wall_seconds
    if excess <= 1.0:
        return list(parts), ()
    notes: tuple[str, ...] = ()
    if excess > thresholds.BEYOND:  # less is within the error of the parts
        notes = (
            f"{work.kind}: the parts come to {excess:.2f} times the measured time and are scaled down to it "
            "(ceilings too low, or parts that overlap)",
        )
    return [part.scaled(1.0 / excess) for part in parts], notes
