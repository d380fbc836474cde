"""Decide which cause is named, or between which two it cannot be told. Nothing that was found is edited here.

Three steps. Causes that one change mends (a node's work; a link's bytes and messages) stand together, under the name of
the largest. What is set or works wrong counts with all of its share, from a share on that is no noise: mending it costs
nothing but doing it. What the hardware limits counts with half, which is what hardware twice as fast would give. The
larger wins; two limits that are too near are balanced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.attribution.build import Attribution
from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL
from bottleneck.diagnosis.causes import CAUSES, Cause, Tier
from bottleneck.diagnosis.causes._start import read_bytes, storage_wait_share
from bottleneck.diagnosis.causes.base import Finding
from bottleneck.diagnosis.causes.context import Context, context_of
from bottleneck.diagnosis.evidence import Evidence, line, percent
from bottleneck.diagnosis.observations.issues import Issue, Scope
from bottleneck.diagnosis.observations.observed import Observations


@dataclass(frozen=True)
class Candidate:
    """A cause that was found, with what stands behind it.

    Attributes
    ----------
    score : float
        Share of an output token's time that its relief takes away, its family's together.
    alone : float
        Of it, its own.
    lead : float
        How far it is ahead of the rest of its family, relative to itself, 0 to 1.
    confidence : float
        How sure it is that this one is the largest, 0 to 1.
    sure : float
        How sure the name is once it is given, 0 to 1.
    """

    cause: Cause
    finding: Finding
    score: float
    alone: float
    lead: float = 1.0
    confidence: float = 0.0
    sure: float = 0.0

    @property
    def name(self) -> str:
        """The cause's name."""
        return self.cause.name

    @property
    def place(self) -> tuple[Cause, str | None, str | None]:
        """The cause and where it is."""
        return self.cause, self.finding.node, self.finding.link

    @property
    def fault(self) -> bool:
        """Return whether something works or is set wrong."""
        return self.cause.fault if self.finding.fault is None else self.finding.fault

    @property
    def mendable(self) -> bool:
        """Return whether mending it gives all of its share, and the share is no noise."""
        return (self.cause.tier is Tier.MENDABLE or self.fault) and self.score >= thresholds.MENDABLE

    @property
    def obtainable(self) -> float:
        """Return the part of a share that can be had: all of it, or what hardware twice as fast gives."""
        return 1.0 if self.mendable else 1 / 2


