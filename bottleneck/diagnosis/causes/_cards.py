"""Tell which card is late among ranks that wait for each other: it idles while its peers spin, or works for others.

Ranks of one group that share every layer do the same work: what one card does beyond its peers is not the engine's. A
peer that waits spins in the collective (vLLM issue 52777: 72 to 77 ms of a step of 150 ms), so a card on which no
kernel runs while its peers' are busy is the one that they wait for: its host has not started the next step.
"""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.observations.cards import CardFacts
from bottleneck.diagnosis.observations.node import NodeFacts


@dataclass(frozen=True)
class Lateness:
    """Differences of a card from those of its peers; shares of the time, 0 to 1.

    Attributes
    ----------
    idle : float
        No kernel ran on it while its peers were busy.
    foreign : float
        Work of others ran on it, by what it draws or reads beyond its peers.
    by : str
        What shows the foreign work.
    """

    idle: float = 0.0
    foreign: float = 0.0
    by: str = ""


def lateness(context: Context, facts: NodeFacts) -> Lateness:
    """Return how a node's card differs from those of the nodes that it shares every step with.

    Parameters
    ----------
    context : Context
        Supplies the other nodes, and which of them wait for each other.
    facts : NodeFacts
        Facts of the node.

    Returns
    -------
    Lateness
        Nothing where no card was watched, or the node has no such peers.
    """
    group = next((each for each in context.seen.topology.groups if facts.node in each.nodes), None)
    if group is None or facts.card is None:
        return Lateness()
    known = [context.seen.nodes[name] for name in group.nodes if name in context.seen.nodes]
    peers = [each.card for each in known if each.node != facts.node and each.card is not None]
    if not peers:
        return Lateness()
    # Stages take turns: there a card without a kernel may be one whose turn it is not.
    idle = _idle(facts.card, peers) if context.seen.topology.pipeline_parallel == 1 else 0.0
    foreign, by = max((_by_power(facts.card, peers), "draws"), (_by_reads(facts.card, peers), "reads"))
    return Lateness(_apart(idle), _apart(foreign), by if _apart(foreign) else "")


def _apart(share: float) -> float:
    return min(1.0, share) if share >= thresholds.CARD_APART else 0.0


def _idle(card: CardFacts, peers: list[CardFacts]) -> float:
    others = [peer.busy_share for peer in peers if peer.busy_share is not None]
    return min(others) - card.busy_share if others and card.busy_share is not None else 0.0


def _by_power(card: CardFacts, peers: list[CardFacts]) -> float:
    """Return what it draws beyond its peers, of what they leave below the limit: a foreign kernel draws all it can."""
    others = [peer.power_watts for peer in peers if peer.power_watts is not None]
    if not others or card.power_watts is None or not card.power_limit_watts:
        return 0.0
    room = card.power_limit_watts - max(others)
    return (card.power_watts - max(others)) / room if room > 0 else 0.0


def _by_reads(card: CardFacts, peers: list[CardFacts]) -> float:
    """Return how much longer its memory is in use than its peers', of the time that they leave."""
    others = [peer.memory_busy_share for peer in peers if peer.memory_busy_share is not None]
    if not others or card.memory_busy_share is None or max(others) >= 1.0:
        return 0.0
    return (card.memory_busy_share - max(others)) / (1.0 - max(others))
