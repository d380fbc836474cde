"""Rules for the start of an engine: whether storage sets its pace.

A start has no steps, so the shares are of the time watched, and of the kernel's counters alone. Two things show that
storage sets the pace: the workers' processes wait for what they read (a slow disk, however fast it once was), or what
they read is near what the disk can (a fast disk, and much to read).
"""

from __future__ import annotations

from bottleneck.diagnosis.evidence import Candidate, Case, percent
from bottleneck.diagnosis.observations.node_signals import NodeFacts
from bottleneck.diagnosis.observations.signals import Signals

# The engine must be idle for this share of the time before storage is called its start.
STARTING = 0.5
# Less than this share of the time is what a start from a warm cache has too.
LEAST_SHARE = 0.2
# A start whose workers had no core for this share of the time is not held back by its own work alone.
STARVED = 0.5


def storage_wait_share(facts: NodeFacts, span_seconds: float) -> tuple[float, str]:
    """Return the share of the time in which a node's workers waited for storage, 0 to 1, and how it is known."""
    if facts.storage_wait_seconds is not None:
        return min(1.0, facts.storage_wait_seconds / span_seconds), "samples: processes of the workers that wait"
    if facts.io_stall_seconds is not None and facts.disk_read_bytes is not None:
        # Who stalls and reads nothing writes, or is another machine's business.
        stalled = facts.io_stall_seconds if facts.disk_read_bytes > 0 else 0.0
        return min(1.0, stalled / span_seconds), "samples: pressure of io"
    return 0.0, ""


def read_bytes(facts: NodeFacts) -> tuple[float, str]:
    """Return what was read from storage for a node's workers, and how it is known."""
    if facts.storage_read_bytes is not None:
        return facts.storage_read_bytes, "samples: bytes the workers read from storage"
    return facts.disk_read_bytes or 0.0, "samples: bytes read from whole disks"


def score_weight_loading(case: Case) -> Candidate:
    """Nodes wait for storage, or read as fast as it gives, while the engine does not serve."""
    found, signals = Candidate("weight_loading"), case.signals
    idle = signals.idle_share if signals.idle_share is not None else float(not case.ledger.entries)
    span = signals.span_seconds
    if idle < STARTING or span <= 0:
        return found
    for facts in signals.nodes.values():
        read, read_source = read_bytes(facts)
        ceiling = facts.disk_bytes_per_second
        full = min(1.0, read / ceiling / span) if ceiling else 0.0
        waits, wait_source = storage_wait_share(facts, span)
        share = max(full, waits)
        # More than an idle engine counts for: storage that is read is the reason why it idles.
        score = min(1.0, share * (0.5 + 0.6 * idle))
        if not read or share <= LEAST_SHARE or score <= found.score:
            continue
        found = Candidate("weight_loading", score, facts.node, gain_share=share)
        if waits:
            found.say(
                f"processes of the engine on {facts.node} waited for storage {percent(waits)} of the {span:.3g} s",
                waits,
                "1",
                wait_source,
            )
        found.say(f"{facts.node} read {read / 1e6:.4g} MB from storage", read, "B", read_source)
        # While nobody waits a disk rests: over the whole time it would look slower than it is.
        rate = read / (waits * span) if waits > full else read / span
        against = f", {percent(rate / ceiling)} of what a probe read from its disk" if ceiling else ""
        while_words = "while they waited" if waits > full else "in the time watched"
        found.say(
            f"that is {rate / 1e6:.3g} MB/s {while_words}{against}",
            rate,
            "storage bytes/s",
            f"{read_source}; ceilings: disk" if ceiling else read_source,
        )
        if signals.start:
            found.say(f"{span:.3g} s of the start are watched; nothing was served in them", span, "s", "deployment")
        else:
            found.say(f"the engine served nothing for {percent(idle)} of the time", idle, "1", "engine metrics")
    return found


def unhindered(signals: Signals) -> Candidate:
    """Return what is to be said of a start that storage does not hold back."""
    found, span = Candidate("balanced"), signals.span_seconds
    largest = 0.0
    for facts in signals.nodes.values():
        read, _ = read_bytes(facts)
        waits, source = storage_wait_share(facts, span)
        largest = max(largest, waits)
        if source:
            statement = (
                f"{facts.node} waited for storage {percent(waits)} of the {span:.3g} s and read {read / 1e6:.4g} MB"
            )
            found.say(statement, waits, "1", source)
        if facts.worker_cpu_seconds is not None:
            used = facts.worker_cpu_seconds / span
            found.say(
                f"processes of the engine on {facts.node} computed with {used:.2g} cores: imports, compiling",
                used,
                "cores",
                "samples: CPU time of the workers",
            )
    seen = all(facts.covered_share > 0 and storage_wait_share(facts, span)[1] for facts in signals.nodes.values())
    quality = 1.0
    for weakness in signals.weaknesses:
        quality *= weakness.factor
    found.confidence = 0.9 * quality * (1.0 - largest / LEAST_SHARE / 2.0) if seen and signals.nodes else 0.0
    return found


def starved(signals: Signals) -> Candidate | None:
    """Return, where a start's workers had no core for much of it, that this is so; None where they had."""
    span = signals.span_seconds
    for facts in signals.nodes.values():
        held = (facts.throttled_seconds or 0.0) + (facts.cpu_wait_seconds or 0.0)
        if held / span > STARVED:
            found = Candidate("inconclusive", confidence=0.2)
            found.say(
                f"processes of the engine on {facts.node} had no core for {percent(min(1.0, held / span))} of the "
                "start: a quota or other programs slow it; what storage would cost beside a free core is not known",
                held / span,
                "1",
                "samples: run delay, throttled time",
            )
            return found
    return None
