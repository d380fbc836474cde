"""Read what a verdict answered, from its JSON, and whether that is right by what the faults were measured to cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bottleneck.accuracy.trials import Put
from bottleneck.accuracy.truth import Measured, Truth

# A fault that costs less is none that has to be named, and to name it, or any, is to cry wolf.
LEAST_COST = 0.05
# From here on a fault is one that a person would want to know of first.
LARGE_COST = 0.2
# What a next step of the hardware gives: twice as fast, half of what it takes.
NEXT_STEP = 0.5
# Properties of one link: a balance between them names it.
OF_A_LINK = frozenset({"link_bandwidth", "link_latency"})
FIRST, RUNNER_UP, MISSED = "first", "runner-up", "missed"


@dataclass(frozen=True)
class Named:
    """A class and the place that it was said of."""

    name: str
    node: str | None = None
    link: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class Answer:
    """A verdict in short.

    Attributes
    ----------
    first
        What was named, with the share of a token's time that relief is said to give back.
    between
        Classes between which it was left, where it was.
    fault
        Whether what was named is called a fault.
    confidence
        The number that is printed with it.
    """

    first: Named
    fault: bool
    confidence: float
    undecided: tuple[str, ...] = ()
    runners_up: tuple[Named, ...] = ()

    @classmethod
    def of_verdict(cls, verdict: Mapping[str, Any]) -> Answer:
        """Return the answer that a verdict's JSON holds.

        Parameters
        ----------
        verdict : Mapping[str, Any]
            Verdict as `Verdict.to_json` writes it.

        Raises
        ------
        KeyError
            When it names no class.
        """
        where = verdict.get("where") or {}
        first = Named(str(verdict["class"]), where.get("node"), where.get("link"), verdict.get("score"))
        return cls(
            first,
            bool(verdict.get("fault")),
            float(verdict.get("confidence") or 0.0),
            tuple(str(name) for name in verdict.get("undecided") or ()),
            tuple(_runner_up(each) for each in verdict.get("runners_up") or ()),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, without what is empty."""
        document = asdict(self)
        document["first"] = _filled(document["first"])
        document["runners_up"] = [_filled(each) for each in document["runners_up"]]
        return {key: value for key, value in document.items() if value not in (None, (), [])}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Answer:
        """Read what `to_json` returned.

        Parameters
        ----------
        document : Mapping[str, Any]
            An answer that was written down.

        Raises
        ------
        KeyError
            When a part of it is missing.
        """
        return cls(
            Named(**document["first"]),
            bool(document["fault"]),
            float(document["confidence"]),
            tuple(document.get("undecided") or ()),
            tuple(Named(**each) for each in document.get("runners_up") or ()),
        )


def _runner_up(document: Mapping[str, Any]) -> Named:
    return Named(str(document["class"]), document.get("node"), document.get("link"), document.get("score"))


def _filled(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in document.items()
        if value is not None
    }


@dataclass(frozen=True)
class Judged:
    """One answer beside the truth.

    Attributes
    ----------
    places
        For each fault that was put in, where the answer has it: `first`, `runner-up` or `missed`.
    wanted
        For each, where it may be.
    rival
        The largest share of this run's time that a healthy run's own limit has: None where that is not known.
    false_name
        Whether a fault was named where none was, or none that costs as much as counts.
    """

    truth: Truth
    answer: Answer
    places: tuple[str, ...]
    wanted: tuple[frozenset[str], ...]
    rival: float | None
    false_name: bool

    @property
    def right(self) -> bool:
        """Return whether every fault that counts is where it may be, and none is named that is not there."""
        if self.false_name:
            return False
        return all(place in wanted for place, wanted in zip(self.places, self.wanted, strict=True))

    @property
    def cost(self) -> float:
        """Return the cost of the faults together; 0 for a healthy run."""
        return self.truth.cost.value if self.truth.cost else 0.0

    @property
    def counts(self) -> bool:
        """Return whether a fault is there that has to be named."""
        return self.cost >= LEAST_COST


