"""Straggler: one node that is slower than its peers, by evidence of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes._cards import Lateness
from bottleneck.diagnosis.causes._restraint import StandingOut, standing_out
from bottleneck.diagnosis.causes.base import LAB, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import Evidence, line, percent
from bottleneck.diagnosis.observations.node import NodeFacts
from bottleneck.diagnosis.observations.peers import peers_of, slower_in, with_lowest_ceilings

# What a node can lack, in words: the kinds of straggler.
QUOTA, CROWDED, SLOW_CPU, SLOW_MEMORY = "CPU quota", "cores shared with others", "slow CPU", "slow memory"
FOREIGN, LATE_HOST = "other work on its card", "its host starts steps late"


def find(context: Context) -> Finding | None:
    """Find the node that stands out. In a collective every rank looks as slow as the slowest: local evidence counts.

    Parameters
    ----------
    context : Context
        Supplies each node's throttling, its waits for cores and its ceilings, beside those of its peers.

    Returns
    -------
    Finding or None
        Scored by what the node costs beyond its peers; None when none stands out by `LEAST_SHOWN`.
    """
    nodes = list(context.seen.nodes.values())
    found = standing_out(context)
    slow = found.node
    if slow is None or found.total < thresholds.LEAST_SHOWN:
        return None
    restrained = found.restrained * context.steps_share
    if context.ledger.entries:
        # No more than the ledger has room for: a wait beside bytes on the link is not on the critical path.
        restrained = min(restrained, context.share("throttled", "cpu_wait"))
    peers = peers_of(slow, nodes)
    evidence = _restraint_lines(context, slow, peers) if restrained > 0 or found.late.idle > 0 else []
    evidence += _card_lines(slow, found.late)
    idle = found.late.idle * context.steps_share
    if found.slower > 0:
        what, by = slower_in(slow, peers)
        evidence.append(
            line(
                f"{slow.node} is slower than its peers by its own ceilings: its "
                f"{'arithmetic' if what == 'gemm' else 'memory'} reaches {percent(by)} less than their median",
                by,
                "1",
                "ceilings",
            )
        )
    for peer in peers:
        if peer.asleep_share is not None and peer.asleep_share > thresholds.LEAST_SHOWN:
            evidence.append(
                line(
                    f"the worker of its peer {peer.node} slept {percent(peer.asleep_share)} of the busy time",
                    peer.asleep_share,
                    "1",
                    "samples: CPU time of the worker",
                )
            )
    return Finding(
        min(1.0, max(restrained, idle) + found.slower + found.foreign),
        slow.node,
        kind=_kind(found, slow, peers, max(restrained, idle)),
        evidence=tuple(evidence),
        terms=(
            Term(f"{slow.node} restrained beyond its peers", restrained),
            *([Term(f"{slow.node}'s card idle beyond that", idle - restrained)] if idle > restrained else []),
            *([Term(f"other work on {slow.node}'s card x the nodes' work", found.foreign)] if found.foreign else []),
            Term(f"{slow.node} slower by its ceilings x the nodes' work", found.slower),
        ),
    )


def mended(context: Context, finding: Finding) -> Context:
    """Return what would be measured, were a slow node like its peers: then another may stand out.

    What holds a peer back in the same way is not the node's own, so as much of that stays.

    Parameters
    ----------
    context : Context
        Context in which the finding was made; it stays as it is.
    finding : Finding
        The finding of this cause, which names a node.
    """
    nodes = dict(context.seen.nodes)
    slow = nodes[finding.node or ""]
    peers = peers_of(slow, nodes.values())
    throttled, waited = (
        min(getattr(slow, name) or 0.0, max((getattr(peer, name) or 0.0 for peer in peers), default=0.0))
        for name in ("throttled_seconds", "cpu_wait_seconds")
    )
    cards = [peer.card for peer in peers if peer.card is not None]
    like = replace(with_lowest_ceilings(slow, peers), throttled_seconds=throttled, cpu_wait_seconds=waited)
    nodes[slow.node] = replace(like, card=cards[0] if cards else slow.card)
    return replace(context, seen=replace(context.seen, nodes=nodes))


def _kind(found: StandingOut, slow: NodeFacts, peers: Sequence[NodeFacts], kept: float) -> str:
    """Return what the slow node lacks, in words; `kept` is the share in which it was kept from running."""
    if found.foreign > max(kept, found.slower):
        return FOREIGN
    if found.slower > kept:
        return SLOW_CPU if slower_in(slow, peers)[0] == "gemm" else SLOW_MEMORY
    throttled = (slow.throttled_seconds or 0.0) - max((peer.throttled_seconds or 0.0 for peer in peers), default=0.0)
    # Beside others every node waits for its cores: only what one waits longer is its own.
    waited = (slow.cpu_wait_seconds or 0.0) - max((peer.cpu_wait_seconds or 0.0 for peer in peers), default=0.0)
    if found.late.idle > 2 * found.restrained:
        return LATE_HOST
    return QUOTA if slow.restricted and throttled > waited else CROWDED


def _card_lines(slow: NodeFacts, late: Lateness) -> list[Evidence]:
    found = []
    if late.idle > 0:
        words = (
            f"no kernel ran on the card of {slow.node} for {percent(late.idle)} of the time in which its peers' spun"
        )
        found.append(line(words, late.idle, "1", "samples: the card's driver, share of time with a kernel"))
    if late.foreign > 0:
        what = "draws power" if late.by == "draws" else "reads memory"
        words = (
            f"the card of {slow.node} {what} beyond its peers, which do the same work, as if others worked on it "
            f"{percent(late.foreign)} of the time"
        )
        found.append(line(words, late.foreign, "1", "samples: the card's driver, power and use of its memory"))
    return found


def _restraint_lines(context: Context, slow: NodeFacts, peers: Sequence[NodeFacts]) -> list[Evidence]:
    found, share = [], context.seen.busy_share_of
    throttled = share(slow.throttled_seconds)
    if slow.throttled_seconds:
        others = max((share(peer.throttled_seconds) for peer in peers), default=0.0)
        quota = f" (quota {slow.quota_cores:g} cores)" if slow.quota_cores is not None else ""
        words = (
            f"{slow.node} was throttled {percent(throttled)} of the busy time{quota}, "
            f"its peers at most {percent(others)}"
        )
        found.append(line(words, throttled, "1", "samples: cgroup throttled time"))
    if slow.cpu_wait_seconds:
        waited = share(slow.cpu_wait_seconds)
        others = max((share(peer.cpu_wait_seconds) for peer in peers), default=0.0)
        found.append(
            line(
                f"workers on {slow.node} were ready to run but had no core {percent(waited)} of the busy time, "
                f"on its peers at most {percent(others)}",
                waited,
                "1",
                "samples: run delay while other processes ran, and steal",
            )
        )
    return found


CAUSE = Cause(
    name="straggler",
    title="Straggler {node}{kind}",
    meaning="One node is slower than its peers; in every collective the others wait for it.",
    signals=(
        (
            "one node alone is throttled by a quota, waits for its cores, or has lower ceilings than its peers "
            "beyond their spread (arithmetic: a slow CPU; reads: slow memory)"
        ),
        "its peers' workers sleep while the engine is busy",
        (
            "beside cards: a peer that waits spins and looks busy; the late one is that on which no kernel runs, or "
            "which draws or reads more than the same work needs"
        ),
        "the collective itself says nothing: it makes all of them look slow",
    ),
    similar=(
        ("prefill_compute", "there every node is alike, and none sleeps long"),
        ("link_bandwidth", "there both ends sleep and the link is near its ceiling"),
        ("host_overhead", "there what is lacking is lacking on every node alike"),
    ),
    advice=(
        (
            "Take away what holds {node} back (its CPU quota, other processes on its cores, heat), or give it a "
            "smaller part of the model."
        ),
        "If the node was slowed on purpose: cluster lab slow {node} --restore",
        "Watch the nodes side by side: cluster top",
    ),
    fault=True,
    tried=LAB,
    tier=Tier.MENDABLE,
    find=find,
    rests_on_steps=True,
    mended=mended,
)
