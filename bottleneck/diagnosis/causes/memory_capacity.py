"""Memory capacity: a node runs out of memory, and its tasks stall for it."""

from __future__ import annotations

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes.base import SYNTHETIC, Cause, Finding, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent


def find(context: Context) -> Finding | None:
    """Find the node whose tasks stall for memory.

    Parameters
    ----------
    context : Context
        Supplies the pressure of memory and the memory available on every node.

    Returns
    -------
    Finding or None
        Scored by the share of the busy time; None when no node stalls for more than `LEAST_SHOWN`.
    """
    share = {name: context.seen.busy_share_of(facts.memory_stall_seconds) for name, facts in context.seen.nodes.items()}
    node = max(share, key=lambda name: share[name], default=None)
    if node is None or share[node] <= thresholds.LEAST_SHOWN:
        return None
    words = f"tasks on {node} stalled for memory {percent(share[node])} of the busy time"
    evidence = [line(words, share[node], "1", "samples: pressure of memory")]
    available = context.seen.nodes[node].memory_available_share
    if available is not None:
        words = f"at the least {percent(available)} of its memory was available"
        evidence.append(line(words, available, "1", "samples: memory"))
    return Finding(share[node], node, evidence=tuple(evidence))


CAUSE = Cause(
    name="memory_capacity",
    title="Memory of {node} runs out",
    meaning="A node has too little memory for what runs on it: it swaps, reclaims or kills.",
    signals=(
        "little of the node's memory is available, and tasks stall for memory (pressure)",
        "pages are read from disk while the engine serves",
    ),
    similar=(
        ("kv_cache_capacity", "there only the engine's own cache is full; the node has memory left"),
        ("weight_loading", "there the reads end once the engine serves"),
    ),
    advice=(
        "Free memory on {node}: a smaller cache (kv_cache_memory), fewer bits per weight, more nodes per model.",
        "See what takes it: cluster top",
    ),
    fault=True,
    tried=SYNTHETIC,
    tier=Tier.MENDABLE,
    find=find,
)
