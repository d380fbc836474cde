"""Work out how far one node's surroundings restrain it beyond its peers, and all nodes alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bottleneck.diagnosis.causes._cards import Lateness, lateness
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.observations.node import NodeFacts
from bottleneck.diagnosis.observations.peers import peers_of, slower_by


@dataclass(frozen=True)
class StandingOut:
    """Distance of the slowest node from the others, shares of the busy time: by restraint, lower ceilings, its card.

    Attributes
    ----------
    foreign : float
        Of its own work's time, what work of others on its card takes.
    late : Lateness
        How its card differs from its peers'.
    """

    restrained: float = 0.0
    slower: float = 0.0
    node: NodeFacts | None = None
    foreign: float = 0.0
    late: Lateness = field(default_factory=Lateness)

    @property
    def total(self) -> float:
        """All together: a node whose host is kept from running has an idle card, which is the same time."""
        return max(self.restrained, self.late.idle) + self.slower + self.foreign


def restrained_share(context: Context, facts: NodeFacts) -> float:
    """Return the share of the busy time in which a node's surroundings kept its worker from running, 0 to 1.

    Parameters
    ----------
    context : Context
        Supplies the busy time.
    facts : NodeFacts
        Facts of one of the run's nodes.
    """
    return context.seen.busy_share_of(facts.restrained_seconds)


def common_wait(context: Context) -> float:
    """Return the share of the time in steps in which the workers of every node alike waited for a core.

    Stages of a pipeline take turns: there each one's wait is on the way.

    Parameters
    ----------
    context : Context
        Supplies the waits of all nodes, and the ledger's share of waits for cores.

    Returns
    -------
    float
        0 to 1.
    """
    waits = [context.seen.busy_share_of(facts.cpu_wait_seconds) for facts in context.seen.nodes.values()]
    return min(context.share("cpu_wait"), context.seen.topology.pipeline_parallel * min(waits, default=0.0))


def standing_out(context: Context) -> StandingOut:
    """Return how far the slowest node stands out, and which it is.

    Parameters
    ----------
    context : Context
        All nodes are compared with each other.

    Returns
    -------
    StandingOut
        Empty where there is no node, 0 where none stands out.
    """
    nodes = list(context.seen.nodes.values())
    found = [_excess(context, nodes, facts) for facts in nodes]
    return max(found, key=lambda each: each.total, default=StandingOut())


def _excess(context: Context, nodes: Sequence[NodeFacts], facts: NodeFacts) -> StandingOut:
    peers = peers_of(facts, nodes)
    if not peers:
        return StandingOut(node=facts)
    restrained = restrained_share(context, facts) - max(restrained_share(context, peer) for peer in peers)
    # Of its own work's time, what it would save at its peers' speed.
    slower, late = slower_by(facts, peers) * context.work, lateness(context, facts)
    return StandingOut(max(0.0, restrained), slower, facts, late.foreign * context.work, late)
