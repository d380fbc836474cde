"""Rules for what makes the engine's steps slow: a node's own work, the link's bandwidth, one slow node."""

from __future__ import annotations

from bottleneck.evidence import Candidate, Case, percent
from bottleneck.node_signals import NodeFacts, slower_by
from bottleneck.topology import Group

# One node must stand out from its peers by this share of the busy time to be a straggler.
STANDS_OUT = 0.1


def held_share(case: Case, facts: NodeFacts) -> float:
    """Return the share of the busy time in which a node's surroundings held its worker back, 0 to 1.

    Throttling by a quota as large as the cores the node was promised is the node's own work running into its size,
    not something that holds it back.
    """
    throttled = facts.throttled_seconds or 0.0
    if facts.quota_cores is not None and facts.cores is not None and not facts.restricted:
        throttled = 0.0
    return case.busy_share_of(throttled + (facts.cpu_wait_seconds or 0.0))


def _excess(case: Case, group: list[NodeFacts], facts: NodeFacts) -> tuple[float, float]:
    """Return how far a node stands out: by what holds it back, and by lower ceilings; shares of the busy time."""
    peers = [peer for peer in group if peer is not facts]
    if not peers:
        return 0.0, 0.0
    held = held_share(case, facts) - max(held_share(case, peer) for peer in peers)
    # Of its compute time, what it would save at its peers' speed.
    return max(0.0, held), slower_by(facts, peers) * case.share("compute")


def _standing_out(case: Case) -> tuple[float, float, NodeFacts | None]:
    """Return how far the slowest node stands out, by what holds it back and by its ceilings, and the node."""
    nodes = list(case.signals.nodes.values())
    best: tuple[float, float, NodeFacts | None] = (0.0, 0.0, None)
    for facts in nodes:
        held, slower = _excess(case, nodes, facts)
        if held + slower > best[0] + best[1]:
            best = (held, slower, facts)
    return best


def score_straggler(case: Case) -> Candidate:
    """One node is slower than its peers, by evidence of its own."""
    found = Candidate("straggler")
    nodes = list(case.signals.nodes.values())
    held, slower, slow = _standing_out(case)
    total = held + slower
    if slow is None or total < STANDS_OUT:
        return found
    steps = (case.ledger.phase("prefill") + case.ledger.phase("decode")) / case.norm if case.ledger.entries else 1.0
    found.node, found.score = slow.node, min(1.0, held * steps + slower)
    found.gain_share = found.score
    peers = [peer for peer in nodes if peer is not slow]
    if held > 0:
        _say_held(found, case, slow, peers)
    if slower > 0:
        found.say(
            f"{slow.node} is slower than its peers by its own ceilings: "
            f"{percent(slower / max(case.share('compute'), 1e-9))} less than their median",
            slower,
            "1",
            "ceilings",
        )
    for peer in peers:
        if peer.asleep_share is not None and peer.asleep_share > 0.2:
            found.say(
                f"the worker of its peer {peer.node} slept {percent(peer.asleep_share)} of the busy time",
                peer.asleep_share,
                "1",
                "samples: CPU time of the worker",
            )
    return found


def _say_held(found: Candidate, case: Case, slow: NodeFacts, peers: list[NodeFacts]) -> None:
    throttled = case.busy_share_of(slow.throttled_seconds)
    others = max((case.busy_share_of(peer.throttled_seconds) for peer in peers), default=0.0)
    if throttled > 0.01:
        quota = f" (quota {slow.quota_cores:g} cores)" if slow.quota_cores is not None else ""
        found.say(
            f"{slow.node} was throttled {percent(throttled)} of the busy time{quota}, "
            f"its peers at most {percent(others)}",
            throttled,
            "1",
            "samples: cgroup throttled time",
        )
    waited = case.busy_share_of(slow.cpu_wait_seconds)
    others = max((case.busy_share_of(peer.cpu_wait_seconds) for peer in peers), default=0.0)
    if waited > 0.01:
        found.say(
            f"workers on {slow.node} were ready to run but had no core {percent(waited)} of the busy time, "
            f"on its peers at most {percent(others)}",
            waited,
            "1",
            "samples: run delay while other processes ran, and steal",
        )


