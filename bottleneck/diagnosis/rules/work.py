"""Rules for a node's own work: the arithmetic of prompts, the reads of decoding, the arithmetic of decoding.

A faster node mends all three, so against the other classes they compete together (`judge`); among themselves the
largest gives the name.
"""

from __future__ import annotations

from bottleneck.diagnosis.attribution.steps import DECODE, PREFILL
from bottleneck.diagnosis.evidence import Candidate, Case, percent
from bottleneck.diagnosis.observations.node_signals import slower_by
from bottleneck.diagnosis.rules.straggler import crowded_share, held_share, standing_out
from bottleneck.runs.topology import Group

# How much of the unexplained time in steps counts as own work: one node alone, and one of several.
LEFT_TO_ONE, LEFT_TO_SEVERAL = 0.7, 0.5


def score_prefill_compute(case: Case) -> Candidate:
    """Steps with prompts in them are what the time goes to."""
    return _score("prefill_compute", case, PREFILL, ("compute", "memory"))


def score_decode_memory_bandwidth(case: Case) -> Candidate:
    """Steps of decoding only, whose reads outlast their arithmetic."""
    return _score("decode_memory_bandwidth", case, DECODE, ("memory",))


def score_decode_compute(case: Case) -> Candidate:
    """Steps of decoding only, whose arithmetic outlasts their reads."""
    return _score("decode_compute", case, DECODE, ("compute",))


def _score(name: str, case: Case, kind: str, resources: tuple[str, ...]) -> Candidate:
    found, signals, ledger = Candidate(name), case.signals, case.ledger
    own = case.share_of_kind(kind, *resources)
    whole = case.share_of_kind(kind, "compute", "memory")
    nature = own / whole if whole > 0 else float(kind == PREFILL or name == "decode_memory_bandwidth")
    # What a slow node's work takes longer than its peers' would is the straggler's.
    direct = own * max(0.0, 1.0 - standing_out(case)[1] / case.work) if case.work > 0 else 0.0
    # What holds all nodes back alike (a quota, contention) makes the nodes small, not one of them slow.
    nodes = list(signals.nodes.values())
    held = case.share("throttled", "cpu_wait")
    common = held if len(nodes) == 1 else min(held, min((held_share(case, facts) for facts in nodes), default=0.0))
    common = max(0.0, common - crowded_share(case))
    alike = nature * common * (case.share_of_kind(kind, "throttled", "cpu_wait") / held if held > 0 else 0.0)
    eliminated, reason = _by_elimination(case)
    unexplained = case.share("unexplained")
    left = case.share_of_kind(kind, "unexplained")
    inferred = nature * eliminated * (left / unexplained if unexplained > 0 else 0.0)
    found.score = min(1.0, direct + alike + inferred)
    if found.score <= 0:
        return found
    found.inferred = inferred / found.score
    group = max(signals.topology.groups, key=lambda each: len(each.nodes), default=None)
    found.node = _slowest(case, group) if group is not None else None
    found.gain_share = min(1.0, found.score * case.norm)
    if direct > 0:
        sources = sorted({entry.source for entry in ledger.entries if entry.resource in resources})
        found.say(
            f"{_WORDS[name]} of {found.node or 'the server'} takes {percent(direct)} of the time in steps",
            direct,
            "1",
            "ledger: " + "; ".join(sources),
        )
    _say_alike(found, case)
    if alike > 0.02:
        found.say(f"{percent(alike)} more is lack of CPU that every node has alike", alike, "1", "samples")
    if inferred > 0:
        found.say(
            f"{percent(left)} of the time in steps is not measured directly; {reason}, "
            f"so {percent(inferred)} counts as the node's own work",
            inferred,
            "1",
            "elimination",
        )
    _say_efficiency(found, case, kind)
    _say_not_others(found, case)
    return found


_WORDS = {
    "prefill_compute": "computing prompts: the work",
    "decode_memory_bandwidth": "decoding, bound by reads: the work",
    "decode_compute": "decoding, bound by arithmetic: the work",
}


def _say_alike(found: Candidate, case: Case) -> None:
    nodes = list(case.signals.nodes.values())
    speeds = [facts.gemm_flops_per_second for facts in nodes if facts.gemm_flops_per_second]
    if len(speeds) > 1 and not any(slower_by(facts, [peer for peer in nodes if peer is not facts]) for facts in nodes):
        found.say(
            f"by their ceilings no node is slower than its peers (the lowest is {percent(min(speeds) / max(speeds))} "
            "of the highest, within the probes' spread): every node limits, not this one alone",
            min(speeds) / max(speeds),
            "1",
            "ceilings: matrix multiplication",
        )


def _say_efficiency(found: Candidate, case: Case, kind: str) -> None:
    """Say how near the steps come to the ceilings: how much is physics, how much the kernels."""
    for work in case.ledger.work:
        if work.kind != kind or not work.floor_seconds or work.wall_seconds <= 0:
            continue
        share = work.floor_seconds / work.wall_seconds
        found.say(
            f"at the ceilings its bytes and operations would take {percent(min(share, 9.99))} of the time that these "
            f"steps took" + (f" ({work.floor_words})" if work.floor_words else ""),
            share,
            "1",
            work.floor_source,
        )


def _say_not_others(found: Candidate, case: Case) -> None:
    signals = case.signals
    waiting = [engine.waiting_share for engine in signals.engines if engine.waiting_share is not None]
    if waiting and max(waiting) < 0.05:
        found.say("requests hardly waited", max(waiting), "1", "engine metrics: num_requests_waiting")
    if signals.link is not None and signals.link.full_share is not None and signals.link.full_share < 0.1:
        found.say(
            f"{signals.link.name} was near its capacity only {percent(signals.link.full_share)} of the busy time",
            signals.link.full_share,
            "1",
            "samples: bytes sent",
        )


def _slowest(case: Case, group: Group) -> str | None:
    """Return the node with the most own work in the ledger, among a group's."""
    own = dict.fromkeys(group.nodes, 0.0)
    for entry in case.ledger.entries:
        if entry.resource in ("compute", "memory") and entry.node in own:
            own[entry.node] += entry.seconds
    node = max(own, key=lambda name: own[name], default=None)
    return node or group.head or None


def _by_elimination(case: Case) -> tuple[float, str]:
    """Return how much of the unexplained time counts as a node's own work, and why."""
    unexplained, signals = case.share("unexplained"), case.signals
    # Time outside the engine is nobody's step.
    inside = case.ledger.phase("prefill") + case.ledger.phase("decode")
    if unexplained <= 0 or inside <= 0:
        return 0.0, ""
    if signals.topology.world < 2:
        return LEFT_TO_ONE * unexplained, "one node has no link to wait for"
    asleep = [facts.asleep_share for facts in signals.nodes.values() if facts.asleep_share is not None]
    if not asleep:
        return 0.0, ""
    # The sleepiest worker says how much of the time was a wait for others.
    awake = 1.0 - max(asleep)
    return LEFT_TO_SEVERAL * unexplained * awake, f"the workers were awake for at least {percent(awake)} of it"
