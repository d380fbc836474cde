"""The verdict: the named bottleneck, its evidence, its confidence, what mending it would gain."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from bottleneck.diagnosis.arbitration import Candidate, Decision, arbitrate
from bottleneck.diagnosis.attribution.build import attribute
from bottleneck.diagnosis.attribution.ledger import Ledger
from bottleneck.diagnosis.causes import fill, title
from bottleneck.diagnosis.evidence import Evidence
from bottleneck.diagnosis.observations.gather import gather
from bottleneck.diagnosis.observations.observed import Observations
from bottleneck.json_numbers import finite
from bottleneck.profile.engine_types import ENGINE_SETTINGS
from bottleneck.runs.run import Run
from bottleneck.runs.topology import Topology

SCHEMA = 2


@dataclass(frozen=True)
class Verdict:
    """A named bottleneck.

    Attributes
    ----------
    name : str
        A cause; `class` in JSON.
    where : dict
        `node` and `link`, None where it has no such place.
    kind : str or None
        What a straggler lacks.
    undecided : tuple of str
        For `inconclusive`: the causes that cannot be told apart, if it is between two.
    meaning : str
        What the cause is, in a sentence or two.
    score : float
        Share of an output token's time that relief of it takes away, 0 to 1.
    confidence : float
        0 to 1: how often such an answer was right, see doc/reference/verdict-accuracy.md.
    fault : bool
        Whether something works or is set wrong.
    evidence : tuple of Evidence
        What it rests on, the strongest first.
    runners_up : tuple of dict
        `{"class", "score", "confidence", "node", "link"}`, as they would be named next.
    candidates : tuple of dict
        Every cause of which there is a sign, with the terms of its score.
    gain : dict
        `{"seconds_per_output_token", "share", "statement"}`: what is won if the cause is gone altogether, from the
        ledger: an upper bound, because the next bottleneck takes over.
    """

    name: str
    title: str
    where: dict[str, str | None]
    confidence: float
    score: float = 0.0
    fault: bool = False
    evidence: tuple[Evidence, ...] = ()
    runners_up: tuple[dict[str, Any], ...] = ()
    candidates: tuple[dict[str, Any], ...] = ()
    advice: tuple[str, ...] = ()
    gain: dict[str, Any] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    measured: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    interval: tuple[float, float] = (0.0, 0.0)
    kind: str | None = None
    undecided: tuple[str, ...] = ()
    meaning: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON-able data."""
        document: dict[str, Any] = finite(
            {
                "schema": SCHEMA,
                "class": self.name,
                "title": self.title,
                "meaning": self.meaning,
                "fault": self.fault,
                "where": self.where,
                "kind": self.kind,
                "undecided": list(self.undecided),
                "score": round(self.score, 3),
                "confidence": round(self.confidence, 3),
                "interval": {"start": self.interval[0], "end": self.interval[1]},
                "evidence": [item.to_json() for item in self.evidence],
                "runners_up": list(self.runners_up),
                "candidates": list(self.candidates),
                "advice": list(self.advice),
                "gain": self.gain,
                "ledger": self.ledger.to_json(),
                "measured": self.measured,
                "notes": list(self.notes),
            }
        )
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Verdict:
        """Return the verdict that `to_json` wrote.

        Parameters
        ----------
        document : dict[str, Any]
            Plain data; what is missing is empty or 0, and a verdict without a class is inconclusive.
        """
        interval = document.get("interval") or {}
        name = str(document.get("class", "inconclusive"))
        return cls(
            name=name,
            title=str(document.get("title", name)),
            where={"node": None, "link": None, **(document.get("where") or {})},
            confidence=float(document.get("confidence", 0.0)),
            score=float(document.get("score", 0.0)),
            fault=bool(document.get("fault", False)),
            evidence=tuple(Evidence.from_json(item) for item in document.get("evidence") or []),
            runners_up=tuple(document.get("runners_up") or []),
            candidates=tuple(document.get("candidates") or []),
            advice=tuple(str(item) for item in document.get("advice") or []),
            gain=document.get("gain"),
            ledger=Ledger.from_json(document.get("ledger") or {}),
            measured=dict(document.get("measured") or {}),
            notes=tuple(str(item) for item in document.get("notes") or []),
            interval=(float(interval.get("start") or 0.0), float(interval.get("end") or 0.0)),
            kind=document.get("kind"),
            undecided=tuple(str(item) for item in document.get("undecided") or []),
            meaning=str(document.get("meaning", "")),
        )


