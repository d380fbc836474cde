"""The rule for one slow node. In a collective every rank looks as slow as the slowest: only local evidence counts."""

from __future__ import annotations

from bottleneck.diagnosis.evidence import Candidate, Case, percent
from bottleneck.diagnosis.observations.node_signals import NodeFacts, slower_by, slower_in

# One node must stand out from its peers by this share of the busy time to be a straggler.
STANDS_OUT = 0.1
# What a node can lack, in words: the kinds of straggler.
QUOTA, CROWDED, SLOW_CPU, SLOW_MEMORY = "held by a CPU quota", "cores shared with others", "slow CPU", "slow memory"


def held_share(case: Case, facts: NodeFacts) -> float:
    """Return the share of the busy time in which a node's surroundings held its worker back, 0 to 1.

    Throttling by a quota as large as the cores the node was promised is the node's own work running into its size,
    not something that holds it back.
    """
    return case.busy_share_of(_throttled(facts) + (facts.cpu_wait_seconds or 0.0))


def common_wait(case: Case) -> float:
    """Return the share of the time in steps in which the workers of every node alike waited for a core."""
    waits = [case.busy_share_of(facts.cpu_wait_seconds) for facts in case.signals.nodes.values()]
    return min(case.share("cpu_wait"), min(waits, default=0.0))


def crowded_share(case: Case) -> float:
    """Return how much of `common_wait` is more than the nodes' own work.

    A little of it comes with any machine and only makes the nodes smaller. Where it outweighs their work, not the nodes
    are small: other processes have their cores, and from half as much again all of it is theirs.
    """
    common, work = common_wait(case), case.work
    if common <= work:
        return 0.0
    return common * min(1.0, (common - work) / (0.5 * work)) if work > 0 else common


def _throttled(facts: NodeFacts) -> float:
    if facts.quota_cores is not None and facts.cores is not None and not facts.restricted:
        return 0.0
    return facts.throttled_seconds or 0.0


def excess(case: Case, group: list[NodeFacts], facts: NodeFacts) -> tuple[float, float]:
    """Return how far a node stands out: by what holds it back, and by lower ceilings; shares of the busy time."""
    peers = [peer for peer in group if peer is not facts]
    if not peers:
        return 0.0, 0.0
    held = held_share(case, facts) - max(held_share(case, peer) for peer in peers)
    # Of its own work's time, what it would save at its peers' speed.
    return max(0.0, held), slower_by(facts, peers) * case.work


def standing_out(case: Case) -> tuple[float, float, NodeFacts | None]:
    """Return how far the slowest node stands out, by what holds it back and by its ceilings, and the node."""
    nodes = list(case.signals.nodes.values())
    best: tuple[float, float, NodeFacts | None] = (0.0, 0.0, None)
    for facts in nodes:
        held, slower = excess(case, nodes, facts)
        if held + slower > best[0] + best[1]:
            best = (held, slower, facts)
    return best


def score_straggler(case: Case) -> Candidate:
    """One node is slower than its peers, by evidence of its own."""
    found = Candidate("straggler")
    nodes = list(case.signals.nodes.values())
    held, slower, slow = standing_out(case)
    total = held + slower
    if slow is None or total < STANDS_OUT:
        return found
    steps = (case.ledger.phase("prefill") + case.ledger.phase("decode")) / case.norm if case.ledger.entries else 1.0
    stolen = held * steps
    if case.ledger.entries:
        # No more than the ledger has room for: a wait beside bytes on the link is not on the critical path.
        stolen = min(stolen, case.share("throttled", "cpu_wait"))
    found.node, found.score = slow.node, min(1.0, stolen + slower)
    found.gain_share = found.score
    peers = [peer for peer in nodes if peer is not slow]
    found.kind = _kind(slow, peers, stolen, slower)
    if held > 0:
        _say_held(found, case, slow, peers)
    if slower > 0:
        what, by = slower_in(slow, peers)
        found.say(
            f"{slow.node} is slower than its peers by its own ceilings: its "
            f"{'arithmetic' if what == 'gemm' else 'memory'} reaches {percent(by)} less than their median",
            by,
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


def _kind(slow: NodeFacts, peers: list[NodeFacts], held: float, slower: float) -> str:
    """Return what the slow node lacks, in words."""
    if slower > held:
        return SLOW_CPU if slower_in(slow, peers)[0] == "gemm" else SLOW_MEMORY
    throttled = _throttled(slow) - max((_throttled(peer) for peer in peers), default=0.0)
    # Beside others every node waits for its cores: only what one waits longer is its own.
    waited = (slow.cpu_wait_seconds or 0.0) - max((peer.cpu_wait_seconds or 0.0 for peer in peers), default=0.0)
    return QUOTA if throttled > waited else CROWDED


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
