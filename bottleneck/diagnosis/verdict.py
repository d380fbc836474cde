"""The verdict: the named bottleneck, its evidence, its confidence, what mending it would gain."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from bottleneck.diagnosis import taxonomy
from bottleneck.diagnosis.attribution.ledger import Ledger, build_ledger
from bottleneck.diagnosis.evidence import Candidate, Evidence
from bottleneck.diagnosis.observations.gather import gather
from bottleneck.diagnosis.rules.judge import judge
from bottleneck.json_numbers import finite
from bottleneck.runs.run import Run

__all__ = ["Evidence", "Verdict", "analyse"]

SCHEMA = 1


@dataclass
class Verdict:
    """A named bottleneck.

    Attributes
    ----------
    name : str
        A class of `bottleneck.diagnosis.taxonomy`; `class` in JSON.
    where : dict
        `node` and `link`, None where it has no such place.
    kind : str or None
        What a straggler lacks.
    between : tuple of str
        For `inconclusive`: the classes between which it cannot be told, if it is between two.
    meaning : str
        What the class is, in a sentence or two.
    confidence : float
        0 to 1: how far the evidence carries this class and not the runner-up. Not a probability from trials.
    evidence : list of Evidence
        What it rests on, the strongest first.
    runners_up : list of dict
        `{"class", "confidence"}`, the likeliest first.
    gain : dict
        `{"seconds_per_output_token", "share", "statement"}`: what is won if the cause is gone altogether, from the
        ledger: an upper bound, because the next bottleneck takes over.
    """

    name: str
    title: str
    where: dict[str, str | None]
    confidence: float
    evidence: list[Evidence] = field(default_factory=list)
    runners_up: list[dict[str, Any]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    gain: dict[str, Any] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    measured: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interval: tuple[float, float] = (0.0, 0.0)
    kind: str | None = None
    between: tuple[str, ...] = ()
    meaning: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON-able data."""
        document: dict[str, Any] = finite(
            {
                "schema": SCHEMA,
                "class": self.name,
                "title": self.title,
                "meaning": self.meaning,
                "fault": self.name in taxonomy.CLASSES and taxonomy.CLASSES[self.name].fault,
                "where": self.where,
                "kind": self.kind,
                "between": list(self.between),
                "confidence": round(self.confidence, 3),
                "interval": {"start": self.interval[0], "end": self.interval[1]},
                "evidence": [item.to_json() for item in self.evidence],
                "runners_up": self.runners_up,
                "advice": self.advice,
                "gain": self.gain,
                "ledger": self.ledger.to_json(),
                "measured": self.measured,
                "notes": self.notes,
            }
        )
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Verdict:
        """Read a verdict that `to_json` wrote."""
        interval = document.get("interval") or {}
        name = str(document.get("class", "inconclusive"))
        return cls(
            name=name,
            title=str(document.get("title", name)),
            where={"node": None, "link": None, **(document.get("where") or {})},
            confidence=float(document.get("confidence", 0.0)),
            evidence=[Evidence.from_json(item) for item in document.get("evidence") or []],
            runners_up=list(document.get("runners_up") or []),
            advice=[str(item) for item in document.get("advice") or []],
            gain=document.get("gain"),
            ledger=Ledger.from_json(document.get("ledger") or {}),
            measured=dict(document.get("measured") or {}),
            notes=[str(item) for item in document.get("notes") or []],
            interval=(float(interval.get("start") or 0.0), float(interval.get("end") or 0.0)),
            kind=document.get("kind"),
            between=tuple(str(item) for item in document.get("between") or []),
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
        `inconclusive` with what can still be said when the measurements do not carry more. Never raises for bad
        measurements.
    """
    try:
        signals = gather(run)
        ledger = build_ledger(run, signals)
        winner, others, notes = judge(signals, ledger)
    except (ArithmeticError, ValueError, TypeError, LookupError, AttributeError) as error:
        # Measurements come from other machines: a shape nobody foresaw must give an honest answer, not a traceback.
        return _broken(run, error)
    limit = signals.topology.max_num_seqs or max((engine.inferred_limit or 0 for engine in signals.engines), default=0)
    values = {
        "node": winner.node,
        "link": winner.link,
        "kind": winner.kind,
        "max_num_seqs": _text(limit),
        "more_seqs": _text(4 * limit if limit else None),
        "concurrency": _text(signals.suggested_concurrency),
    }
    kind = taxonomy.CLASSES[winner.name]
    return Verdict(
        name=winner.name,
        title=taxonomy.title(winner.name, values),
        where={"node": winner.node, "link": winner.link},
        confidence=winner.confidence,
        evidence=winner.evidence,
        runners_up=[{"class": item.name, "confidence": round(item.confidence, 3)} for item in others],
        # A start that its own work takes has nothing to be mended, and no load to try it under.
        advice=[] if run.start and winner.name == "balanced" else [taxonomy.fill(line, values) for line in kind.advice],
        gain=_gain(winner, ledger),
        ledger=ledger,
        measured=signals.to_json(),
        # A start has no tokens to keep a ledger of.
        notes=[*notes, *(note for note in ([] if run.start else ledger.notes) if note not in notes)],
        interval=run.interval,
        kind=winner.kind,
        between=winner.between,
        meaning=(kind.at_start if run.start else "") or kind.meaning,
    )


def _text(value: float | None) -> str | None:
    return f"{value:g}" if value else None


def _gain(winner: Candidate, ledger: Ledger) -> dict[str, Any] | None:
    if winner.gain_share is None or not ledger.total > 0 or not math.isfinite(winner.gain_share):
        return None
    share = min(max(winner.gain_share, 0.0), 1.0)
    seconds = share * ledger.total
    return {
        "seconds_per_output_token": seconds,
        "share": share,
        "statement": (
            f"without it an output token would take up to {seconds * 1e3:.3g} ms less "
            f"({share:.0%} of {ledger.total * 1e3:.3g} ms); then the next bottleneck takes over"
        ),
    }


def _broken(run: Run, error: Exception) -> Verdict:
    kind = taxonomy.CLASSES["inconclusive"]
    note = f"the measurements could not be analysed ({type(error).__name__}: {error}); nothing can be concluded"
    return Verdict(
        name=kind.name,
        title=kind.title,
        where={"node": None, "link": None},
        confidence=0.0,
        evidence=[Evidence(note, None, "", "analysis")],
        advice=list(kind.advice),
        notes=[note, *run.problems],
        interval=run.interval,
        meaning=kind.meaning,
    )
