"""The judge: it weighs the scorers' candidates and names one, or says between which it cannot tell."""

from __future__ import annotations

from bottleneck.diagnosis.attribution.ledger import Ledger
from bottleneck.diagnosis.evidence import Candidate, Case, build_case, percent
from bottleneck.diagnosis.observations.signals import Signals
from bottleneck.diagnosis.observations.weakness import Weakness
from bottleneck.diagnosis.rules import SCORERS
from bottleneck.diagnosis.rules.front import IDLE
from bottleneck.diagnosis.rules.start import starved, unhindered
from bottleneck.diagnosis.taxonomy import CLASSES, WORK_CLASSES

# Below this share nothing deserves the name of bottleneck.
LEAST_SCORE = 0.2
# Below this confidence the answer is that it cannot be told.
LEAST_CONFIDENCE = 0.25
# Two causes nearer than this (of the larger) are one and the same to the measurement.
TIE = 0.12
# Confidence without a ledger: only the engine's gauges speak.
NO_LEDGER = 0.5
# Certainty of a class that the measurements cannot tell from another one.
UNSURE = 0.75
# Between two such classes nearer than this (of the larger) no name is given.
UNSURE_TIE = 0.35
# From this share of an output token's time on, a fault makes the work of a healthy node count less beside it.
FAULT = 0.12

# Causes inside a step: two of them about equal are a balance. The others are limits of their own kind.
STEP_CAUSES = frozenset({*WORK_CLASSES, "host_overhead", "link_bandwidth", "link_latency", "straggler"})
# Faults that leave as much time to the work as they add.
_OUTRANKING = (
    "straggler",
    "kv_cache_capacity",
    "thermal_throttling",
    "memory_capacity",
    "pipeline_bubble",
    "api_server",
)


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
    candidates = {candidate.name: candidate for candidate in (scorer(case) for scorer in SCORERS)}
    for name in (*STEP_CAUSES, "pipeline_bubble"):
        if idle >= IDLE:
            # What limits a step limits only while there are steps.
            candidates[name].score *= 1.0 - idle
    _faults_first(candidates)
    siblings = _together([candidates[name] for name in WORK_CLASSES])
    field = [candidate for candidate in candidates.values() if candidate not in siblings]
    field.sort(key=lambda candidate: -candidate.score)
    weaknesses = list(signals.weaknesses)
    if not ledger.entries and not signals.start:
        lack = "no output token with a known time: what was seen cannot be weighed as a share of one"
        # An engine that idles needs no token to be seen idle.
        weaknesses.append(Weakness(NO_LEDGER, lack, frozenset(CLASSES) - {"client_limited", "weight_loading"}))
    notes = [weakness.statement for weakness in weaknesses]
    for candidate in field:
        if any(candidate.name in classes for classes in signals.unsure):
            candidate.certainty *= UNSURE
    for place, candidate in enumerate(field):
        rival = max((other.score for other in field if other is not candidate), default=0.0)
        candidate.confidence = _confidence(candidate, rival if place == 0 else field[0].score, weaknesses)
    for sibling in siblings:
        sibling.confidence = _confidence(sibling, field[0].score, weaknesses)
    ranked = [candidate for candidate in field if candidate.score >= 0.05]
    winner = _decide(case, ranked, signals, notes)
    others = [*ranked, *(sibling for sibling in siblings if sibling.score >= 0.05)]
    others.sort(key=lambda candidate: -candidate.confidence)
    return winner, [candidate for candidate in others if candidate is not winner][:3], notes


def _together(family: list[Candidate]) -> list[Candidate]:
    """Let the largest of a family stand for all of it; return the others.

    A faster node mends prompts and decoding alike, so against a link or a limit their shares add up. Which of them
    gives the name is surer the further it is ahead of the others.
    """
    family = sorted(family, key=lambda candidate: -candidate.score)
    leader, others = family[0], family[1:]
    whole = sum(candidate.score for candidate in family)
    if leader.score > 0:
        inferred = sum(candidate.inferred * candidate.score for candidate in family) / whole
        lead = (leader.score - others[0].score) / leader.score
        leader.certainty = 0.7 + 0.3 * min(1.0, 2.0 * lead)
        leader.gain_share = min(1.0, sum(candidate.gain_share or 0.0 for candidate in family))
        leader.score, leader.inferred = min(1.0, whole), inferred
        for other in others:
            if other.score >= LEAST_SCORE:
                leader.evidence += other.evidence[:1]
    return others


