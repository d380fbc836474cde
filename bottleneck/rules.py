"""The rules: one scorer per class, and the judge that weighs the candidates.

To add a class: an entry in `bottleneck/taxonomy.py`, a scorer here or in `step_rules.py`, its name in `SCORERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from bottleneck.evidence import Candidate, Case, build_case, percent
from bottleneck.ledger import Ledger
from bottleneck.signals import Signals, Weakness
from bottleneck.step_rules import score_compute, score_link_bandwidth, score_straggler

# Below this share nothing deserves the name of bottleneck.
LEAST_SCORE = 0.2
# Below this confidence the answer is that it cannot be told.
LEAST_CONFIDENCE = 0.25
# Two causes nearer than this (of the larger) are one and the same to the measurement.
TIE = 0.12
# Idle for this share of the time: the load does not find the limit.
IDLE = 0.3


def score_queueing(case: Case) -> Candidate:
    """Requests wait for a slot while the cache has room."""
    found = Candidate("queueing", case.slots_share)
    engines = case.signals.engines
    seen = max(engines, key=lambda engine: engine.waiting.slots if engine.waiting else 0.0, default=None)
    if seen is None or seen.waiting is None or seen.waiting.slots <= 0:
        return found
    if not case.ledger.entries:
        # No ledger (no token finished): waiting against running requests is the measure of the queue.
        waiting, running = seen.waiting_mean or 0.0, seen.running_mean or 0.0
        found.score = seen.waiting.slots * waiting / max(waiting + running, 1e-9)
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


def score_kv_capacity(case: Case) -> Candidate:
    """The cache is full: requests wait for room, or lose theirs."""
    found = Candidate("kv_capacity", case.cache_share)
    engines = case.signals.engines
    seen = max(engines, key=lambda engine: (engine.preemptions or 0.0, engine.cache_usage_max or 0.0), default=None)
    if seen is None:
        return found
    preempted = seen.preemptions or 0.0
    waits = seen.waiting.cache if seen.waiting is not None else 0.0
    if preempted <= 0 and waits <= 0:
        return found
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


def score_load_too_small(case: Case) -> Candidate:
    """The cluster is idle and nothing waits."""
    found, signals = Candidate("load_too_small"), case.signals
    idle = signals.idle_share
    waiting = max((engine.waiting_share or 0.0 for engine in signals.engines), default=0.0)
    held = case.slots_share + case.cache_share
    if idle is None or idle < IDLE or waiting > 0.2 or held > 0.2:
        return found
    found.score = 0.5 + 0.5 * idle
    found.say(
        f"no request was under way for {percent(idle)} of the {signals.span_seconds:.3g} s watched",
        idle,
        "1",
        signals.busy_source,
    )
    running = max((engine.running_mean or 0.0 for engine in signals.engines), default=0.0)
    limit = signals.topology.max_num_seqs
    if running and limit:
        found.say(
            f"{running:.3g} requests ran while any did; {limit} are allowed",
            running / limit,
            "1",
            "engine metrics: num_requests_running",
        )
    if signals.client is not None and signals.client.open_loop and signals.client.request_rate is not None:
        rate = signals.client.request_rate
        found.say(f"requests came at {rate:.3g}/s whatever the engine did", rate, "1/s", "workload")
    asleep = [facts.asleep_share for facts in signals.nodes.values() if facts.asleep_share is not None]
    if asleep:
        found.say("nothing waited for a slot or for cache", waiting, "1", "engine metrics: num_requests_waiting")
    return found


SCORERS: tuple[Callable[[Case], Candidate], ...] = (
    score_compute,
    score_link_bandwidth,
    score_straggler,
    score_queueing,
    score_kv_capacity,
    score_load_too_small,
)

# Causes inside a step: two of them about equal are a balance. The others are limits of their own kind.
_RESOURCES = frozenset({"compute", "link_bandwidth", "straggler"})


def judge(signals: Signals, ledger: Ledger) -> tuple[Candidate, list[Candidate], list[str]]:
    """Weigh the candidates.

    Parameters
    ----------
    signals, ledger : Signals, Ledger
        What was measured.

    Returns
    -------
    tuple
        The winner, the runners-up with a confidence of their own (likeliest first), and notes.
    """
    case = build_case(signals, ledger)
    idle = signals.idle_share or 0.0
    candidates = [scorer(case) for scorer in SCORERS]
    for candidate in candidates:
        if candidate.name in _RESOURCES and idle >= IDLE:
            # What limits a step limits only while there are steps.
            candidate.score *= 1.0 - idle
    _faults_first({candidate.name: candidate for candidate in candidates})
    candidates.sort(key=lambda candidate: -candidate.score)
    notes = [weakness.statement for weakness in signals.weaknesses]
    for place, candidate in enumerate(candidates):
        rival = max((other.score for other in candidates if other is not candidate), default=0.0)
        candidate.confidence = _confidence(candidate, rival if place == 0 else candidates[0].score, signals.weaknesses)
    others = [candidate for candidate in candidates if candidate.score >= 0.05]
    winner = _decide(case, others, signals, notes)
    runners = [candidate for candidate in others if candidate is not winner][:3]
    return winner, runners, notes


def _faults_first(candidates: dict[str, Candidate]) -> None:
    """Let a straggler, and a full cache, outrank the compute that a healthy cluster has too.

    A node at half its speed leaves as much time to compute as it adds, and a request that waits for cache waits while
    others compute: about equal shares, but one of them is a fault that a healthy cluster does not have. The larger the
    fault's share, the less compute counts beside it.
    """
    compute = candidates["compute"]
    fault = max(candidates["straggler"].score, candidates["kv_capacity"].score)
    if fault > 0.15:
        compute.score *= 1.0 - min((fault - 0.15) / 0.3, 0.7)


def _confidence(candidate: Candidate, rival: float, weaknesses: list[Weakness]) -> float:
    """Return how far the evidence carries a candidate: its margin, its size, and the quality of the measurements."""
    if candidate.score <= 0:
        return 0.0
    if candidate.score >= rival:
        carried = 0.4 + 0.6 * (candidate.score - rival) / candidate.score
    else:
        carried = 0.4 * candidate.score / rival
    size = min(1.0, candidate.score / 0.4)
    quality = 1.0 - 0.4 * candidate.inferred
    for weakness in weaknesses:
        if weakness.classes is None or candidate.name in weakness.classes:
            quality *= weakness.factor
    return min(0.97, carried * size * quality)


def _decide(case: Case, ranked: list[Candidate], signals: Signals, notes: list[str]) -> Candidate:
    first = ranked[0] if ranked else None
    second = ranked[1] if len(ranked) > 1 else None
    unexplained = case.share("unexplained")
    if first is None or first.score < LEAST_SCORE:
        return _undecided(case, first, signals, notes)
    if (
        second is not None
        and first.name in _RESOURCES
        and second.name in _RESOURCES
        and second.score >= LEAST_SCORE
        and first.score - second.score < TIE * first.score
    ):
        balanced = Candidate("balanced", first.score, evidence=[*first.evidence, *second.evidence])
        balanced.gain_share = max(first.gain_share or 0.0, second.gain_share or 0.0)
        balanced.confidence = min(0.9, first.confidence / 0.45 * 0.8) if first.confidence else 0.0
        return balanced if balanced.confidence >= LEAST_CONFIDENCE else _undecided(case, first, signals, notes)
    latency = case.share("link_latency")
    if first.name in _RESOURCES and latency > first.score:
        return _undecided(case, first, signals, notes)
    if first.name in _RESOURCES and unexplained > 0.5:
        first.say(
            f"{percent(unexplained)} of the time in steps is not explained by any measurement",
            unexplained,
            "1",
            "ledger",
        )
    return first if first.confidence >= LEAST_CONFIDENCE else _undecided(case, first, signals, notes)


def _undecided(case: Case, first: Candidate | None, signals: Signals, notes: list[str]) -> Candidate:
    """Return `inconclusive` with what can still be said."""
    found = Candidate("inconclusive")
    engines, ledger = signals.engines, case.ledger
    if not ledger.entries and all(engine.readings == 0 for engine in engines):
        found.say("no request with a known time and no engine reading: nothing can be concluded", None, "", "analysis")
    elif not ledger.entries:
        found.say("no output token with a known time: no ledger, only the engine's counts", None, "", "analysis")
    if first is not None and first.score > 0:
        found.say(
            f"the likeliest cause is {first.name}, with {percent(first.score)} of an output token's time; "
            f"confidence {first.confidence:.2f} does not carry a verdict",
            first.score,
            "1",
            "ledger",
        )
        found.evidence += first.evidence
    for phase, words in (("queue", "waiting for the engine"), ("prefill", "prefill"), ("decode", "decode")):
        if ledger.entries and (share := ledger.phase(phase)) > 0:
            found.say(f"{percent(share)} of an output token's time is {words}", share, "1", "ledger")
    latency, unexplained = case.share("link_latency"), case.share("unexplained")
    if ledger.entries and latency >= LEAST_SCORE:
        found.say(
            f"{percent(latency)} of the time in steps is the latency of messages between nodes",
            latency,
            "1",
            "ledger: messages x probed latency",
        )
    if ledger.entries and unexplained > 0.3:
        found.say(f"{percent(unexplained)} of the time in steps is unexplained", unexplained, "1", "ledger")
    held = [engine for engine in engines if engine.readings and (engine.waiting_share or 0.0) < 0.05]
    if held and len(held) == len(engines):
        found.say("it is not queueing: hardly any reading had requests waiting", 0.0, "1", "engine metrics")
    quality = 1.0
    for weakness in signals.weaknesses:
        quality *= weakness.factor
    # How sure it is that this cannot be told is nobody's question; small, and smaller with worse measurements.
    found.confidence = min(0.2, 0.2 * quality)
    if not notes and not found.evidence:
        notes.append("the measurements show no cause above the threshold")
    return found
