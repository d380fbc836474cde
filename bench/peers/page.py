"""Make the tables of doc/reference/verdict-peers.md from the record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bench.peers.answers import FIRST, NAMED, OTHER, SILENT, SYMPTOM, UNREAD, WRONG, Answer, best_way, outcome, tally
from bench.peers.cases import CASES, PeerCase
from bench.peers.tools import OURS, PEERS

MARKS = {
    FIRST: "**right**",
    NAMED: "right, not first",
    SYMPTOM: "symptom",
    WRONG: "wrong",
    SILENT: "nothing",
    UNREAD: "cannot read it",
}
MARKS_WHERE_ONE_IS_WRONG = {**MARKS, OTHER: "not that", WRONG: "that, wrongly"}


Row = dict[str, Any]
"""One line of the record: program, version, date, way, scenario, and the answer."""

Answers = dict[str, dict[str, dict[str, Answer]]]
"""From program, way and scenario to the answer."""


def tables(record: Sequence[Row]) -> dict[str, str]:
    """Return the page's tables by the name of their place in it."""
    answers: Answers = {}
    for line in record:
        of_way = answers.setdefault(line["program"], {}).setdefault(line["way"], {})
        of_way[line["scenario"]] = Answer.from_json(line)
    best = {program: best_way(CASES, ways) for program, ways in answers.items()}
    versions = {line["program"]: (str(line["version"]), str(line["date"])) for line in record}
    return {
        "score": _score(versions, answers, best),
        "cases": _every_case(answers, best),
        "ways": _every_way(answers),
        "meanings": _meanings(),
    }


def filled(page: str, found: dict[str, str]) -> str:
    """Return the page with every table in its place, between `<!-- NAME -->` and `<!-- end -->`.

    Raises
    ------
    ValueError
        When a place is missing or there twice.
    """
    for name, text in found.items():
        places = re.findall(rf"<!-- {name} -->\n.*?<!-- end -->", page, flags=re.DOTALL)
        if len(places) != 1:
            raise ValueError(f"expected one place <!-- {name} --> ... <!-- end -->, found {len(places)}")
        page = page.replace(places[0], f"<!-- {name} -->\n\n{text}\n<!-- end -->")
    return page


# The words of the columns, in the order in which `_counts` returns them.
_COUNTS = ("right", "right, not first", "symptom only", "wrong", "nothing", "cannot read", "false name")


def _counts(answers: dict[str, Answer]) -> list[str]:
    counted = tally(CASES, answers)
    known = sum(bool(case.right) for case in CASES)
    others = len(CASES) - known
    numbers = [counted[outcome] for outcome in (FIRST, NAMED, SYMPTOM, WRONG, SILENT, UNREAD)]
    return [f"{numbers[0]}/{known}", *map(str, numbers[1:]), f"{counted['false']}/{others}"]


def _score(versions: dict[str, tuple[str, str]], answers: Answers, best: dict[str, str]) -> str:
    rows = []
    for tool, ways in answers.items():
        known = [case for case in CASES if case.right]
        ever = sum(any(outcome(case, asked[case.name]) == FIRST for asked in ways.values()) for case in known)
        shown = [*versions[tool], best[tool], *_counts(ways[best[tool]]), f"{ever}/{len(known)}"]
        rows.append([tool, *shown])
    return _table(["program", "version", "asked on", "its best way", *_COUNTS, "right in some way"], rows)


def _every_way(answers: Answers) -> str:
    rows = [[tool, way, *_counts(asked)] for tool, ways in answers.items() for way, asked in ways.items()]
    return _table(["program", "asked by", *_COUNTS], rows)


def _every_case(answers: Answers, best: dict[str, str]) -> str:
    rows = []
    for case in CASES:
        cells = [_cell(case, ways[best[tool]][case.name]) for tool, ways in answers.items()]
        classes = " or ".join(f"`{name}`" for name in case.right) or f"not `{case.wrong[0]}`"
        rows.append([f"`{case.name}`", f"{case.cause}: {classes}", *cells])
    return _table(["scenario", "what is known", *answers], rows)


def _cell(case: PeerCase, answer: Answer) -> str:
    marks = MARKS_WHERE_ONE_IS_WRONG if case.wrong else MARKS
    mark = marks[outcome(case, answer)]
    titles = "; ".join(finding.words[0] for finding in answer.findings)
    return f"{mark}: {titles}" if titles else mark


def _meanings() -> str:
    rows = []
    for tool, peer in PEERS.items():
        for words, meaning in peer.meanings.items():
            names = ", ".join(f"`{name}`" for name in meaning.names) or "-"
            rows.append([tool, f"`{words}`", names, "yes" if meaning.symptom else "", meaning.reason])
    rows.append([OURS, "its class", "that class, its runners-up not", "", ""])
    return _table(["program", "finding", "stands for", "symptom", "by its words"], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
