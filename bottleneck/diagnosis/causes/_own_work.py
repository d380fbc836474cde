"""Score a node's own work of one kind: prompts, reads of decoding, arithmetic of decoding.

A faster node mends all three, so against the other causes they compete together; among themselves the largest gives the
name.
"""

from __future__ import annotations

from collections.abc import Sequence

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL
from bottleneck.diagnosis.causes._restraint import restrained_share, standing_out
from bottleneck.diagnosis.causes.base import Finding, Term
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import Evidence, line, percent
from bottleneck.diagnosis.observations.peers import peers_of, slower_by
from bottleneck.runs.topology import Group


def own_work(context: Context, kind: str, resources: tuple[str, ...], words: str) -> Finding | None:
    """Return the nodes' own work of one kind of steps, bound by some resources.

    Parameters
    ----------
    context
        Observations, ledger and shares of the run.
    kind
        `PREFILL` or `DECODE`.
    resources
        Keys of the ledger: `compute`, `memory`, `host`.
    words
        The resource in words, for the evidence.
    """
    own = context.share_of_kind(kind, *resources)
    whole = context.share_of_kind(kind, "compute", "memory")
    # Without any work that is seen, prompts are arithmetic and decoding is reads.
    nature = own / whole if whole > 0 else float(kind == PREFILL or resources == ("memory",))
    # What a slow node's work takes longer than its peers' would is the straggler's.
    slower = standing_out(context).slower
    direct = own * max(0.0, 1.0 - slower / context.work) if context.work > 0 else 0.0
    alike = nature * _throttled_alike(context, kind)
    eliminated, reason = _by_elimination(context)
    unexplained, left = context.share("unexplained"), context.share_of_kind(kind, "unexplained")
    inferred = nature * eliminated * (left / unexplained if unexplained > 0 else 0.0)
    score = min(1.0, direct + alike + inferred)
    if score <= 0:
        return None
    node = _busiest(context)
    evidence = []
    if direct > 0:
        text = f"{words}: the work of {node or 'the server'} takes {percent(direct)} of the time in steps"
        evidence.append(line(text, direct, "1", context.sources(*resources)))
    evidence += _alike_lines(context)
    if alike > thresholds.LEAST_SHOWN:
        evidence.append(line(f"{percent(alike)} more is lack of CPU that every node has alike", alike, "1", "samples"))
    if inferred > 0:
        text = (
            f"{percent(left)} of the time in steps is not measured directly; {reason}, "
            f"so {percent(inferred)} counts as the node's own work"
        )
        evidence.append(line(text, inferred, "1", "elimination"))
    return Finding(
        score,
        node,
        inferred=inferred / score,
        evidence=(*evidence, *_efficiency_lines(context, kind), *_exclusion_lines(context)),
        terms=(
            Term(f"{kind}: {' and '.join(resources)} in the ledger", direct),
            Term("throttled on every node alike", alike),
            Term("unexplained, left to the node", inferred),
        ),
    )


def _throttled_alike(context: Context, kind: str) -> float:
    """Return the share of steps of a kind in which a quota throttled all nodes alike: it makes them small, not slow.

    What a quota as large as the promised cores throttles counts for each node too.
    """
    nodes = list(context.seen.nodes.values())
    throttled = context.share("throttled")
    if throttled <= 0:
        return 0.0
    common = throttled
    if len(nodes) > 1:
        common = min(throttled, *(context.seen.busy_share_of(facts.throttled_seconds) for facts in nodes))
        common = min(common, *(restrained_share(context, facts) for facts in nodes))
    return common * context.share_of_kind(kind, "throttled") / throttled


def _alike_lines(context: Context) -> list[Evidence]:
    nodes = list(context.seen.nodes.values())
    rates = [facts.gemm_flops_per_second for facts in nodes if facts.gemm_flops_per_second]
    if len(rates) < 2 or any(slower_by(facts, peers_of(facts, nodes)) for facts in nodes):
        return []
    ratio = min(rates) / max(rates)
    words = (
        f"by their ceilings no node is slower than its peers (the lowest is {percent(ratio)} of the highest, within "
        "the probes' spread): every node limits, not this one alone"
    )
    return [line(words, ratio, "1", "ceilings: matrix multiplication")]


def _efficiency_lines(context: Context, kind: str) -> list[Evidence]:
    """Say how near the steps come to the ceilings: how much is physics, how much the kernels."""
    found = []
    for work in context.ledger.work:
        if work.kind == kind and work.floor_seconds and work.wall_seconds > 0:
            share = work.floor_seconds / work.wall_seconds
            words = f"at the ceilings its bytes and operations would take {percent(share)} of the time of these steps"
            made_of = f" ({work.floor_words})" if work.floor_words else ""
            found.append(line(words + made_of, share, "1", work.floor_source))
    return found


def _exclusion_lines(context: Context) -> list[Evidence]:
    found, link = [], context.seen.link
    waiting = [engine.waiting_share for engine in context.seen.engines if engine.waiting_share is not None]
    if waiting and max(waiting) < thresholds.LEAST_SHOWN:
        found.append(line("requests hardly waited", max(waiting), "1", "engine metrics: num_requests_waiting"))
    if link is not None and link.full_share is not None and link.full_share < thresholds.LEAST_SHOWN:
        words = f"{link.name} was near its capacity only {percent(link.full_share)} of the busy time"
        found.append(line(words, link.full_share, "1", "samples: bytes sent"))
    return found


def _busiest(context: Context) -> str | None:
    """Return the node with the most own work in the ledger, among those of the largest group."""
    groups: Sequence[Group] = context.seen.topology.groups
    group = max(groups, key=lambda each: len(each.nodes), default=None)
    if group is None:
        return None
    own = dict.fromkeys(group.nodes, 0.0)
    for entry in context.ledger.entries:
        if entry.resource in ("compute", "memory") and entry.node in own:
            own[entry.node] += entry.seconds
    return max(own, key=lambda name: own[name], default=None) or group.head or None


def _by_elimination(context: Context) -> tuple[float, str]:
    """Return how much of the unexplained time counts as a node's own work, and why."""
    unexplained, seen = context.share("unexplained"), context.seen
    # Time outside the engine is nobody's step.
    if (
        unexplained <= 0
        or context.ledger.phase(PREFILL) + context.ledger.phase(DECODE) <= 0
        or seen.topology.unwatched_link
    ):
        return 0.0, ""
    if seen.topology.world < 2:
        return thresholds.LEFT_TO_ONE * unexplained, "one node has no link to wait for"
    asleep = [facts.asleep_share for facts in seen.nodes.values() if facts.asleep_share is not None]
    if not asleep:
        return 0.0, ""
    # The sleepiest worker says how much of the time was a wait for others.
    awake = 1.0 - max(asleep)
    return (
        unexplained * awake / 2,
        f"the workers were awake for at least {percent(awake)} of it",
    )
