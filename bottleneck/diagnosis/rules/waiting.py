"""Rules for requests that wait: for a slot, for cache."""

from __future__ import annotations

from bottleneck.diagnosis.evidence import Candidate, Case, percent
from bottleneck.diagnosis.observations.engine_signals import EngineFacts


def score_sequence_limit(case: Case) -> Candidate:
    """Requests wait for a slot while the cache has room."""
    found = Candidate("sequence_limit", case.slots_share)
    engines = case.signals.engines
    seen = max(engines, key=lambda engine: engine.waiting.slots if engine.waiting else 0.0, default=None)
    if seen is None or seen.waiting is None or seen.waiting.slots <= 0:
        return found
    if not case.ledger.entries:
        # No ledger (no token finished): waiting against running requests is the measure of the queue.
        waiting, running = seen.waiting_mean or 0.0, seen.running_mean or 0.0
        found.score = seen.waiting.slots * waiting / max(waiting + running, 1e-9)
    elif seen.waiting_mean and seen.running_mean:
        # One read of the weights serves all sequences of a step: those who wait would have had their part of it.
        shared = seen.waiting_mean / (seen.waiting_mean + seen.running_mean)
        found.score = min(1.0, found.score + seen.waiting.slots * shared * case.share_of_kind("decode", "memory"))
    found.node, found.gain_share = seen.head or None, found.score
    limit = seen.inferred_limit
    source = "engine metrics: num_requests_running, num_requests_waiting_by_reason"
    found.say(
        f"{percent(seen.waiting.slots)} of the readings with requests waiting had all {limit:g} slots taken "
        "and room in the cache"
        if limit
        else "requests waited with every slot taken",
        seen.waiting.slots,
        "1",
        source,
    )
    found.say(f"{seen.waiting_mean or 0:.3g} requests waited on average", seen.waiting_mean, "requests", source)
    found.say(
        f"the KV cache was {percent(seen.cache_usage_mean or 0)} full on average",
        seen.cache_usage_mean,
        "1",
        "engine metrics: kv_cache_usage_perc",
    )
    _say_queue_share(found, case)
    return found


def waits_again(seen: EngineFacts) -> float:
    """Return the share of waiting that is for the cache, in an engine that preempts: all but that for a slot."""
    return 1.0 - seen.waiting.slots if seen.waiting is not None else 0.0


def score_kv_cache_capacity(case: Case) -> Candidate:
    """The cache is full: requests wait for room, or lose theirs."""
    found = Candidate("kv_cache_capacity", case.cache_share)
    engines = case.signals.engines
    seen = max(engines, key=lambda engine: (engine.preemptions or 0.0, engine.cache_usage_max or 0.0), default=None)
    if seen is None:
        return found
    preempted = seen.preemptions or 0.0
    waits = seen.waiting.cache if seen.waiting is not None else 0.0
    if preempted <= 0 and waits <= 0:
        return found
    if preempted > 0 and seen.running_mean:
        # Queue time ends at the first schedule; who lost its place waits again in the midst of decoding. How many
        # waited for each that was under way counts both (Little's law).
        waiting = seen.waiting_mean or 0.0
        found.score = max(found.score, waits_again(seen) * waiting / (waiting + seen.running_mean))
    if preempted > 0 and seen.requests > 0:
        # A preempted request computes its tokens again: at worst every step of it counts twice.
        inside = case.ledger.phase("prefill") + case.ledger.phase("decode")
        found.score += 0.5 * inside * min(1.0, preempted / seen.requests)
    if not case.ledger.entries:
        waiting, running = seen.waiting_mean or 0.0, seen.running_mean or 0.0
        found.score = max(waits, 0.5 if preempted else 0.0) * waiting / max(waiting + running, 1e-9)
    found.node, found.gain_share = seen.head or None, min(1.0, found.score)
    if preempted > 0:
        statement = f"the engine preempted {preempted:g} times for {seen.requests:g} finished requests"
        found.say(statement, preempted, "preemptions", "engine metrics: num_preemptions_total")
    if seen.cache_usage_max is not None:
        found.say(
            f"the KV cache was up to {percent(seen.cache_usage_max)} full",
            seen.cache_usage_max,
            "1",
            "engine metrics: kv_cache_usage_perc",
        )
    if waits > 0:
        found.say(
            f"{percent(waits)} of the readings with requests waiting had a full cache and free slots",
            waits,
            "1",
            "engine metrics: num_requests_waiting_by_reason, kv_cache_usage_perc",
        )
    _say_queue_share(found, case)
    return found


def _say_queue_share(found: Candidate, case: Case) -> None:
    if case.queue_share > 0:
        found.say(
            f"queueing takes {percent(case.queue_share)} of an output token's time",
            case.queue_share,
            "1",
            "ledger: engine's request_queue_time",
        )
