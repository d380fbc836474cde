"""NUMA or PCIe: data takes a slow way inside a node."""

from __future__ import annotations

from bottleneck.diagnosis.causes.base import SYNTHETIC, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent
from bottleneck.diagnosis.observations.node import NodeFacts

# A remote access costs about twice a local one: half of what is remote is won.
_REMOTE_GAIN = 1 / 2


def find(context: Context) -> Finding | None:
    """Find the node whose memory is far from its cores, or whose accelerator is attached by a narrow bus.

    Parameters
    ----------
    context : Context
        Supplies every node's share of remote memory, and the share of its bus at which an accelerator is attached.

    Returns
    -------
    Finding or None
        The worse of both, scored by what local memory or a whole bus would win; None without either.
    """
    found = [
        each for facts in context.seen.nodes.values() for each in (_remote(context, facts), _narrow(context, facts))
    ]
    known = [each for each in found if each is not None]
    return max(known, key=lambda each: each.score, default=None)


def _remote(context: Context, facts: NodeFacts) -> Finding | None:
    share = facts.remote_memory_share or 0.0
    if share <= 0:
        return None
    score = share * _REMOTE_GAIN * context.work
    words = f"{percent(share)} of the memory that {facts.node} took is on another NUMA node than the cores"
    terms = (Term("half of the node's work on remote memory", score),)
    return Finding(score, facts.node, evidence=(line(words, share, "1", "samples: numastat"),), terms=terms)


def _narrow(context: Context, facts: NodeFacts) -> Finding | None:
    if facts.bus_share is None or facts.bus_share >= 1.0:
        return None
    score = (1.0 - facts.bus_share) * context.share("host", "unexplained")
    words = f"the accelerator of {facts.node} is attached at {percent(facts.bus_share)} of its bus"
    terms = (Term("host and unexplained time x what the bus lacks", score),)
    return Finding(score, facts.node, evidence=(line(words, facts.bus_share, "1", "samples: PCIe link"),), terms=terms)


CAUSE = Cause(
    name="numa_pcie",
    title="NUMA or PCIe on {node}",
    meaning="Data reaches the cores or the accelerator over a slow way inside the node: remote memory, few lanes.",
    signals=(
        "much of the workers' memory is on another NUMA node than their cores",
        "the accelerator's host link runs at fewer lanes or a lower generation than it could",
        "copies between host and accelerator take a large part of the steps",
    ),
    similar=(
        ("decode_memory_bandwidth", "there the local memory itself is at its ceiling"),
        ("host_overhead", "there the host computes; here it waits for its own memory"),
    ),
    advice=(
        "Bind the worker of {node} to the cores beside its memory or accelerator.",
        "Seat the accelerator in a slot with all its lanes; the firmware's setting for them counts too.",
    ),
    fault=True,
    tried=SYNTHETIC,
    tier=Tier.MENDABLE,
    find=find,
    rests_on_steps=True,
)
