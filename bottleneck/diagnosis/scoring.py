"""Score verdicts against faults that were put in: top-1, top-3, false alarms, time, confusions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import scipy

from bottleneck.diagnosis.causes import CAUSES, DECIDED

SCHEMA = 1
HEALTHY = "healthy"
DEVELOPMENT, HELD_OUT = "development", "held-out"
SPLITS = (DEVELOPMENT, HELD_OUT)
# An answer should be there after this much data.
EARLY_SECONDS = 15.0


@dataclass(frozen=True)
class Outcome:
    """One case: what was put in, and what was answered without being told.

    Attributes
    ----------
    expected
        Classes that are right; one, except for a healthy cluster, where every limit that is no fault is.
    node, link
        The place that was tampered with, where the class has one.
    answered
        The verdict's class.
    runners_up
        Its runners-up, the likeliest first.
    confirmed
        What the causal experiment made of an answer that was not sure; None when it was not asked.
    data_seconds, analysis_seconds
        Length of what was measured, and how long judging it took.
    early, early_node, early_link
        What is answered when only the first `EARLY_SECONDS` of the data are looked at, and the place; empty when
        that was not asked.
    run
        The recorded run that the answer is about.
    """

    case: str
    fault: str
    expected: tuple[str, ...]
    answered: str
    runners_up: tuple[str, ...] = ()
    confidence: float = 0.0
    node: str | None = None
    link: str | None = None
    answered_node: str | None = None
    answered_link: str | None = None
    confirmed: str | None = None
    data_seconds: float = math.nan
    analysis_seconds: float = math.nan
    split: str = DEVELOPMENT
    seed: int = 1
    early: str = ""
    early_node: str | None = None
    early_link: str | None = None
    run: str = ""
    error: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def unsure(self) -> bool:
        """Whether the answer is that it cannot be told."""
        return self.answered in DECIDED

    @property
    def right(self) -> bool:
        """Whether the class is right, and the place where the case has one and the answer names one."""
        return self._holds(self.answered, self.answered_node, self.answered_link)

    @property
    def right_early(self) -> bool:
        """The same of the answer to the first seconds of the data."""
        return self._holds(self.early, self.early_node, self.early_link)

    def _holds(self, answered: str, node: str | None, link: str | None) -> bool:
        places = ((self.node, node), (self.link, link))
        return answered in self.expected and all(put is None or told in (None, put) for put, told in places)

    @property
    def among_three(self) -> bool:
        """Whether a right class is among the answer and its first two runners-up."""
        return any(name in self.expected for name in (self.answered, *self.runners_up)[:3])

    @property
    def false_alarm(self) -> bool:
        """Whether a healthy cluster was said to have a fault."""
        return self.fault == HEALTHY and self.answered in CAUSES and CAUSES[self.answered].fault

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, one line of the benchmark's record."""
        document = asdict(self)
        for key in ("data_seconds", "analysis_seconds"):
            if not math.isfinite(document[key]):
                document[key] = None
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Outcome:
        """Read what `to_json` wrote."""
        values = {key: value for key, value in document.items() if key in cls.__dataclass_fields__}
        for key in ("expected", "runners_up"):
            values[key] = tuple(values.get(key) or ())
        for key in ("data_seconds", "analysis_seconds"):
            values[key] = math.nan if values.get(key) is None else float(values[key])
        return cls(**values)


def halves(strata: Mapping[str, str], seed: int) -> dict[str, str]:
    """Return which half each case belongs to: by digests of names and seed, so never by how it came out.

    Parameters
    ----------
    strata
        The stratum of each case, by the case's name. The cases of a stratum are dealt out in turns, so that both halves
        have every kind of case that there are two of.
    """

    def digest(text: str) -> bytes:
        return hashlib.sha256(f"{seed}/{text}".encode()).digest()

    found = {}
    for stratum in dict.fromkeys(strata.values()):
        names = sorted((name for name, own in strata.items() if own == stratum), key=digest)
        first = digest(stratum)[0]
        found.update({name: SPLITS[(first + place) % 2] for place, name in enumerate(names)})
    return found