@dataclass(frozen=True)
class Decision:
    """Outcome of the arbitration: the named cause.

    Attributes
    ----------
    cause : Cause
        A cause, or an answer that comes from weighing them.
    score : float
        Share of an output token's time.
    undecided : tuple of str
        For `inconclusive`: the causes that cannot be told apart.
    others : tuple of Candidate
        Runners-up, the likeliest first.
    candidates : tuple of Candidate
        All that were found, the largest first, for `--explain`.
    """

    cause: Cause
    finding: Finding
    score: float
    confidence: float
    fault: bool = False
    undecided: tuple[str, ...] = ()
    others: tuple[Candidate, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()


def arbitrate(seen: Observations, attribution: Attribution) -> Decision:
    """Weigh everything that was found.

    Parameters
    ----------
    seen, attribution : Observations, Attribution
        What was measured, and the ledger with its issues.

    Returns
    -------
    Decision
        The named cause with those behind it, or those between which it cannot be decided.
    """
    context = context_of(seen, attribution.ledger)
    issues = (*seen.issues, *attribution.issues, *_without_ledger(seen, attribution))
    field = _with_confidence(_together(_found(context)), issues, attribution.host_or_kernels)
    leaders = sorted(_leaders(field), key=lambda each: -each.score * each.obtainable)
    notes = tuple(issue.statement for issue in issues)
    decision = _decide(context, leaders, attribution, notes)
    named = decision.cause, decision.finding.node, decision.finding.link
    shown = [each for each in field if each.score >= thresholds.LEAST_SHOWN and each.place != named]
    # As they would be named, did the first not stand before them.
    shown.sort(key=lambda each: -each.alone * each.obtainable)
    largest = sorted(field, key=lambda each: -each.alone)
    return replace(decision, others=tuple(shown[: 2 + 1]), candidates=tuple(largest))


def _found(context: Context) -> list[Candidate]:
    """Return every cause with a sign of it, and what shows only once that is mended.

    What limits a step limits only while there are steps.
    """
    busy = 1.0 - (context.seen.idle_share or 0.0)
    found = []
    for cause in CAUSES.values():
        for finding in _findings(cause, context):
            score = finding.score * (busy if cause.rests_on_steps else 1.0)
            if score > 0:
                found.append(Candidate(cause, finding, score, score))
    return found


def _findings(cause: Cause, context: Context) -> Iterator[Finding]:
    """Yield where a cause is found: the worst place, then what would be the worst were that mended, and so on."""
    for _ in range(1 + len(context.seen.nodes)):
        finding = cause.find(context) if cause.find is not None else None
        if finding is None or finding.score <= 0:
            return
        yield finding
        if cause.mended is None:
            return
        context = cause.mended(context, finding)


def _together(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with their family's score, and their lead over the rest of it."""
    weighed = []
    for each in found:
        family = [
            other for other in found if other.cause.family is not None and other.cause.family is each.cause.family
        ]
        rest = max((other.alone for other in family if other is not each), default=0.0)
        whole = min(1.0, sum(other.alone for other in family)) if family else each.alone
        weighed.append(replace(each, score=whole, lead=max(0.0, 1.0 - rest / each.alone)))
    return weighed


def _leaders(field: Iterable[Candidate]) -> list[Candidate]:
    """Return the largest of each family, and all that have none."""
    best: dict[object, Candidate] = {}
    for each in field:
        key = each.cause.family or each.name
        if key not in best or each.alone > best[key].alone:
            best[key] = each
    return list(best.values())


def _with_confidence(field: Sequence[Candidate], issues: Sequence[Issue], host_or_kernels: bool) -> list[Candidate]:
    leaders = _leaders(field)
    found = []
    for each in field:
        if each in leaders or each.cause.family is None:
            # What can be mended does not compete with the hardware's limits for being real.
            rivals = [other.score for other in leaders if other is not each and other.mendable >= each.mendable]
            weighed = each
        else:
            weighed = replace(each, score=each.alone)
            rivals = [other.score for other in leaders if other.cause.family is each.cause.family]
        margin = _margin(weighed.score, max(rivals, default=0.0))
        quality = _quality(each, issues, host_or_kernels)
        most, risk = float(thresholds.MOST_CONFIDENCE), thresholds.NARROW_RISK
        sure = min(most, (1.0 - risk * (1.0 - margin)) * quality)
        found.append(replace(each, confidence=min(most, margin * quality), sure=sure))
    return found


def _margin(score: float, rival: float) -> float:
    """Return how far a score stands out, by its lead over its rival and by its size, 0 to 1.

    It says less than it seems: among recorded runs those that are named by a narrow margin are nearly as often right as
    the others. So a name that is given loses only a part of what the margin lacks (`NARROW_RISK`).
    """
    weight = thresholds.MARGIN_WEIGHT
    lead = weight * (score - rival) / score if score >= rival else 0.0
    carried = (1.0 - weight) * min(1.0, score / rival if rival > 0 else 1.0) + lead
    return carried * min(1.0, score / thresholds.ENOUGH)


def _quality(candidate: Candidate, issues: Sequence[Issue], host_or_kernels: bool) -> float:
    """Return how far the measurements carry a name, 0 to 1."""
    quality = 1.0 - (1.0 - thresholds.SLIGHT) * candidate.finding.inferred
    # Within a family the name is surer the further it is ahead; by half as much again it is sure.
    quality *= thresholds.SLIGHT + (1.0 - thresholds.SLIGHT) * min(1.0, 2 * candidate.lead)
    if host_or_kernels and candidate.cause.host_or_kernels:
        quality *= thresholds.NOTABLE
    for issue in issues:
        if issue.scope is Scope.ALL or candidate.cause.rests_on_steps:
            quality *= issue.factor
    return quality


def _without_ledger(seen: Observations, attribution: Attribution) -> list[Issue]:
    if attribution.ledger.entries or seen.start:
        return []
    lack = "no output token with a known time: what was seen cannot be weighed as a share of one"
    # An engine that idles or is stuck needs no token to be seen so.
    stands_alone = any((engine.stuck_share or 0.0) > 1 / 2 for engine in seen.engines)
    idle = (seen.idle_share or 0.0) >= thresholds.IDLE
    return [] if stands_alone or idle else [Issue(thresholds.GRAVE, lack)]


def _decide(
    context: Context, leaders: Sequence[Candidate], attribution: Attribution, notes: tuple[str, ...]
) -> Decision:
    first = leaders[0] if leaders else None
    second = leaders[1] if len(leaders) > 1 else None
    small = first is None or first.score < (thresholds.MENDABLE if first.mendable else thresholds.LEAST_SCORE)
    if context.seen.start and small and (found := _of_a_start(context.seen, notes)) is not None:
        return found
    if first is None or small:
        return _undecided(context, first, None, notes)
    if second is not None and _confused(first, second, attribution):
        return _undecided(context, first, second, notes)
    if second is not None and _tied(first, second):
        confidence = max(first.sure, second.sure)
        evidence = (*first.finding.evidence, *second.finding.evidence)
        if first.confidence + second.confidence >= thresholds.LEAST_CONFIDENCE:
            finding = Finding(first.score, evidence=evidence, terms=(*first.finding.terms, *second.finding.terms))
            return Decision(CAUSES["balanced"], finding, first.score, confidence, notes=notes)
    if first.confidence < thresholds.LEAST_CONFIDENCE:
        return _undecided(context, first, second, notes)
    finding = first.finding
    unexplained = context.share("unexplained")
    if first.cause.rests_on_steps and unexplained > 1 / 2:
        words = f"{percent(unexplained)} of the time in steps is not explained by any measurement"
        finding = replace(finding, evidence=(*finding.evidence, line(words, unexplained, "1", "ledger")))
    return Decision(first.cause, finding, first.score, first.sure, first.fault, notes=notes)


def _confused(first: Candidate, second: Candidate, attribution: Attribution) -> bool:
    both = first.cause.host_or_kernels and second.cause.host_or_kernels
    return attribution.host_or_kernels and both and first.score - second.score < thresholds.CANNOT_TELL * first.score


def _tied(first: Candidate, second: Candidate) -> bool:
    """Return whether two limits of the hardware are within the error of each other."""
    limits = not first.mendable and not second.mendable
    both = min(first.score, second.score) >= thresholds.LEAST_SCORE
    return limits and both and first.score - second.score < thresholds.TIE * first.score


def _undecided(context: Context, first: Candidate | None, second: Candidate | None, notes: tuple[str, ...]) -> Decision:
    """Return `inconclusive` with what can still be said: between which two it is, where it is between two."""
    evidence: list[Evidence] = []
    undecided: tuple[str, ...] = ()
    if first is not None and second is not None and second.score >= thresholds.LEAST_SCORE:
        undecided = (first.name, second.name)
        words = (
            f"not sure: {first.name} ({percent(first.score)} of the time in steps) or {second.name} "
            f"({percent(second.score)}); run --causal: slowing each a little while the load runs tells"
        )
        evidence.append(line(words, None, "", "analysis"))
    seen, ledger = context.seen, context.ledger
    if not ledger.entries:
        unread = all(engine.readings == 0 for engine in seen.engines)
        words = "no output token with a known time: no ledger, only the engine's counts"
        if unread:
            words = "no request with a known time and no engine reading: nothing can be concluded"
        evidence.append(line(words, None, "", "analysis"))
    if first is not None:
        words = (
            f"the likeliest cause is {first.name}, with {percent(first.score)} of an output token's time; "
            f"a margin of {first.confidence:.2f} does not carry a verdict"
        )
        evidence += [line(words, first.score, "1", "ledger"), *first.finding.evidence]
    for phase, words in (("queue", "waiting for the engine"), (PREFILL, "prefill"), (DECODE, "decode")):
        if ledger.entries and (share := ledger.phase(phase)) > 0:
            evidence.append(line(f"{percent(share)} of an output token's time is {words}", share, "1", "ledger"))
    unexplained = context.share("unexplained")
    if ledger.entries and unexplained > thresholds.LEAST_SCORE:
        words = f"{percent(unexplained)} of the time in steps is unexplained"
        evidence.append(line(words, unexplained, "1", "ledger"))
    read = [engine for engine in seen.engines if engine.readings]
    if read and all((engine.waiting_share or 0.0) < thresholds.LEAST_SHOWN for engine in read):
        evidence.append(line("it is not queueing: hardly any reading had requests waiting", 0.0, "1", "engine metrics"))
    if not notes and not evidence:
        notes = ("the measurements show no cause above the threshold",)
    # How sure it is that this cannot be told is nobody's question; small, and smaller with worse measurements.
    confidence = (thresholds.LEAST_CONFIDENCE - thresholds.LEAST_SHOWN) * seen.quality
    finding = Finding(0.0, evidence=tuple(evidence))
    return Decision(CAUSES["inconclusive"], finding, 0.0, confidence, undecided=undecided, notes=notes)


def _of_a_start(seen: Observations, notes: tuple[str, ...]) -> Decision | None:
    """Return the answer for a start in which nothing was found; None where the samples do not tell."""
    span = seen.span_seconds
    if not span > 0 or not seen.nodes:
        return None
    for facts in seen.nodes.values():
        restrained = ((facts.throttled_seconds or 0.0) + (facts.cpu_wait_seconds or 0.0)) / span
        if restrained > 1 / 2:
            words = (
                f"processes of the engine on {facts.node} had no core for {percent(min(1.0, restrained))} of the "
                "start: a quota or other programs slow it; what storage would cost beside a free core is not known"
            )
            evidence = (line(words, restrained, "1", "samples: run delay, throttled time"),)
            confidence = thresholds.LEAST_CONFIDENCE - thresholds.LEAST_SHOWN
            return Decision(CAUSES["inconclusive"], Finding(0.0, evidence=evidence), 0.0, confidence, notes=notes)
    largest, known = 0.0, True
    lines: list[Evidence] = []
    for facts in seen.nodes.values():
        read, _ = read_bytes(facts)
        waits, source = storage_wait_share(facts, span)
        largest, known = max(largest, waits), known and bool(source) and facts.covered_share > 0
        if source:
            words = f"{facts.node} waited for storage {percent(waits)} of the {span:.3g} s and read {read / 1e6:.4g} MB"
            lines.append(line(words, waits, "1", source))
        if facts.worker_cpu_seconds is not None:
            used = facts.worker_cpu_seconds / span
            words = f"processes of the engine on {facts.node} computed with {used:.2g} cores: imports, compiling"
            lines.append(line(words, used, "cores", "samples: CPU time of the workers"))
    confidence = thresholds.SLIGHT * seen.quality * (1.0 - largest / thresholds.LEAST_SCORE / 2.0) if known else 0.0
    if confidence < thresholds.LEAST_CONFIDENCE:
        return None
    return Decision(CAUSES["balanced"], Finding(0.0, evidence=tuple(lines)), 0.0, confidence, notes=notes)
