"""Whether nodes are as unlike as their ceilings say. What a run itself shows of it counts for more.

A probe that something disturbed, another virtual machine on the same core for one, tells a node as slow that is not.
"""

from __future__ import annotations

from statistics import median

from bottleneck.diagnosis.observations.engine_signals import EngineFacts
from bottleneck.diagnosis.observations.node_signals import NodeFacts, slower_by
from bottleneck.diagnosis.observations.signals import Signals
from bottleneck.diagnosis.observations.weakness import STEP_CLASSES, Weakness
from bottleneck.runs.topology import Group

# A difference of which less than this share shows is none.
SHOWS = 0.5


def doubt_speeds(signals: Signals) -> None:
    """Take nodes as alike where a run contradicts the ceilings by which one is slower: the lower ones count for all.

    The nodes are those of the group, or of all replicas of one node.
    """
    # While an engine starts nobody waits for anybody.
    nodes = [] if signals.start else list(signals.nodes.values())
    for facts in nodes:
        peers = [peer for peer in nodes if peer is not facts]
        slower = slower_by(facts, peers)
        group = next((each for each in signals.topology.groups if facts.node in each.nodes), None)
        if slower <= 0 or group is None or (contradiction := _contradiction(signals, group, facts, slower)) is None:
            continue
        _level([each for each in nodes if each.node in group.nodes] if len(group.nodes) > 1 else nodes)
        signals.weaknesses.append(
            Weakness(
                0.9,
                f"by the ceilings {facts.node} is {slower:.0%} slower than its peers, but {contradiction}: the lower "
                "ceilings count for all of them; cluster probe measures anew",
                STEP_CLASSES,
            )
        )


def _contradiction(signals: Signals, group: Group, facts: NodeFacts, slower: float) -> str | None:
    """Return what in the run speaks against a node being slower by this share; None if nothing does."""
    if len(group.nodes) > 1:
        return _by_sleep(signals, group, facts, slower)
    own = next((engine for engine in signals.engines if engine.head == group.head), None)
    others = [engine for engine in signals.engines if engine.head != group.head and engine.requests > 0]
    if own is None or not others:
        return None
    if own.requests <= 0:
        return "it had no request to answer"
    longer = [pace / median(theirs) for pace, theirs in _paces(own, others) if median(theirs) > 0]
    if not longer or max(longer) >= 1.0 + SHOWS * (1.0 / (1.0 - slower) - 1.0):
        return None
    return f"its requests took at most {max(longer) - 1.0:+.0%} longer a token"


def _by_sleep(signals: Signals, group: Group, facts: NodeFacts, slower: float) -> str | None:
    """Return what speaks against it in a group whose nodes wait for each other, by how long its workers slept."""
    machines = getattr(signals.topology.profile, "nodes", None) or {}
    kinds = {getattr(getattr(machines.get(name), "accelerator", None), "kind", "unknown") for name in group.nodes}
    if kinds != {"cpu"}:
        return None  # beside an accelerator a worker may spin while it waits
    others = [peer for name in group.nodes if name != facts.node and (peer := signals.nodes.get(name)) is not None]
    waits = [peer.asleep_share for peer in others if peer.asleep_share is not None]
    if signals.topology.pipeline_parallel < 2:
        # Every step ends together: who is faster sleeps as much of it as it is faster.
        if not waits or max(waits) >= SHOWS * slower:
            return None
        return f"no worker slept for more than {max(waits):.0%} of the time to wait for it"
    # Stages take turns: each is awake for its part of the way through all of them.
    longer = 1.0 / (1.0 - slower)
    alike, whole = 1.0 / len(group.nodes), longer + len(others)
    if facts.asleep_share is not None:
        awake, claimed = 1.0 - facts.asleep_share, longer / whole
        refuted = awake < alike + SHOWS * (claimed - alike)
        return f"its worker was awake for {awake:.0%} of the time only" if refuted else None
    if not waits:
        return None
    awake, claimed = 1.0 - min(waits), 1.0 / whole
    return f"its peer was awake for {awake:.0%} of the time" if awake > alike + SHOWS * (claimed - alike) else None


def _paces(own: EngineFacts, others: list[EngineFacts]) -> list[tuple[float, list[float]]]:
    """Return the seconds a token of prompts, and one of answers, of an engine and of the others."""
    found = []
    for kind in (_prefill_pace, _decode_pace):
        pace = kind(own)
        theirs = [other for each in others if (other := kind(each)) is not None]
        if pace is not None and theirs:
            found.append((pace, theirs))
    return found


def _prefill_pace(engine: EngineFacts) -> float | None:
    if not engine.prefill_seconds or not engine.prompt_tokens:
        return None
    return engine.prefill_seconds / engine.prompt_tokens


def _decode_pace(engine: EngineFacts) -> float | None:
    # The first token of each request is its prefill's.
    tokens = (engine.generation_tokens or 0.0) - engine.requests
    return engine.decode_seconds / tokens if engine.decode_seconds and tokens > 0 else None


def _level(nodes: list[NodeFacts]) -> None:
    for value, interval in (
        ("gemm_flops_per_second", "gemm_interval"),
        ("memory_read_bytes_per_second", "memory_read_interval"),
    ):
        known = [facts for facts in nodes if getattr(facts, value)]
        if known:
            lowest = min(known, key=lambda facts: float(getattr(facts, value)))
            for facts in known:
                setattr(facts, interval, getattr(lowest, interval))
                setattr(facts, value, getattr(lowest, value))
