"""KV cache capacity: requests wait for room in the cache, or lose theirs."""

from __future__ import annotations

from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL
from bottleneck.diagnosis.causes._queueing import queue_line, waiting_share
from bottleneck.diagnosis.causes.base import LAB, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent


def find(context: Context) -> Finding | None:
    """Find requests that wait for cache, and those that lost their place in it.

    Parameters
    ----------
    context : Context
        Supplies preemptions, the use of the cache, and the queueing that was for cache.

    Returns
    -------
    Finding or None
        Scored by what waiting for cache and computing again take; None without preemption and without such waits.
    """
    engines = context.seen.engines
    seen = max(engines, key=lambda engine: (engine.preemptions or 0.0, engine.cache_usage_max or 0.0), default=None)
    if seen is None:
        return None
    preempted, waits = seen.preemptions or 0.0, seen.waiting.cache if seen.waiting is not None else 0.0
    if preempted <= 0 and waits <= 0:
        return None
    waiting, again = context.cache_share, 0.0
    if preempted > 0 and seen.waiting is not None:
        # Queue time ends at the first schedule; who lost its place waits again in the midst of decoding. How many
        # waited for each that was under way counts both (Little's law); all but those who wait for a slot.
        waiting = max(waiting, (1.0 - seen.waiting.slots) * waiting_share(seen))
    if preempted > 0 and seen.requests > 0:
        # A preempted request computes its tokens again, half of them on average.
        inside = context.ledger.phase(PREFILL) + context.ledger.phase(DECODE)
        again = inside * min(1.0, preempted / seen.requests) / 2
    if not context.ledger.entries:
        waiting = max(waits, 1 / 2 if preempted else 0.0) * waiting_share(seen)
    evidence = []
    if preempted > 0:
        words = f"the engine preempted {preempted:g} times for {seen.requests:g} finished requests"
        evidence.append(line(words, preempted, "preemptions", "engine metrics: num_preemptions_total"))
    if seen.cache_usage_max is not None:
        words = f"the KV cache was up to {percent(seen.cache_usage_max)} full"
        evidence.append(line(words, seen.cache_usage_max, "1", "engine metrics: kv_cache_usage_perc"))
    if waits > 0:
        words = f"{percent(waits)} of the readings with requests waiting had a full cache and free slots"
        evidence.append(line(words, waits, "1", "engine metrics: num_requests_waiting_by_reason, kv_cache_usage_perc"))
    return Finding(
        min(1.0, waiting + again),
        seen.head or None,
        evidence=(*evidence, *queue_line(context)),
        terms=(Term("waiting for cache", waiting), Term("tokens computed again after a preemption", again)),
    )


CAUSE = Cause(
    name="kv_cache_capacity",
    title="KV cache is full",
    meaning="There is no room for the keys and values of more tokens: requests wait or are thrown out and redone.",
    signals=(
        "the engine preempts requests",
        "requests wait while the KV cache is nearly full and slots are free",
    ),
    similar=(
        ("sequence_limit", "there the cache is mostly empty and the number running stands still at the limit"),
        ("memory_capacity", "there the node's memory itself runs out: swapping, stalls of the kernel, kills"),
    ),
    advice=(
        (
            "Give the cache more memory (kv_cache_memory in the deployment's server settings): cluster undeploy, "
            "then cluster deploy --set kv_cache_memory=SIZE"
        ),
        "Or store keys and values in fewer bits, or shorten max_model_len.",
        "Or allow fewer sequences at a time: it ends the preemptions, which do work twice.",
    ),
    fault=True,
    tried=LAB,
    tier=Tier.MENDABLE,
    find=find,
)
