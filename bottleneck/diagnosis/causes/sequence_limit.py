"""Sequence limit: requests wait for a slot while cache and arithmetic have room."""

from __future__ import annotations

from bottleneck.diagnosis.causes._queueing import queue_line, waiting_share
from bottleneck.diagnosis.causes.base import LAB, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent


def find(context: Context) -> Finding | None:
    """Find requests that wait for a slot.

    With as many slots as requests a step serves them all: what a step costs whatever the batch is shared by more, what
    grows with the batch is not won. So of the wait for slots the share of a step that does not grow counts.

    Parameters
    ----------
    context : Context
        Supplies the queueing that was for a slot, and the share of a step that grows with its batch.

    Returns
    -------
    Finding or None
        Scored by what as many slots as requests would win; None when none waits for a slot.
    """
    engines = context.seen.engines
    seen = max(engines, key=lambda engine: engine.waiting.slots if engine.waiting else 0.0, default=None)
    if seen is None:
        return None
    # No reading may have fallen into a moment in which requests waited.
    slots = seen.waiting.slots if seen.waiting else 0.0
    # No ledger (no token finished): waiting against running requests is the measure of the queue.
    waits = context.slots_share if context.ledger.entries else slots * waiting_share(seen)
    if waits <= 0:
        return None
    growing = context.growing_share
    score = waits * (1.0 - growing)
    source, limit = "engine metrics: num_requests_running, num_requests_waiting_by_reason", seen.inferred_limit
    words = "requests waited with every slot taken"
    if limit:
        words = (
            f"{percent(slots)} of the readings with requests waiting had all {limit:g} slots taken "
            "and room in the cache"
        )
    taken = line(words, slots, "1", source)
    client, allowed = context.seen.client, context.seen.topology.max_num_seqs
    if slots <= 0 and client is not None and client.concurrency and allowed:
        # No reading fell into such a moment: that there are fewer slots than clients says it.
        words = f"{client.concurrency} requests at a time were sent to {len(engines) * allowed} slots"
        taken = line(words, len(engines) * allowed / client.concurrency, "1", "workload; server settings")
    usage = seen.cache_usage_mean
    evidence = [taken]
    if seen.waiting_mean is not None:
        words = f"{seen.waiting_mean:.3g} requests waited on average"
        evidence.append(line(words, seen.waiting_mean, "requests", source))
    evidence += [
        line(
            f"the KV cache was {percent(usage or 0)} full on average", usage, "1", "engine metrics: kv_cache_usage_perc"
        ),
        *queue_line(context),
    ]
    return Finding(
        score,
        seen.head or None,
        evidence=tuple(evidence),
        terms=(Term("waiting for a slot", waits), Term("of it, arithmetic that grows with the batch", score - waits)),
    )


CAUSE = Cause(
    name="sequence_limit",
    title="Too few sequences allowed (max_num_seqs)",
    meaning="Requests wait for a free slot though cache and arithmetic have room: the limit is a setting.",
    signals=(
        "requests wait while as many run as max_num_seqs allows, the same number all the time",
        "the KV cache is mostly empty",
        "queue time is a large share of the ledger",
    ),
    similar=(
        ("kv_cache_capacity", "there the cache is nearly full, the number running varies, requests are preempted"),
        ("prefill_compute", "there arithmetic is used up: more slots would only move the wait"),
    ),
    advice=(
        (
            "Raise max_num_seqs (now {max_num_seqs}): cluster undeploy, then cluster deploy --set "
            "max_num_seqs={more_seqs}, then cluster bench"
        ),
        "Watch the KV cache after that: with more sequences it becomes the next limit.",
    ),
    fault=True,
    tried=LAB,
    tier=Tier.MENDABLE,
    find=find,
)
