"""Weight loading: nodes wait for storage while the engine does not serve."""

from __future__ import annotations

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes._start import read_bytes, storage_wait_share
from bottleneck.diagnosis.causes.base import LAB, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent
from bottleneck.diagnosis.observations.node import NodeFacts


def find(context: Context) -> Finding | None:
    """Find nodes that wait for storage, or read as fast as it gives, while the engine does not serve.

    A start has no steps, so the shares are of the time watched, and of the kernel's counters alone. Two things show
    that storage sets the pace: the workers' processes wait for what they read (a slow disk, however fast it once was),
    or what they read is near what the disk can (a fast disk, and much to read).

    Parameters
    ----------
    context : Context
        Supplies the idle time, and every node's waits for storage, reads and disk ceilings.

    Returns
    -------
    Finding or None
        Scored by the share of the time watched; None once the engine serves for half of it.
    """
    seen = context.seen
    idle = seen.idle_share if seen.idle_share is not None else float(not context.ledger.entries)
    if idle <= 1 / 2 or seen.span_seconds <= 0:
        return None
    found = [each for facts in seen.nodes.values() if (each := _of_node(context, facts, idle)) is not None]
    return max(found, key=lambda each: each.score, default=None)


def _of_node(context: Context, facts: NodeFacts, idle: float) -> Finding | None:
    span = context.seen.span_seconds
    read, read_source = read_bytes(facts)
    ceiling = facts.disk_bytes_per_second
    full = min(1.0, read / ceiling / span) if ceiling else 0.0
    waits, wait_source = storage_wait_share(facts, span)
    share = max(full, waits)
    if not read or share <= thresholds.LEAST_SCORE:
        return None
    evidence = []
    if waits:
        words = f"processes of the engine on {facts.node} waited for storage {percent(waits)} of the {span:.3g} s"
        evidence.append(line(words, waits, "1", wait_source))
    evidence.append(line(f"{facts.node} read {read / 1e6:.4g} MB from storage", read, "B", read_source))
    # While nobody waits a disk rests: over the whole time it would look slower than it is.
    rate = read / (waits * span) if waits > full else read / span
    against = f", {percent(rate / ceiling)} of what a probe read from its disk" if ceiling else ""
    while_words = "while they waited" if waits > full else "in the time watched"
    source = f"{read_source}; ceilings: disk" if ceiling else read_source
    evidence.append(line(f"that is {rate / 1e6:.3g} MB/s {while_words}{against}", rate, "storage bytes/s", source))
    if context.seen.start:
        words = f"{span:.3g} s of the start are watched; nothing was served in them"
        evidence.append(line(words, span, "s", "deployment"))
    else:
        evidence.append(line(f"the engine served nothing for {percent(idle)} of the time", idle, "1", "engine metrics"))
    return Finding(share, facts.node, evidence=tuple(evidence), terms=(Term("storage that is waited for", share),))


CAUSE = Cause(
    name="weight_loading",
    title="Weight loading or storage at start",
    meaning="The engine is not serving yet, or not fully: it reads weights, and storage or network sets the pace.",
    signals=(
        "processes of the engine wait for storage much of the time while the engine does not serve",
        "or: the node reads from its disk near the disk's ceiling while the engine does not serve",
    ),
    similar=(
        ("client_limited", "there nothing is read either"),
        ("balanced", "a start from a warm cache: it computes, and hardly waits for what it reads"),
        ("memory_capacity", "there the reads go on while the engine serves"),
    ),
    advice=(
        "Keep the weights on the node's own disk, or in fewer bits; the second start reads from the page cache.",
        "Compare with what the disk can do: cluster probe --only nodes",
        "Look again while it lasts, or once it serves: cluster bottleneck --start",
    ),
    fault=False,
    tried=LAB,
    tier=Tier.MENDABLE,
    find=find,
)