def judge(truth: Truth, answer: Answer, healthy: Sequence[Answer]) -> Judged:
    """Say where an answer has what was put in, and where it may have it.

    Parameters
    ----------
    truth : Truth
        Measured facts of the run: its faults, and what they cost.
    answer : Answer
        The run's own answer.
    healthy : Sequence[Answer]
        The answers to the healthy runs that this one is compared with: the largest relief that they name is what the
        fault competes with.

    Returns
    -------
    Judged
        The run with the place of each fault in the answer.
    """
    shares = [share for each in healthy if (share := _largest(each)) is not None]
    cost = truth.cost.value if truth.cost else 0.0
    rival = median(shares) / (1 + max(cost, 0.0)) if shares and truth.trial.faults else None
    places = tuple(place_of(put, truth.trial.deployment, answer) for put in truth.trial.faults)
    wanted = tuple(
        _wanted(relief, cost, rival, [other for other in truth.reliefs if other is not relief])
        for relief in truth.reliefs
    )
    small = not truth.trial.faults or cost < LEAST_COST
    return Judged(truth, answer, places, wanted, rival, small and answer.fault)


def _largest(answer: Answer) -> float | None:
    """Return the largest relief that an answer names."""
    return max((each.share for each in (answer.first, *answer.runners_up) if each.share is not None), default=None)


def place_of(put: Put, deployment: str, answer: Answer) -> str:
    """Return where an answer has a fault: its class, at its place where it has one.

    Parameters
    ----------
    put
        The fault that was put in.
    deployment
        Name of the deployment: on one node alone a slow node is a slow host.
    answer
        The verdict, as its JSON says it.
    """
    expected, node = expected_of(put, deployment)
    first = answer.first
    if first.name == expected and _is_there(first, node, put.link):
        return FIRST
    # Between two properties of one link, or of one node, that link or that node is named.
    of_one = (set(answer.undecided) <= OF_A_LINK and put.link is not None) or node is not None
    if expected in answer.undecided and of_one and _is_there(first, node, put.link):
        return FIRST
    for other in answer.runners_up:
        if other.name == expected and _is_there(other, node, put.link):
            return RUNNER_UP
    return MISSED


def expected_of(put: Put, deployment: str) -> tuple[str, str | None]:
    """Return the class and the node that name a fault.

    Parameters
    ----------
    put : Put
        The fault.
    deployment : str
        Name of the deployment; on "single" there is no other node that one could fall behind.

    Returns
    -------
    tuple[str, str or None]
        Name of the class; name of the node, None where the fault is no node's own.
    """
    if deployment == "single" and put.expected == "straggler":
        return "host_overhead", None
    return put.expected, put.node


def _is_there(named: Named, node: str | None, link: str | None) -> bool:
    return (node is None or named.node == node) and (link is None or named.link == link)


def _wanted(
    relief: Measured | None, cost: float, rival: float | None, others: Sequence[Measured | None]
) -> frozenset[str]:
    """Return where a fault may stand in an answer: by its measured relief against what else takes the time."""
    if cost < LEAST_COST:
        return frozenset({FIRST, RUNNER_UP, MISSED})
    if relief is None:
        return frozenset({FIRST, RUNNER_UP})
    own = rival or 0.0
    may_be = set()
    # Ahead of the other faults, and of what the next step of the hardware would give.
    if relief.high >= max([NEXT_STEP * own, *(other.low for other in others if other)]):
        may_be.add(FIRST)
    # Behind whatever takes more of the time.
    if rival is None or relief.low <= max([own, *(other.high for other in others if other)]):
        may_be.add(RUNNER_UP)
    # What may well be nothing.
    if relief.low < LEAST_COST / (1 + LEAST_COST):
        may_be.add(MISSED)
    return frozenset(may_be)
