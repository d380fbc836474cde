"""Score the record: what each fault cost, and whether the verdict named it, and no other where there was none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# From here on a fault is one that a person wants to know of first.
LARGE_COST = 0.2
# What a verdict promises of its mending is to be as near to what mending gave.
GAIN_WITHIN = 0.05
# Answers that name nothing.
_CONTROLS = frozenset({"balanced", "inconclusive"})


@dataclass(frozen=True)
class Score:
    """One case, as it came out.

    Attributes
    ----------
    cost
        Time per token more than without what was put in, as a share of that; None without a run to compare with.
    named, node
        What the verdict said, and of which node.
    is_right
        Whether that is among what was expected, at the place where it was put in. Where what limits the run without it
        takes more than taking it away gives, it may stand among the runners-up.
    relief, gain
        Share of the time per token that taking it away gave back; the share that the verdicts with and without it
        promised, of the answer that counts.
    is_first
        Whether the answer that counts is the verdict, and not one of its runners-up.
    """

    case: str
    kind: str | None
    cost: float | None
    named: str
    node: str | None
    is_right: bool
    relief: float | None = None
    gain: float | None = None
    is_first: bool = True


def scores(lines: Iterable[Mapping[str, Any]]) -> list[Score]:
    """Return a score for each case of the record, in its order."""
    known = [line for line in lines if not line.get("error") and line.get("seconds_per_token")]
    return [_score(line, known) for line in known if line["of"]]


def _score(line: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> Score:
    put, verdict = line["put"], line["verdict"]
    named, node = str(verdict["class"]), (verdict.get("where") or {}).get("node")
    beside = _beside(line, known) if put else []
    cost = _cost(line, beside)
    relief = None if cost is None else cost / (1.0 + cost)
    right = _is_expected(line, named, node)
    behind = None
    if not right and relief is not None and relief < _limit_share(beside):
        # Taking the fault away gives less than what limits the run without it: its place is behind that.
        others = verdict.get("runners_up") or []
        behind = next((each for each in others if _is_expected(line, each["class"], each.get("node"))), None)
    answer = str(behind["class"]) if behind else named
    gain = _promised(line, _share_of(verdict, answer), answer, beside)
    return Score(
        case=str(line["case"]),
        kind=put["kind"] if put else None,
        cost=cost,
        named=named,
        node=node,
        is_right=right or behind is not None,
        relief=relief,
        gain=gain,
        is_first=behind is None,
    )


def _is_expected(line: Mapping[str, Any], named: str, node: str | None) -> bool:
    """Return whether a class is among those of the case, and a straggler the node at which the fault was put in."""
    put = line["put"] or {}
    return named in line["expected"] and (named != "straggler" or put.get("node") in (None, node))


def _beside(line: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the runs of a run's load without its fault that are nearest before and after it."""
    deployment = str(line["deployment"]).removesuffix("-uneven")
    plain = [
        other
        for other in known
        if other["put"] is None
        and other["deployment"] == deployment
        and other["load"]["kind"] == line["load"]["kind"]
        and other["requests"] == line["requests"]
    ]
    before = [other for other in plain if other["began"] < line["began"]][-1:]
    after = [other for other in plain if other["began"] > line["began"]][:1]
    return [*before, *after]


def _cost(line: Mapping[str, Any], beside: Sequence[Mapping[str, Any]]) -> float | None:
    """Return what a fault costs against the runs beside it."""
    seconds = [float(other["seconds_per_token"]) for other in beside]
    return float(line["seconds_per_token"]) * len(seconds) / sum(seconds) - 1.0 if seconds else None


def _share_of(verdict: Mapping[str, Any], cause: str) -> float | None:
    """Return the share of the time per token that a verdict gives to a cause: the gain of what it names, or a score."""
    if verdict["class"] == cause:
        share = (verdict.get("gain") or {}).get("share")
    else:
        share = next((each["score"] for each in verdict.get("runners_up") or [] if each["class"] == cause), None)
    return None if share is None else float(share)


def _promised(
    line: Mapping[str, Any], share: float | None, cause: str, beside: Sequence[Mapping[str, Any]]
) -> float | None:
    """Return what a verdict promises of taking a fault away: its cause's time less what that takes without the fault.

    A slowed link that is mended is a link still. As a share of the time per token with the fault.
    """
    if share is None or not beside:
        return share
    stays = [
        (_share_of(other["verdict"], cause) or 0.0)
        * float(other["seconds_per_token"])
        / float(line["seconds_per_token"])
        for other in beside
    ]
    return share - sum(stays) / len(stays)


def _limit_share(beside: Sequence[Mapping[str, Any]]) -> float:
    """Return the least share of the time that what limits the runs beside a fault takes, as their verdicts say."""
    shares = [(other["verdict"].get("gain") or {}).get("share") for other in beside]
    return min((float(share) for share in shares if share is not None), default=0.0)


def summary(found: Sequence[Score]) -> dict[str, Any]:
    """Return the figures: top-1 where a fault costs a fifth or more, and false names where nothing was put in."""
    large = [each for each in found if each.cost is not None and each.cost >= LARGE_COST]
    controls = [each for each in found if each.kind is None]
    promised = [
        abs(each.gain - each.relief) <= GAIN_WITHIN
        for each in large
        if each.is_right and each.gain is not None and each.relief is not None
    ]
    false = [each for each in controls if not each.is_right and each.named not in _CONTROLS]
    return {
        "cases": len(found),
        "causes": len({each.kind for each in found if each.kind}),
        "large": {"right": sum(each.is_right for each in large), "of": len(large)},
        "gain_within_5_points": {"right": sum(promised), "of": len(promised)},
        "controls": {"false_names": len(false), "of": len(controls)},
        "scores": [asdict(each) for each in found],
    }


def sentence(figures: Mapping[str, Any]) -> str:
    """Return the figures of a summary in words."""
    large, promised, controls = (figures[name] for name in ("large", "gain_within_5_points", "controls"))
    return (
        f"{figures['cases']} cases of {figures['causes']} kinds: right at a cost of 20 % or more {large['right']} of"
        f" {large['of']}; gain within 5 points of what taking the fault away gave {promised['right']} of"
        f" {promised['of']}; false names where nothing was put in {controls['false_names']} of {controls['of']}"
    )


def table(found: Sequence[Score]) -> str:
    """Return a line for each case, in Markdown."""
    lines = [
        "| case | put in | cost | named | its gain; what taking it away gave | right |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        cost = "-" if each.cost is None else f"{each.cost:+.0%}"
        place = f" on {each.node}" if each.node else ""
        right = ("yes" if each.is_first else "as a runner-up") if each.is_right else "no"
        gains = "; ".join("-" if share is None else f"{share:.0%}" for share in (each.gain, each.relief))
        lines.append(f"| {each.case} | {each.kind or 'nothing'} | {cost} | {each.named}{place} | {gains} | {right} |")
    return "\n".join(lines) + "\n"
