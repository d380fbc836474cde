"""What the engine did in its busy time: steps with prompts in them, steps of decoding only, and what each is made of.

Two kinds of work share the engine. A step that computes prompt tokens is long and sends large messages; a step that
only decodes is short and sends small ones. A request feels both: while it decodes, prompts of others stall it. So the
busy time is split by kind first, each kind is taken apart by resource, and a request's time is put together from the
kinds it lived through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bottleneck.engine_signals import EngineFacts
from bottleneck.fit import (
    DEFAULT_BATCHED_TOKENS,
    allreduce_messages,
    bytes_read_per_token,
    flops_per_token,
    pipeline_messages,
)
from bottleneck.node_signals import NodeFacts, slower_by
from bottleneck.signals import Signals
from bottleneck.topology import Group

PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class Part:
    """Seconds of wall time of one kind of work that went to one resource."""

    resource: str
    seconds: float
    source: str
    node: str | None = None
    link: str | None = None


@dataclass
class Work:
    """One kind of work of one engine over the interval.

    Attributes
    ----------
    wall_seconds : float
        Busy time that went to steps of this kind.
    steps, tokens : float
        Engine steps of this kind and the tokens they computed.
    parts : list of Part
        What the wall time is made of; what they leave of `wall_seconds` is unexplained.
    """

    kind: str
    wall_seconds: float = 0.0
    steps: float = 0.0
    tokens: float = 0.0
    parts: list[Part] = field(default_factory=list)

    @property
    def explained_seconds(self) -> float:
        """Sum of the parts."""
        return math.fsum(part.seconds for part in self.parts)


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
    stalled = times.decode_seconds * times.stalled_share
    in_prompts, in_decode = times.prefill_seconds + stalled, times.decode_seconds - stalled
    busy = signals.busy_seconds
    # Pipeline stages overlap different batches: request time passes through them one after the other.
    prefill = Work(PREFILL, busy * in_prompts / (in_prompts + in_decode))
    decode = Work(DECODE, busy * in_decode / (in_prompts + in_decode))
    _count_steps(signals, facts, times, prefill, decode)
    for work in (prefill, decode):
        _take_apart(signals, group, work, (prefill, decode), times)
    times.work = {PREFILL: prefill, DECODE: decode}
    return times


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
        times = EngineTime(
            group, 0.0, first, max(0.0, client.latency_seconds - first), client.output_tokens, stalled, "client timings"
        )
        times.notes.append("the engine did not tell its phases: queueing is counted inside prefill")
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
    """Estimate the stalled share from a histogram of gaps: what its mean has above its median, if that is much."""
    median, mean = (facts.itl.quantile(0.5), facts.itl.mean) if facts.itl is not None else (None, None)
    if not median or not mean or mean < 1.3 * median:
        return 0.0
    return min(0.95, 1.0 - median / mean)


def _count_steps(signals: Signals, facts: EngineFacts, times: EngineTime, prefill: Work, decode: Work) -> None:
    client = signals.client
    # Counts of a window are those between two readings inside it; the busy time is the whole window's.
    scale = signals.span_seconds / facts.counted_seconds if facts.counted_seconds else 1.0
    requests = scale * facts.requests or (client.requests if client else 0) or 1.0
    prefill.tokens = scale * (facts.prompt_tokens or 0.0) or float(client.input_tokens if client else 0)
    # The first token of a request comes out of the step that computes its prompt.
    decode.tokens = max(0.0, scale * (facts.generation_tokens or times.tokens) - requests)
    gap = (client.itl_median_seconds if client else None) or (facts.itl.quantile(0.5) if facts.itl else None)
    counted = scale * (facts.steps or 0.0)
    decode.steps = decode.wall_seconds / gap if gap else counted
    budget = signals.topology.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS
    fewest = math.ceil(prefill.tokens / budget)
    prefill.steps = min(max(counted - decode.steps, fewest), max(requests, fewest)) if prefill.tokens else 0.0


def _take_apart(signals: Signals, group: Group, work: Work, both: tuple[Work, Work], times: EngineTime) -> None:
    """Fill a work's parts: the critical path is the slowest node plus the link.

    In a collective every rank waits for the slowest, so what nodes do side by side is not added up: the node with the
    most of its own work, throttling and waiting stands for all. Pipeline stages take turns, so there every node counts.
    """
    if work.wall_seconds <= 0:
        return
    local = [_local_parts(signals, group, node, both, both.index(work)) for node in group.nodes]
    if signals.topology.pipeline_parallel > 1 and len(group.nodes) > 1:
        chosen = [part for parts in local for part in parts]
    else:
        chosen = max(local, key=lambda parts: math.fsum(part.seconds for part in parts), default=[])
    work.parts = [
        part for part in (*chosen, *_link_parts(signals, group, work, both)) if part.seconds > 1e-6 * work.wall_seconds
    ]
    excess = work.explained_seconds / work.wall_seconds
    if excess > 1.0:
        if excess > 1.1:  # less is within the error of the parts
            times.notes.append(
                f"{work.kind}: the parts come to {excess:.2f} times the measured time and are scaled down to it "
                "(ceilings too low, or parts that overlap)"
            )
        work.parts = [
            Part(part.resource, part.seconds / excess, part.source, part.node, part.link) for part in work.parts
        ]


def _local_parts(signals: Signals, group: Group, node: str, both: tuple[Work, Work], index: int) -> list[Part]:
    facts, work = signals.nodes.get(node) or NodeFacts(node), both[index]
    held = [_held_parts(facts, both, each) for each in (0, 1)]
    rooms = []
    for each in (0, 1):
        taken = [*held[each], *_link_parts(signals, group, both[each], both)]
        rooms.append(max(0.0, both[each].wall_seconds - math.fsum(part.seconds for part in taken)))
    seconds, source = _compute(signals, group, facts, both, index, rooms)
    parts = [Part("compute", min(seconds, work.wall_seconds), source, node)] if seconds > 0 else []
    return parts + held[index]


def _held_parts(facts: NodeFacts, both: tuple[Work, Work], index: int) -> list[Part]:
    """Return what held a node back; it is not known by step, so each kind has it by its share of the busy time."""
    wall = both[index].wall_seconds
    shared = wall / max(both[0].wall_seconds + both[1].wall_seconds, 1e-12)
    found = []
    for resource, total, source in (
        ("throttled", facts.throttled_seconds, "samples: cgroup throttled time"),
        ("cpu_wait", facts.cpu_wait_seconds, "samples: run delay of the workers while other processes ran, and steal"),
    ):
        if total and total > 0:
            found.append(Part(resource, min(total * shared, wall), source, facts.node))
    return found


def lower_bound(signals: Signals, group: Group, facts: NodeFacts, work: Work) -> float:
    """Return the least time in seconds that a node's arithmetic of one kind of work takes at its ceilings.

    Roofline: the larger of operations over the measured matrix-multiply ceiling and weight bytes over the measured
    memory ceiling, both at the high end of their intervals. Attention and cache reads are left out, so it is a lower
    bound. 0 when it cannot be told.
    """
    profile, topology = signals.topology.profile, signals.topology
    if profile is None:
        return 0.0
    shape, quantization = profile.model.shape, profile.model.quantization
    tensor, pipeline = topology.tensor_parallel, topology.pipeline_parallel
    rank = group.nodes.index(facts.node) if facts.node in group.nodes else 0
    stage = min(rank * tensor * pipeline // max(1, len(group.nodes)) // tensor, pipeline - 1)
    decode = work.kind == DECODE
    operations = work.tokens * flops_per_token(shape, tensor, pipeline, stage, output_head=decode)
    read = work.steps * bytes_read_per_token(shape, quantization, tensor, pipeline, stage)
    by_compute = operations / facts.gemm_interval[1] if facts.gemm_interval else 0.0
    by_memory = read / facts.memory_read_interval[1] if facts.memory_read_interval else 0.0
    return max(by_compute, by_memory)


def _compute(
    signals: Signals, group: Group, facts: NodeFacts, both: tuple[Work, Work], index: int, rooms: list[float]
) -> tuple[float, str]:
    """Return a node's own work of one kind in seconds, and the source.

    A worker that sleeps while it waits shows its work as its user CPU time. The head's engine loop spins, so its CPU
    time shows nothing; under tensor parallelism it has the same arithmetic as its peers, done at its own speed. The
    roofline's lower bound holds for all.

    Parameters
    ----------
    index : int
        Which of `both` kinds is asked for.
    rooms : list of float
        What the link and the node's surroundings leave of each kind's wall time.
    """
    bounds = [lower_bound(signals, group, facts, each) for each in both]
    estimated = "estimated from the model's arithmetic and the node's ceilings: a lower bound"
    measured, source = _measured_cpu(signals, group, facts)
    if measured is None:
        return bounds[index], estimated
    weights = bounds if sum(bounds) > 0 else [each.wall_seconds for each in both]
    split = [measured * weight / max(sum(weights), 1e-12) for weight in weights]
    # What does not fit into one kind's time was the other's: the ratio of two lower bounds is only roughly right.
    overflow = max(0.0, split[1 - index] - rooms[1 - index])
    seconds = min(split[index] + overflow, max(rooms[index], 0.0))
    return (bounds[index], estimated) if bounds[index] > seconds else (seconds, source)


def _measured_cpu(signals: Signals, group: Group, facts: NodeFacts) -> tuple[float | None, str]:
    if not facts.spins:
        return facts.worker_user_seconds, "samples: user CPU time of the worker, which sleeps while it waits"
    if signals.topology.tensor_parallel < 2:
        return None, ""
    peers = [
        (peer, peer.worker_user_seconds)
        for name in group.nodes
        if (peer := signals.nodes.get(name)) is not None and not peer.spins and peer.worker_user_seconds is not None
    ]
    if not peers:
        return None, ""
    peer, seconds = max(peers, key=lambda pair: pair[1])
    # Only a difference beyond the probes' spread is one.
    speed = (1.0 - slower_by(peer, [facts])) / (1.0 - slower_by(facts, [peer]))
    return seconds * speed, f"user CPU time of its peer {peer.node}, which does the same arithmetic, by their ceilings"


def _link_parts(signals: Signals, group: Group, work: Work, both: tuple[Work, Work]) -> list[Part]:
    link, topology, profile = signals.link, signals.topology, signals.topology.profile
    if link is None or len(group.nodes) < 2:
        return []
    parts = []
    tokens = sum(each.tokens for each in both)
    # Every token's hidden state crosses the link the same number of times: bytes divide as tokens do.
    share = work.tokens / tokens if tokens > 0 else work.wall_seconds / sum(each.wall_seconds for each in both)
    sent = max((link.sent_bytes[node] for node in group.nodes if node in link.sent_bytes), default=None)
    source = f"samples: bytes sent / capacity ({link.capacity_source})"
    if sent is None and profile is not None:
        sent, source = _expected_bytes(signals, tokens), f"message arithmetic / capacity ({link.capacity_source})"
    if sent and link.capacity_bytes_per_second:
        parts.append(Part("link_transfer", sent * share / link.capacity_bytes_per_second, source, None, link.name))
    if profile is not None and link.message_latency_seconds:
        messages = 0
        if topology.tensor_parallel > 1:
            messages += allreduce_messages(profile.model.shape, 1, topology.tensor_parallel).count
        messages += pipeline_messages(profile.model.shape, 1, topology.pipeline_parallel).count
        seconds = work.steps * messages * link.message_latency_seconds
        origin = f"{messages} messages a step x {link.message_latency_source}"
        parts.append(Part("link_latency", min(seconds, work.wall_seconds), origin, None, link.name))
    return parts


def _expected_bytes(signals: Signals, tokens: float) -> float:
    """Return the bytes that the busiest rank sends for some tokens: a ring all-reduce sends 2 (n - 1) / n of each."""
    topology, shape = signals.topology, signals.topology.profile.model.shape
    ranks = topology.tensor_parallel
    reduced = allreduce_messages(shape, 1, ranks)
    passed = pipeline_messages(shape, 1, topology.pipeline_parallel)
    per_token = reduced.count * reduced.message_bytes * 2 * (ranks - 1) / max(ranks, 1)
    per_token += (passed.message_bytes if passed.count else 0) / max(ranks, 1)
    return tokens * per_token
