"""Read what a program answered, and judge it against what is known of a scenario.

Every finding carries the program's own words and the classes of ours that those words stand for: each class that its
title, its causes or its advice name, so in doubt more of them. A finding is a symptom when it is true of the scenario
but names no limit ("requests wait"); a symptom is wrong only where it rules the cause out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.peers.cases import PeerCase

FIRST, NAMED, SYMPTOM, WRONG, SILENT, UNREAD = "first", "named", "symptom", "wrong", "silent", "unread"
OTHER = "other"
"""Where one class is known to be wrong: something else was named."""
OUTCOMES = (FIRST, NAMED, SYMPTOM, WRONG, SILENT, UNREAD, OTHER)


@dataclass(frozen=True)
class Finding:
    """One thing that a program said.

    Attributes
    ----------
    words : tuple of str
        Verbatim: the title first, then what the program adds to it.
    names : tuple of str
        The classes that the words stand for.
    rank : tuple of str
        The program's own severity and confidence; findings of the first one's rank share the first place.
    symptom : bool
        It tells what the cause leads to, not the cause.
    excludes : tuple of str
        Classes that the words rule out.
    """

    words: tuple[str, ...]
    names: tuple[str, ...] = ()
    rank: tuple[str, ...] = ()
    symptom: bool = False
    excludes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Finding:
        """Read a finding of the record; what is not there is at its default."""
        return cls(
            tuple(document["words"]),
            tuple(document.get("names", [])),
            tuple(document.get("rank", [])),
            document.get("symptom", False),
            tuple(document.get("excludes", [])),
        )


@dataclass(frozen=True)
class Answer:
    """A program's findings on one scenario, in its order, or why there are none.

    Attributes
    ----------
    findings : tuple of Finding
        Empty when the program found nothing to name.
    verbatim : str
        What it said when it named nothing.
    unread : str
        Why it could not be asked: command and error.
    """

    findings: tuple[Finding, ...] = ()
    verbatim: str = ""
    unread: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the answer as the record has it: without what is empty."""
        document = _without_empty(asdict(self))
        if self.findings:
            document["findings"] = [_without_empty(asdict(finding)) for finding in self.findings]
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Answer:
        """Read what `to_json` wrote."""
        findings = tuple(Finding.from_json(finding) for finding in document.get("findings", []))
        return cls(findings, document.get("verbatim", ""), document.get("unread", ""))


def _without_empty(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value}


def outcome(case: PeerCase, answer: Answer) -> str:
    """Return how an answer stands to what is known of a scenario."""
    if answer.unread:
        return UNREAD
    if not answer.findings:
        return SILENT
    if case.wrong:
        blamed = [finding for finding in answer.findings if set(finding.names) & set(case.wrong)]
        return OTHER if all(finding.symptom for finding in blamed) else WRONG
    naming = [finding for finding in answer.findings if set(finding.names) & set(case.right)]
    if any(finding.rank == answer.findings[0].rank for finding in naming):
        return FIRST
    if naming:
        return NAMED
    blameless = all(finding.symptom and not set(finding.excludes) & set(case.right) for finding in answer.findings)
    return SYMPTOM if blameless else WRONG


def tally(cases: Sequence[PeerCase], answers: dict[str, Answer]) -> dict[str, int]:
    """Return how many scenarios of known cause had each outcome, and `false`: how many others a false name."""
    counted = dict.fromkeys(OUTCOMES, 0)
    for case in cases:
        if case.right:
            counted[outcome(case, answers[case.name])] += 1
    false = sum(outcome(case, answers[case.name]) == WRONG for case in cases if case.wrong)
    return {**counted, "false": false}


def best_way(cases: Sequence[PeerCase], ways: dict[str, dict[str, Answer]]) -> str:
    """Return the way of asking under which a program did best: most named first, most named, fewest wrong."""

    def merit(way: str) -> tuple[int, int, int]:
        counted = tally(cases, ways[way])
        return counted[FIRST], counted[FIRST] + counted[NAMED], -counted[WRONG] - counted["false"]

    return max(ways, key=merit)