def _faults_first(candidates: dict[str, Candidate]) -> None:
    """Let a straggler, and a full cache, outrank the work and the messages that a healthy cluster has too.

    A node at half its speed leaves as much time to its work as it adds, and a request that waits for cache waits while
    others compute: about equal shares, but one of them is a fault that a healthy cluster does not have. The larger the
    fault's share, the less the work counts beside it.
    """
    fault = max(candidates[name].score for name in _OUTRANKING)
    if fault > FAULT:
        for name in (*WORK_CLASSES, "link_latency"):
            candidates[name].score *= 1.0 - min((fault - FAULT) / 0.2, 0.7)


def _confidence(candidate: Candidate, rival: float, weaknesses: list[Weakness]) -> float:
    """Return how far the evidence carries a candidate: its margin, its size, and the quality of the measurements."""
    if candidate.score <= 0:
        return 0.0
    if candidate.score >= rival:
        carried = 0.4 + 0.6 * (candidate.score - rival) / candidate.score
    else:
        carried = 0.4 * candidate.score / rival
    size = min(1.0, candidate.score / 0.4)
    quality = candidate.certainty * (1.0 - 0.4 * candidate.inferred)
    for weakness in weaknesses:
        if weakness.classes is None or candidate.name in weakness.classes:
            quality *= weakness.factor
    return min(0.97, carried * size * quality)


def _of_a_start(signals: Signals) -> Candidate | None:
    """Return the answer for a start in which nothing was found; None where the samples do not tell."""
    if not signals.span_seconds > 0 or not signals.nodes:
        return None
    found = starved(signals) or unhindered(signals)
    return found if found.name == "inconclusive" or found.confidence >= LEAST_CONFIDENCE else None


def _decide(case: Case, ranked: list[Candidate], signals: Signals, notes: list[str]) -> Candidate:
    first = ranked[0] if ranked else None
    second = ranked[1] if len(ranked) > 1 else None
    unexplained = case.share("unexplained")
    if signals.start and (first is None or first.score < LEAST_SCORE) and (found := _of_a_start(signals)):
        return found
    if first is None or first.score < LEAST_SCORE:
        return _undecided(case, first, signals, notes)
    if (
        second is not None
        and first.score - second.score < UNSURE_TIE * first.score
        and any({first.name, second.name} <= classes for classes in signals.unsure)
    ):
        return _undecided(case, first, signals, notes, second)
    if (
        second is not None
        and first.name in STEP_CAUSES
        and second.name in STEP_CAUSES
        and second.score >= LEAST_SCORE
        and first.score - second.score < TIE * first.score
    ):
        balanced = Candidate("balanced", first.score, evidence=[*first.evidence, *second.evidence])
        balanced.gain_share = max(first.gain_share or 0.0, second.gain_share or 0.0)
        balanced.confidence = min(0.9, first.confidence / 0.45 * 0.8) if first.confidence else 0.0
        return balanced if balanced.confidence >= LEAST_CONFIDENCE else _undecided(case, first, signals, notes, second)
    if first.name in STEP_CAUSES and unexplained > 0.5:
        first.say(
            f"{percent(unexplained)} of the time in steps is not explained by any measurement",
            unexplained,
            "1",
            "ledger",
        )
    return first if first.confidence >= LEAST_CONFIDENCE else _undecided(case, first, signals, notes, second)


def _undecided(
    case: Case, first: Candidate | None, signals: Signals, notes: list[str], second: Candidate | None = None
) -> Candidate:
    """Return `inconclusive` with what can still be said: between which two it is, where it is between two."""
    found = Candidate("inconclusive")
    if first is not None and second is not None and second.score >= LEAST_SCORE:
        found.between = (first.name, second.name)
        found.say(
            f"not sure: {first.name} ({percent(first.score)} of the time in steps) or {second.name} "
            f"({percent(second.score)}); run --causal: slowing each a little while the load runs tells",
            None,
            "",
            "analysis",
        )
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