def analyse(run: Run) -> Verdict:
    """Name the bottleneck of a run or of a live window.

    Parameters
    ----------
    run : Run
        From `load_run`, or from `window_run` for a live window (no client timings).

    Returns
    -------
    Verdict
        `inconclusive` with what can still be said when the measurements do not carry more. Bad measurements are an
        answer; a mistake in the analysis is an exception.
    """
    seen = gather(run)
    attribution = attribute(seen, run.interval)
    decision = arbitrate(seen, attribution)
    cause, finding, ledger = decision.cause, decision.finding, attribution.ledger
    values = _values(seen, decision)
    # A start that its own work takes has nothing to be mended, and no load to try it under.
    nothing = run.start and cause.name == "balanced"
    advice = finding.advice or cause.advice
    return Verdict(
        name=cause.name,
        title=title(cause.name, values),
        where={"node": finding.node, "link": finding.link},
        confidence=decision.confidence,
        score=decision.score,
        fault=decision.fault,
        evidence=finding.evidence,
        runners_up=tuple(_runner_up(each) for each in decision.others),
        candidates=tuple(_explained(each) for each in decision.candidates),
        advice=() if nothing else tuple(fill(text, values) for text in _possible(advice, seen.topology)),
        gain=_gain(decision, ledger),
        ledger=ledger,
        measured=seen.to_json(),
        # A start has no tokens to keep a ledger of.
        notes=tuple(dict.fromkeys((*decision.notes, *(() if run.start else ledger.notes)))),
        interval=run.interval,
        kind=finding.kind,
        undecided=decision.undecided,
        meaning=(cause.at_start if run.start else "") or cause.meaning,
    )


def _possible(advice: tuple[str, ...], topology: Topology) -> tuple[str, ...]:
    """Return advice without what names a setting that the deployment's engine does not have."""
    if topology.profile is None:
        return advice
    deployment = topology.profile.deployments[topology.deployment]
    lacks = ENGINE_SETTINGS - topology.profile.engine_for(deployment, deployment.nodes[0]).settings()
    return tuple(text for text in advice if not any(re.search(rf"\b{name}\b", text) for name in lacks))


def _values(seen: Observations, decision: Decision) -> dict[str, str | None]:
    """Return what fills the gaps of a cause's words."""
    limit = seen.topology.max_num_seqs or max((engine.inferred_limit or 0 for engine in seen.engines), default=0)
    budget = seen.topology.max_num_batched_tokens
    return {
        "node": decision.finding.node,
        "link": decision.finding.link,
        "kind": decision.finding.kind,
        "max_num_seqs": _text(limit),
        "more_seqs": _text(2 * 2 * limit),
        "max_num_batched_tokens": _text(budget),
        "more_tokens": _text(2 * 2 * budget if budget else None),
        "concurrency": _text(seen.suggested_concurrency),
    }


def _text(value: float | None) -> str | None:
    return f"{value:g}" if value else None


def _runner_up(each: Candidate) -> dict[str, Any]:
    return {
        "class": each.name,
        "score": round(each.alone, 3),
        "confidence": round(each.confidence, 3),
        "node": each.finding.node,
        "link": each.finding.link,
    }


def _explained(each: Candidate) -> dict[str, Any]:
    terms = [{"words": term.words, "share": term.share} for term in each.finding.terms]
    return {
        **_runner_up(each),
        "tier": each.cause.tier.value,
        "together": each.score,
        "fault": each.fault,
        "terms": terms,
    }


def _gain(decision: Decision, ledger: Ledger) -> dict[str, Any] | None:
    if decision.score <= 0 or not ledger.total > 0:
        return None
    seconds = decision.score * ledger.total
    return {
        "seconds_per_output_token": seconds,
        "share": decision.score,
        "statement": (
            f"without it an output token would take up to {seconds * 1e3:.3g} ms less "
            f"({decision.score:.0%} of {ledger.total * 1e3:.3g} ms); then the next bottleneck takes over"
        ),
    }