def rate(hits: int, of: int) -> dict[str, Any]:
    """Return a proportion with its 95 % interval (Wilson's score)."""
    if of == 0:
        return {"hits": 0, "of": 0, "rate": None, "low": None, "high": None}
    interval = scipy.stats.binomtest(hits, of).proportion_ci(method="wilson")
    return {"hits": hits, "of": of, "rate": hits / of, "low": float(interval.low), "high": float(interval.high)}


def score(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return the figures over cases, in all, by split and by fault, with the confusions.

    Cases that could not be run (`error`) are counted and named, and left out of every rate.
    """
    whole = list(outcomes)
    ran = [each for each in whole if not each.error]
    confusion: dict[str, dict[str, int]] = {}
    for each in ran:
        row = confusion.setdefault(each.fault, {})
        row[each.answered] = row.get(each.answered, 0) + 1
    return {
        "schema": SCHEMA,
        "all": _figures(ran),
        "splits": {split: _figures([each for each in ran if each.split == split]) for split in SPLITS},
        "faults": {fault: _figures([each for each in ran if each.fault == fault]) for fault in sorted(confusion)},
        "confusion": {fault: dict(sorted(row.items())) for fault, row in sorted(confusion.items())},
        "wrong": [each.to_json() for each in ran if not each.right],
        "errors": {each.case: each.error for each in whole if each.error},
        "seeds": sorted({each.seed for each in whole}),
    }


def _figures(ran: Sequence[Outcome]) -> dict[str, Any]:
    unsure = [each for each in ran if each.unsure and not each.right]
    asked = [each for each in unsure if each.confirmed is not None]
    healthy = [each for each in ran if each.fault == HEALTHY]
    return {
        "cases": len(ran),
        "top1": rate(sum(each.right for each in ran), len(ran)),
        "top3": rate(sum(each.among_three for each in ran), len(ran)),
        "false_alarms": rate(sum(each.false_alarm for each in healthy), len(healthy)),
        "early": rate(sum(each.right_early for each in ran if each.early), sum(bool(each.early) for each in ran)),
        "unsure": rate(len(unsure), len(ran)),
        "settled_by_causal": rate(sum(each.confirmed in each.expected for each in asked), len(asked)),
        "data_seconds": _quantiles([each.data_seconds for each in ran]),
        "analysis_seconds": _quantiles([each.analysis_seconds for each in ran]),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return None
    return {"median": known[len(known) // 2], "largest": known[-1]}


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as tables in Markdown."""
    lines = [
        f"| cases | top-1 | after {EARLY_SECONDS:.0f} s of data | top-3 | false alarms | not sure "
        "| settled by --causal | data, median (largest) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in (("all", figures["all"]), *figures["splits"].items()):
        lines.append(f"| {name}: {row['cases']} {_row(row)}")
    lines += ["", "| fault put in | cases | top-1 | top-3 | answered |", "|---|---|---|---|---|"]
    for fault, row in figures["faults"].items():
        answers = ", ".join(f"{name} {count}" for name, count in figures["confusion"][fault].items())
        lines.append(f"| `{fault}` | {row['cases']} | {_percent(row['top1'])} | {_percent(row['top3'])} | {answers} |")
    for case, error in figures["errors"].items():
        lines += ["", f"Not run: `{case}`: {error}"]
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    rates = (row[name] for name in ("top1", "early", "top3", "false_alarms", "unsure", "settled_by_causal"))
    seconds = row["data_seconds"]
    spent = f"{seconds['median']:.0f} s ({seconds['largest']:.0f} s)" if seconds else "-"
    return f"| {' | '.join(_percent(each) for each in rates)} | {spent} |"


def _percent(found: Mapping[str, Any]) -> str:
    if found["rate"] is None:
        return "-"
    return f"{found['rate']:.0%} ({found['hits']}/{found['of']}, {found['low']:.0%} to {found['high']:.0%})"