def score_link_bandwidth(case: Case) -> Candidate:
    """Bytes between the nodes take a large share of the steps."""
    found, link = Candidate("link_bandwidth"), case.signals.link
    if link is None:
        return found
    found.link, found.score = link.name, case.share("link_transfer")
    found.gain_share = case.ledger.of("link_transfer")
    found.say(f"bytes over {link.name} take {percent(found.score)} of the time in steps", found.score, "1", "ledger")
    if link.busiest_bytes is not None and link.capacity_bytes_per_second:
        found.say(
            f"{link.busiest_bytes / 1e6:.4g} MB crossed {link.name} one way, which carries "
            f"{link.capacity_bytes_per_second / 1e6:.4g} MB/s",
            link.busiest_bytes,
            "B",
            f"samples; capacity: {link.capacity_source}",
        )
    if link.full_share is not None:
        found.say(
            f"{link.name} ran at 80 % of its capacity or more for {percent(link.full_share)} of the busy time",
            link.full_share,
            "1",
            "samples: bytes sent",
        )
    asleep = [facts for facts in case.signals.nodes.values() if facts.asleep_share is not None]
    for facts in asleep:
        found.say(
            f"the worker on {facts.node} slept {percent(facts.asleep_share or 0)} of the busy time",
            facts.asleep_share,
            "1",
            "samples: CPU time of the worker",
        )
    if asleep and found.score >= 0.2 and max(facts.asleep_share or 0 for facts in asleep) < 0.5 * found.score:
        # Workers that compute all the time do not wait for a link: the two measurements contradict each other.
        found.score *= 0.6
        found.say("yet no worker slept that long, which speaks against the link", None, "", "samples")
    return found


def _slowest(case: Case, group: Group) -> str | None:
    """Return the node with the most compute in the ledger, among a group's."""
    own = dict.fromkeys(group.nodes, 0.0)
    for entry in case.ledger.entries:
        if entry.resource == "compute" and entry.node in own:
            own[entry.node] += entry.seconds
    node = max(own, key=lambda name: own[name], default=None)
    return node or group.head or None


def score_compute(case: Case) -> Candidate:
    """A node's own work is what the steps take."""
    found, signals = Candidate("compute"), case.signals
    # What a slow node's compute takes longer than its peers' would is the straggler's.
    direct = max(0.0, case.share("compute") - _standing_out(case)[1])
    groups = signals.topology.groups
    nodes = list(signals.nodes.values())
    # What holds all nodes back alike (a quota, contention) makes the nodes small, not one of them slow.
    common = min((held_share(case, facts) for facts in nodes), default=0.0)
    own_size = case.share("throttled", "cpu_wait")
    alike = own_size if len(nodes) == 1 else min(own_size, common)
    unexplained, reason = _by_elimination(case)
    found.score = min(1.0, direct + alike + unexplained)
    if found.score <= 0:
        return found
    found.inferred = unexplained / found.score
    group = max(groups, key=lambda each: len(each.nodes), default=None)
    found.node = _slowest(case, group) if group is not None else None
    found.gain_share = min(1.0, found.score * case.norm)
    if direct > 0:
        sources = sorted({entry.source for entry in case.ledger.entries if entry.resource == "compute"})
        found.say(
            f"a node's own work takes {percent(direct)} of the time in steps (slowest: {found.node})",
            direct,
            "1",
            "ledger: " + "; ".join(sources),
        )
    speeds = [facts.gemm_flops_per_second for facts in nodes if facts.gemm_flops_per_second]
    if len(speeds) > 1 and not any(slower_by(facts, [peer for peer in nodes if peer is not facts]) for facts in nodes):
        found.say(
            f"by their ceilings no node is slower than its peers (the lowest is {percent(min(speeds) / max(speeds))} "
            "of the highest, within the probes' spread): every node limits, not this one alone",
            min(speeds) / max(speeds),
            "1",
            "ceilings: matrix multiplication",
        )
    if alike > 0.02:
        found.say(f"{percent(alike)} more is lack of CPU that every node has alike", alike, "1", "samples")
    if unexplained > 0:
        found.say(
            f"{percent(case.share('unexplained'))} of the time in steps is not measured directly; {reason}, "
            f"so {percent(unexplained)} counts as the node's own work",
            unexplained,
            "1",
            "elimination",
        )
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
    return found


def _by_elimination(case: Case) -> tuple[float, str]:
    """Return how much of the unexplained time counts as a node's own work, and why."""
    unexplained, signals = case.share("unexplained"), case.signals
    # Time outside the engine is nobody's step.
    inside = case.ledger.phase("prefill") + case.ledger.phase("decode")
    if unexplained <= 0 or inside <= 0:
        return 0.0, ""
    if signals.topology.world < 2:
        return 0.7 * unexplained, "one node has no link to wait for"
    asleep = [facts.asleep_share for facts in signals.nodes.values() if facts.asleep_share is not None]
    if not asleep:
        return 0.0, ""
    # The sleepiest worker says how much of the time was a wait for others.
    awake = 1.0 - max(asleep)
    return 0.5 * unexplained * awake, f"the workers were awake for at least {percent(awake)} of it"
