"""The figures over all judged runs: rates, detection by cost, confusions, calibration, repeats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import scipy

from bottleneck.accuracy.answers import FIRST, LARGE_COST, LEAST_COST, MISSED, Judged
from bottleneck.accuracy.trials import DEVELOPMENT, HELD_OUT

# Borders of the cost by which faults are counted; the first is what counts for none.
COSTS = (LEAST_COST, 0.1, 0.2, 0.4, 0.8, 1.6)
CONFIDENCES = 10
REPEATS = 5
HEALTHY = "healthy"
UNDECIDED = "inconclusive"


@dataclass(frozen=True)
class Rate:
    """A proportion with its 95 % interval (Wilson's score)."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The proportion; NaN of none."""
        return self.hits / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its bounds."""
        if not self.of:
            return math.nan, math.nan
        found = scipy.stats.binomtest(self.hits, self.of).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class Split:
    """The rates of one part of the record.

    Attributes
    ----------
    large
        Right where the faults cost `LARGE_COST` or more.
    small
        Right where they cost less, but count.
    false_names
        Runs without a fault that counts, of which a fault was named.
    """

    runs: int
    cases: int
    large: Rate
    small: Rate
    named: Rate
    false_names: Rate


@dataclass(frozen=True)
class Bin:
    """Answers with about the same confidence."""

    low: float
    high: float
    confidence: float
    right: Rate


@dataclass(frozen=True)
class Repeat:
    """One case that was recorded several times: how often the class that was named most was named."""

    case: str
    faults: tuple[str, ...]
    cost: float
    answered: str
    same: Rate
    right: Rate


@dataclass(frozen=True)
class Figures:
    """Everything that the page shows.

    Attributes
    ----------
    detection
        By kind of fault and by cost (a border of `COSTS`, and what is below the first): named first or as a runner-up.
    first
        The same, named first.
    confusion
        By what was put in (faults that count), how often each class was named.
    calibration_error
        Expected: over all bins, how far confidence is from the rate of right answers, weighed by their runs.
    """

    splits: Mapping[str, Split]
    detection: Mapping[str, tuple[Rate, ...]]
    first: Mapping[str, tuple[Rate, ...]]
    confusion: Mapping[str, Mapping[str, int]]
    reliability: tuple[Bin, ...]
    calibration_error: float
    repeats: tuple[Repeat, ...]
    wrong: tuple[Judged, ...]


def figures(judged: Sequence[Judged]) -> Figures:
    """Return the figures; faulty runs without a healthy one beside them are left out.

    Parameters
    ----------
    judged : Sequence[Judged]
        Runs with what was put in and what was answered, in any order.
    """
    known = [each for each in judged if each.truth.healthy or each.truth.cost is not None]
    splits = {"all": _split(known)} | {
        name: _split([each for each in known if each.truth.trial.split == name]) for name in (DEVELOPMENT, HELD_OUT)
    }
    bins = _reliability(known)
    return Figures(
        splits=splits,
        detection=_by_cost(known, lambda place: place != MISSED),
        first=_by_cost(known, lambda place: place == FIRST),
        confusion=_confusion(known),
        reliability=bins,
        calibration_error=_calibration_error(bins),
        repeats=_repeats(known),
        wrong=tuple(each for each in known if not each.right),
    )


def _split(judged: Sequence[Judged]) -> Split:
    large = [each for each in judged if each.cost >= LARGE_COST]
    small = [each for each in judged if LEAST_COST <= each.cost < LARGE_COST]
    none = [each for each in judged if not each.counts]
    return Split(
        runs=len(judged),
        cases=len({each.truth.trial.identity for each in judged}),
        large=Rate(sum(each.right for each in large), len(large)),
        small=Rate(sum(each.right for each in small), len(small)),
        named=Rate(sum(FIRST in each.places for each in large), len(large)),
        false_names=Rate(sum(each.false_name for each in none), len(none)),
    )


def _by_cost(judged: Sequence[Judged], named: Callable[[str], bool]) -> dict[str, tuple[Rate, ...]]:
    """Return rates by kind and cost of single faults; two at once are a kind of their own, by what both cost."""
    counts: dict[str, list[list[bool]]] = {}
    for each in judged:
        if each.truth.healthy:
            continue
        place = sum(each.cost >= border for border in COSTS)
        row = counts.setdefault(kind_of(each), [[] for _ in range(len(COSTS) + 1)])
        row[place].append(all(named(one) for one in each.places))
    return {kind: tuple(Rate(sum(cell), len(cell)) for cell in row) for kind, row in sorted(counts.items())}


def kind_of(judged: Judged) -> str:
    """Return the word for what was put in.

    Parameters
    ----------
    judged : Judged
        A run with what was put in.

    Returns
    -------
    str
        Name in `FAULTS`, `HEALTHY` without a fault, or "two at once".
    """
    faults = judged.truth.trial.faults
    return HEALTHY if not faults else faults[0].kind if len(faults) == 1 else "two at once"


def _confusion(judged: Sequence[Judged]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for each in judged:
        if each.truth.healthy or each.counts:
            found.setdefault(kind_of(each), Counter())[each.answer.first.name] += 1
    return {kind: dict(sorted(row.items())) for kind, row in sorted(found.items())}


def _reliability(judged: Sequence[Judged]) -> tuple[Bin, ...]:
    # An answer that names nothing is sure of nothing.
    judged = [each for each in judged if each.answer.first.name != UNDECIDED]
    found = []
    for number in range(CONFIDENCES):
        low, high = number / CONFIDENCES, (number + 1) / CONFIDENCES
        inside = [
            each for each in judged if low <= each.answer.confidence < high or (each.answer.confidence == high == 1)
        ]
        if inside:
            mean = sum(each.answer.confidence for each in inside) / len(inside)
            found.append(Bin(low, high, mean, Rate(sum(each.right for each in inside), len(inside))))
    return tuple(found)


def _calibration_error(bins: Sequence[Bin]) -> float:
    whole = sum(each.right.of for each in bins)
    return sum(abs(each.confidence - each.right.value) * each.right.of for each in bins) / whole if whole else math.nan


def _repeats(judged: Sequence[Judged]) -> tuple[Repeat, ...]:
    cases: dict[tuple[object, ...], list[Judged]] = {}
    for each in judged:
        cases.setdefault(each.truth.trial.identity, []).append(each)
    found = []
    for runs in cases.values():
        if len(runs) < REPEATS:
            continue
        (answered, same), *_ = Counter(each.answer.first.name for each in runs).most_common()
        costs = sorted(each.cost for each in runs)
        first = runs[0].truth.trial
        found.append(Repeat(
            first.case.rpartition("/")[0], tuple(put.kind for put in first.faults), costs[len(costs) // 2], answered,
            Rate(same, len(runs)), Rate(sum(each.right for each in runs), len(runs)),
        ))  # fmt: skip
    return tuple(sorted(found, key=lambda each: (each.faults, each.case)))
