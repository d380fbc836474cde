"""Compare nodes with their peers, by their ceilings and by what a run itself shows of them.

Only local evidence tells a slow node from its peers: in a collective every rank looks as slow as the slowest. And a
probe that something disturbed, another virtual machine on the same core for one, takes a node for slow that is not:
where a run contradicts the ceilings, the lower ones count for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.observations.engine import EngineFacts
from bottleneck.diagnosis.observations.issues import Issue, Scope
from bottleneck.diagnosis.observations.node import NodeFacts, Span
from bottleneck.runs.topology import Group, Topology

# A rate in its unit, and the interval that goes with it.
Ceiling = tuple[float | None, Span | None]


def _gemm(facts: NodeFacts) -> Ceiling:
    return facts.gemm_flops_per_second, facts.gemm_interval


def _memory(facts: NodeFacts) -> Ceiling:
    return facts.memory_read_bytes_per_second, facts.memory_read_interval


_CEILINGS = (("gemm", _gemm), ("memory", _memory))


def slower_in(facts: NodeFacts, peers: Sequence[NodeFacts]) -> tuple[str, float]:
    """Return what a node is slower in than its peers by its ceilings, `gemm` or `memory`, and how much, 0 to 1.

    Two medians of a probe on a busy machine differ without any cause, so a node counts as slower only when its
    interval lies wholly below its peers' and its median well below theirs.

    Parameters
    ----------
    facts : NodeFacts
        Facts of the node.
    peers : Sequence[NodeFacts]
        Facts of the other nodes.

    Returns
    -------
    tuple[str, float]
        0 where it is not slower, or too little was probed.
    """
    what, slower = "gemm", 0.0
    for name, ceiling in _CEILINGS:
        own, reach = ceiling(facts)
        others = [rate for rate, _ in map(ceiling, peers) if rate]
        lows = [interval[0] for _, interval in map(ceiling, peers) if interval]
        if own and others and reach and lows and reach[1] < median(lows) and own < thresholds.SLOWER * median(others):
            by = 1.0 - own / median(others)
            if by > slower:
                what, slower = name, by
    return what, slower


def slower_by(facts: NodeFacts, peers: Sequence[NodeFacts]) -> float:
    """Return how much slower than its peers a node is by its ceilings, 0 to 1; see `slower_in`.

    Parameters
    ----------
    facts, peers : NodeFacts
        As in `slower_in`.
    """
    return slower_in(facts, peers)[1]


def peers_of(facts: NodeFacts, nodes: Iterable[NodeFacts]) -> list[NodeFacts]:
    """Return the other nodes.

    Parameters
    ----------
    facts : NodeFacts
        Facts of the node.
    nodes : Iterable[NodeFacts]
        Facts of all nodes, it among them.

    Returns
    -------
    list[NodeFacts]
        In the order of `nodes`.
    """
    return [peer for peer in nodes if peer.node != facts.node]


def levelled(
    nodes: Mapping[str, NodeFacts], engines: Sequence[EngineFacts], topology: Topology
) -> tuple[dict[str, NodeFacts], list[Issue]]:
    """Return the nodes as alike where the run contradicts the ceilings by which one is slower, and what was said of it.

    The lower ceilings count for all nodes of the group, or for all replicas of one node.

    Parameters
    ----------
    nodes
        Node to what was measured of it.
    engines
        What was read of each engine.
    topology
        Who the nodes of the deployment are.
    """
    found, issues = dict(nodes), []
    for name in nodes:
        facts, everyone = found[name], list(found.values())
        slower = slower_by(facts, peers_of(facts, everyone))
        group = next((each for each in topology.groups if name in each.nodes), None)
        if slower <= 0 or group is None:
            continue
        contradiction = _contradiction(found, engines, topology, group, facts, slower)
        if contradiction is None:
            continue
        members = [each for each in everyone if each.node in group.nodes] if len(group.nodes) > 1 else everyone
        found |= {each.node: each for each in _level(members)}
        issues.append(
            Issue(
                thresholds.SLIGHT,
                f"by the ceilings {name} is {slower:.0%} slower than its peers, but {contradiction}: the lower "
                "ceilings count for all of them; cluster probe measures anew",
                Scope.STEPS,
            )
        )
    return found, issues


def _contradiction(
    nodes: Mapping[str, NodeFacts],
    engines: Sequence[EngineFacts],
    topology: Topology,
    group: Group,
    facts: NodeFacts,
    slower: float,
) -> str | None:
    """Return what in the run speaks against a node being slower by this share; None if nothing does."""
    if len(group.nodes) > 1:
        return _by_sleep(nodes, topology, group, facts, slower)
    own = next((engine for engine in engines if engine.head == group.head), None)
    others = [engine for engine in engines if engine.head != group.head and engine.requests > 0]
    if own is None or not others:
        return None
    if own.requests <= 0:
        return "it had no request to answer"
    longer = [pace / median(theirs) for pace, theirs in _paces(own, others) if median(theirs) > 0]
    if not longer or max(longer) >= 1.0 + (1.0 / (1.0 - slower) - 1.0) / 2:
        return None
    return f"its requests took at most {max(longer) - 1.0:+.0%} longer a token"


def _by_sleep(
    nodes: Mapping[str, NodeFacts], topology: Topology, group: Group, facts: NodeFacts, slower: float
) -> str | None:
    """Return what speaks against it in a group whose nodes wait for each other, by how long its workers slept."""
    machines = getattr(topology.profile, "nodes", None) or {}
    kinds = {getattr(getattr(machines.get(name), "accelerator", None), "kind", "unknown") for name in group.nodes}
    if kinds != {"cpu"}:
        return None  # beside an accelerator a worker may spin while it waits
    others = [nodes[name] for name in group.nodes if name != facts.node and name in nodes]
    waits = [peer.asleep_share for peer in others if peer.asleep_share is not None]
    if topology.pipeline_parallel < 2:
        # Every step ends together: who is faster sleeps as much of it as it is faster.
        if not waits or max(waits) >= slower / 2:
            return None
        return f"no worker slept for more than {max(waits):.0%} of the time to wait for it"
    # Stages take turns: each is awake for its part of the way through all of them.
    longer = 1.0 / (1.0 - slower)
    alike, whole = 1.0 / len(group.nodes), longer + len(others)
    if facts.asleep_share is not None:
        awake, claimed = 1.0 - facts.asleep_share, longer / whole
        refuted = awake < alike + (claimed - alike) / 2
        return f"its worker was awake for {awake:.0%} of the time only" if refuted else None
    if not waits:
        return None
    awake, claimed = 1.0 - min(waits), 1.0 / whole
    refuted = awake > alike + (claimed - alike) / 2
    return f"its peer was awake for {awake:.0%} of the time" if refuted else None


def _paces(own: EngineFacts, others: Sequence[EngineFacts]) -> list[tuple[float, list[float]]]:
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


def _level(nodes: Sequence[NodeFacts]) -> list[NodeFacts]:
    """Return the nodes with the lowest of their ceilings each, where they have one."""
    return [
        replace(
            lowest,
            gemm_flops_per_second=facts.gemm_flops_per_second and lowest.gemm_flops_per_second,
            gemm_interval=facts.gemm_interval and lowest.gemm_interval,
            memory_read_bytes_per_second=facts.memory_read_bytes_per_second and lowest.memory_read_bytes_per_second,
            memory_read_interval=facts.memory_read_interval and lowest.memory_read_interval,
        )
        for facts, lowest in ((facts, with_lowest_ceilings(facts, nodes)) for facts in nodes)
    ]


def with_lowest_ceilings(facts: NodeFacts, nodes: Sequence[NodeFacts]) -> NodeFacts:
    """Return a node with the lowest of some nodes' ceilings in the place of its own.

    Parameters
    ----------
    facts : NodeFacts
        Facts of the node.
    nodes : Sequence[NodeFacts]
        Facts of the nodes whose ceilings are taken, it among them or not.

    Returns
    -------
    NodeFacts
        With each ceiling's interval; a ceiling that none of the nodes has stays the node's own.
    """
    gemm, gemm_interval = _lowest(nodes, _gemm) or _gemm(facts)
    read, read_interval = _lowest(nodes, _memory) or _memory(facts)
    return replace(
        facts,
        gemm_flops_per_second=gemm,
        gemm_interval=gemm_interval,
        memory_read_bytes_per_second=read,
        memory_read_interval=read_interval,
    )


def _lowest(nodes: Sequence[NodeFacts], ceiling: Callable[[NodeFacts], Ceiling]) -> Ceiling | None:
    known = [(value, interval) for value, interval in map(ceiling, nodes) if value]
    return min(known, key=lambda each: each[0], default=None)
