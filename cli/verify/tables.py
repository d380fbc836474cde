"""The benchmark's tables in Markdown: rates, detection by cost, confusions, repeats, what is wrong."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from bottleneck.accuracy.answers import LARGE_COST, LEAST_COST, Judged
from bottleneck.accuracy.figures import COSTS, Bin, Figures, Rate, Repeat
from bottleneck.accuracy.trials import FAULTS, Put, Trial
from bottleneck.units import duration_text

# The faults in words, and in the order of the tables.
WORDS: Mapping[str, str] = {
    **{name: kind.words for name, kind in FAULTS.items()},
    "two at once": "two faults at once",
}


def score(figures: Figures) -> str:
    """Return the rates of the whole record and of its two parts."""
    lines = [
        f"| runs | of cases | right where the fault costs {LARGE_COST:.0%} or more | right at {LEAST_COST:.0%} to "
        f"{LARGE_COST:.0%} | named first at {LARGE_COST:.0%} or more | false names |",
        "|---|---|---|---|---|---|",
    ]
    for name, split in figures.splits.items():
        rates = " | ".join(percent(rate) for rate in (split.large, split.small, split.named, split.false_names))
        lines.append(f"| {name}: {split.runs} | {split.cases} | {rates} |")
    return _text(lines)


def detection(figures: Figures) -> str:
    """Return, for each fault and cost, how often it was named, and in brackets how often first."""
    lines = [f"| fault | class | {' | '.join(cost_words())} |", f"|---|---|{'---|' * (len(COSTS) + 1)}"]
    for kind in _ordered(figures.detection):
        named, first = figures.detection[kind], figures.first[kind]
        cells = [
            f"{one.hits} ({two.hits}) of {one.of}" if one.of else "" for one, two in zip(named, first, strict=True)
        ]
        lines.append(f"| {WORDS[kind]} | {_class(kind)} | {' | '.join(cells)} |")
    return _text(lines)


def confusion(figures: Figures) -> str:
    """Return a row for each fault put in, a column for each class named first; faults that cost too little left out."""
    rows = figures.confusion
    answers = sorted({answer for row in rows.values() for answer in row})
    lines = [
        f"| put in \\ named | {' | '.join(f'`{answer}`' for answer in answers)} |",
        f"|---|{'---|' * len(answers)}",
    ]
    for kind in ("healthy", *_ordered(rows)):
        if kind in rows:
            cells = " | ".join(str(rows[kind].get(answer) or "") for answer in answers)
            lines.append(f"| {WORDS.get(kind, kind)} | {cells} |")
    return _text(lines)


def reliability(bins: Sequence[Bin], error: float) -> str:
    """Return how often answers of about the same confidence were right."""
    lines = [
        f"Expected calibration error: {error:.2f} (answers that name nothing left out).",
        "",
        "| confidence | mean | right |",
        "|---|---|---|",
    ]
    lines += [f"| {each.low:.0%} to {each.high:.0%} | {each.confidence:.0%} | {percent(each.right)} |" for each in bins]
    return _text(lines)


def repeats(found: Sequence[Repeat]) -> str:
    """Return how often the same class was named of one case."""
    large = [each for each in found if each.cost >= LARGE_COST]
    same = Rate(sum(each.same.hits for each in large), sum(each.same.of for each in large))
    lines = [
        f"{len(found)} cases were recorded five times or more. Where a fault costs {LARGE_COST:.0%} or more "
        f"({len(large)} cases), {percent(same)} of the runs named what most runs of their case named.",
        "",
        "| case | put in | costs | named most | same class | right |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        put = ", ".join(WORDS[kind] for kind in each.faults) or "healthy"
        cost = f"{each.cost:.0%}" if each.faults else ""
        lines.append(
            f"| {each.case} | {put} | {cost} | `{each.answered}` | {each.same.hits} of {each.same.of} "
            f"| {each.right.hits} of {each.right.of} |"
        )
    return _text(lines)


def wrong(found: Sequence[Judged]) -> str:
    """Return every run whose answer is wrong, the costliest first."""
    lines = [
        "| case | put in | costs | named | its runners-up | relief measured | healthy limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in sorted(found, key=lambda one: -one.cost):
        trial, cost = each.truth.trial, each.truth.cost
        put = ", ".join(fault_words(fault) for fault in trial.faults) or "healthy"
        costs = f"{cost.value:.0%} ({cost.low:.0%} to {cost.high:.0%})" if cost else ""
        place = each.answer.first.node or each.answer.first.link
        named = f"`{each.answer.first.name}`{f' {place}' if place else ''} {each.answer.confidence:.0%}"
        others = ", ".join(f"`{other.name}`" for other in each.answer.runners_up)
        reliefs = ", ".join(f"{relief.value:.0%}" if relief else "?" for relief in each.truth.reliefs)
        rival = f"{each.rival:.0%}" if each.rival is not None else ""
        lines.append(f"| {trial.case} | {put} | {costs} | {named} | {others} | {reliefs} | {rival} |")
    return _text(lines)


def whole(figures: Figures) -> str:
    """Return every table, each under its heading."""
    parts = {
        "Score": score(figures),
        "Detection": detection(figures),
        "Confusions": confusion(figures),
        "Confidence": reliability(figures.reliability, figures.calibration_error),
        "Repeats": repeats(figures.repeats),
        "Wrong": wrong(figures.wrong),
    }
    return "\n".join(f"## {heading}\n\n{text}" for heading, text in parts.items())


def recorded(trials: Sequence[Trial], seconds: Sequence[float]) -> str:
    """Return what was recorded, in a paragraph."""
    days = sorted({_day(trial.began) for trial in trials})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    seeds = ", ".join(str(seed) for seed in sorted({trial.seed for trial in trials}))
    faulty = [trial for trial in trials if trial.faults]
    cases, groups = len({trial.identity for trial in trials}), len({trial.group for trial in trials})
    middle = sorted(seconds)[len(seconds) // 2] if seconds else math.nan
    return _text([
        f"{len(trials)} runs of {cases} cases, {len(faulty)} of them with a fault, in {groups} groups; seed {seeds}, "
        f"{when}. To judge one took {duration_text(middle)} (median)."
    ])  # fmt: skip


def percent(rate: Rate) -> str:
    """Return a proportion with its counts and its interval."""
    if not rate.of:
        return "-"
    low, high = rate.interval
    return f"{rate.value:.0%} ({rate.hits}/{rate.of}, {low:.0%} to {high:.0%})"


def cost_words() -> list[str]:
    """Return the columns of costs in words."""
    borders = [f"{border:.0%}" for border in COSTS]
    ranges = [f"{low} to {high}" for low, high in pairwise(borders)]
    return [f"below {borders[0]}", *ranges, f"{borders[-1]} and more"]


def fault_words(put: Put) -> str:
    """Return a fault in words, with its strength and place."""
    scale, unit = FAULTS[put.kind].factor, FAULTS[put.kind].unit
    place = f" on {put.node}" if put.node and put.kind != "api_server" else ""
    return f"{put.kind} {put.strength * scale:.3g} {unit}{place}"


def _ordered(kinds: Mapping[str, object]) -> list[str]:
    return [kind for kind in WORDS if kind in kinds]


def _class(kind: str) -> str:
    return f"`{FAULTS[kind].cause}`" if kind in FAULTS else "both"


def _day(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat()


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
