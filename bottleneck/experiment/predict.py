"""Predict what an upgrade would give, and which cause the experiment confirms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bottleneck.experiment.blocks import ITL, METRIC_WORDS, METRICS, TIME, TTFT
from bottleneck.experiment.model import Fit, Interval
from bottleneck.experiment.resources import ARRIVALS, CPU, LINK_LATENCY, LINK_RATE, RANK, SEQUENCES, Resource
from bottleneck.experiment.session import Session
from bottleneck.experiment.slack import RankSlack, slack_of_ranks, statement, waited_for

DRAWS = 2000
# How far off predictions of upgrades were that were then made, root mean square, in shares of the time: an upgrade
# reaches to where nothing was tried. (16 of them, tests/data/verdicts/upgrades-seed2.jsonl.)
MODEL_DEVIATION = 0.052
# Below this share, interval and all, a resource is no bottleneck.
LEAST_SHARE = 0.15
# A peer must have at least this much room for one node to be the slow one.
LEAST_ROOM = 0.15
# A limit on how many sequences run counts from here on: it is a setting, and what it costs comes on top of the work
# that a healthy cluster has too.
LEAST_LIMIT_SHARE = 0.25
DECODE_CLASSES = ("decode_memory_bandwidth", "decode_compute", "host_overhead")
_CLASSES = {LINK_RATE: "link_bandwidth", LINK_LATENCY: "link_latency", ARRIVALS: "client_limited"}


@dataclass(frozen=True)
class Circumstances:
    """Facts of a deployment and its load beside the blocks.

    Attributes
    ----------
    waits_for_slots
        Requests outnumber the sequences that the engine may run: then an effect of fewer sequences points to that
        limit.
    waits_for_cache
        Requests outnumber those that the KV caches hold, which are no more than the sequences allowed: then it points
        to the cache.
    has_stages
        Pipeline parallel: then, without waiting, it points to too few batches for the stages.
    output_tokens
        Of one request.
    """

    waits_for_slots: bool = False
    waits_for_cache: bool = False
    has_stages: bool = False
    output_tokens: int = 1


@dataclass(frozen=True)
class Gain:
    """The gain that an upgrade is predicted to give, or gave: the share of the time that is saved, below 1.

    A saving of 0.5 is a speed-up of 2. (Coz, SOSP 2015, measures programs by the same share.)
    """

    saved: Interval

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, with the speed-up as a ratio."""
        low, high = (1 / (1 - bound) if bound < 1 else None for bound in (self.saved.low, self.saved.high))
        return {
            "saved": self.saved.to_json(),
            "speedup": {"value": 1 / (1 - self.saved.value), "low": low, "high": high},
        }


def predict(estimates: Fit, resource: Resource, factor: float, seed: int = 1) -> Gain:
    """Predict what a resource `factor` times as good would give.

    Parameters
    ----------
    estimates : Fit
        A fit of the blocks.
    resource : Resource
        One of the fit's resources.
    factor : float
        2 is twice the bandwidth, half the latency, twice the cores; infinity takes the resource out altogether.
    seed : int
        Seed of the draws that make the interval.

    Returns
    -------
    Gain
        With a 95 % interval from the parameters' covariance and from how far off such predictions were.

    Raises
    ------
    ValueError
        For a factor of 0 or less.
    """
    if not factor > 0:
        raise ValueError(f"an upgrade by {factor!r}; expected a number above zero")
    slowdown = 0.0 if math.isinf(factor) else 1.0 / factor

    def time(parameters: NDArray[np.float64]) -> float:
        # The actuator's own cost is not part of the cluster.
        placebo = parameters[estimates.layout.index[f"placebo {resource.name}"]] if resource.has_placebo else 0.0
        return estimates.layout.relative_time(parameters, resource, slowdown) - float(placebo)

    drawn = [1.0 - time(parameters) for parameters in estimates.draws(DRAWS, seed)]
    low, high = np.percentile(drawn, [2.5, 97.5]) + 1.96 * MODEL_DEVIATION * np.array([-1.0, 1.0])
    value = 1.0 - time(estimates.parameters)
    ceiling = 0.999
    return Gain(Interval(min(value, ceiling), min(float(low), ceiling), min(float(high), ceiling)))


def measured_gain(before: Sequence[float], after: Sequence[float]) -> Gain:
    """Return what an upgrade that was made gave.

    Parameters
    ----------
    before, after : Sequence[float]
        Seconds of the same work in blocks that took turns; at least two of each.

    Raises
    ------
    ValueError
        With fewer than two blocks of either.
    """
    if min(len(before), len(after)) < 2:
        raise ValueError(f"{len(before)} blocks before and {len(after)} after; expected at least two of each")
    one, other = np.log(before), np.log(after)
    difference = float(other.mean() - one.mean())
    variance = float(one.var(ddof=1)) / len(one) + float(other.var(ddof=1)) / len(other)
    reach = 2.0 * math.sqrt(variance)
    bounds = sorted(1 - math.exp(difference + sign * reach) for sign in (-1, 1))
    return Gain(Interval(1 - math.exp(difference), bounds[0], bounds[1]))


@dataclass(frozen=True)
class Conclusion:
    """The experiment's answer.

    Attributes
    ----------
    name
        A class of the taxonomy, or `inconclusive`.
    confirmed
        Whether one cause stands out beyond the intervals; of `inconclusive`: that nothing that was slowed matters.
    candidates
        Every class that the effects are compatible with, the likeliest first.
    """

    name: str
    node: str | None
    link: str | None
    confirmed: bool
    statement: str
    candidates: tuple[str, ...]

    def settle(self, classes: Sequence[str]) -> str | None:
        """Return which of some classes the experiment confirms; None when it does not decide between them.

        Parameters
        ----------
        classes : Sequence[str]
            Names of classes, the likelier first.
        """
        compatible = [name for name in classes if name in self.candidates]
        return compatible[0] if self.confirmed and compatible else None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "class": self.name,
            "where": {"node": self.node, "link": self.link},
            "confirmed": self.confirmed,
            "statement": self.statement,
            "candidates": list(self.candidates),
        }


@dataclass(frozen=True)
class _Cause:
    names: tuple[str, ...]
    share: Interval
    resource: Resource


def conclude(session: Session, circumstances: Circumstances) -> Conclusion:
    """Say which resource holds the load back.

    Parameters
    ----------
    session : Session
        The experiment so far.
    circumstances : Circumstances
        Facts of the deployment and its load.

    Returns
    -------
    Conclusion
        "inconclusive" where nothing was measured or no resource could be slowed.
    """
    estimates = session.fit()
    if estimates is None:
        return Conclusion("inconclusive", None, None, False, "too few blocks to estimate anything", ())
    causes, limit = _causes(session, estimates, circumstances)
    if limit is not None and limit.share.low >= LEAST_LIMIT_SHARE:
        fewer, more = "sequences", "more of them"
        if circumstances.waits_for_cache:
            fewer, more = "requests at a time than the cache holds", "a larger cache"
        statement = f"with fewer {fewer} the time grows: {_words(limit)}; {more} would save as much less"
        return _conclusion(limit, True, statement)
    if not causes:
        return _conclusion_of_ranks(slack_of_ranks(estimates, session.slowdowns()))
    causes.sort(key=lambda cause: -cause.share.value)
    first, *others = causes
    if first.share.low < LEAST_SHARE:
        if first.share.high < LEAST_SHARE:
            statement = f"no resource that was slowed holds the load back: at most {_words(first)}"
            return Conclusion("inconclusive", None, None, True, statement, ())
        return _conclusion(first, False, f"{_words(first)}: a bottleneck or not; give it more time (--budget)")
    rivals = [cause for cause in others if cause.share.high >= first.share.low and cause.share.value >= LEAST_SHARE]
    if rivals:
        statement = f"{_words(first)}, not clearly more than {', '.join(_words(cause) for cause in rivals)}"
        return _conclusion(first, False, statement, rivals)
    return _conclusion(first, True, f"{_words(first)}, more than any other beyond the intervals")


def _conclusion_of_ranks(ranks: Sequence[RankSlack]) -> Conclusion:
    """Conclude from the slack of ranks alone: nothing else was slowed."""
    if not ranks:
        return Conclusion("inconclusive", None, None, False, "no resource could be slowed", ())
    late = waited_for(ranks)
    if late is None:
        return Conclusion("inconclusive", None, None, False, statement(ranks), ())
    return Conclusion("straggler", late.resource.place["node"], None, True, statement(ranks), ("straggler",))


def _conclusion(cause: _Cause, confirmed: bool, statement: str, rivals: Sequence[_Cause] = ()) -> Conclusion:
    place = cause.resource.place
    names = tuple(dict.fromkeys([*cause.names, *(name for rival in rivals for name in rival.names)]))
    if cause.names == DECODE_CLASSES:
        statement += "; which part of a node's work in decode it is, its speed cannot tell"
    return Conclusion(cause.names[0], place["node"], place["link"], confirmed, statement, names)


def _causes(session: Session, estimates: Fit, circumstances: Circumstances) -> tuple[list[_Cause], _Cause | None]:
    """Return the causes that were tried, and the limit on sequences apart, if that could be one."""
    causes: list[_Cause] = []
    limit: _Cause | None = None
    tried = {each.name: each for each in session.resources if each.name in estimates.layout.resources}
    grouped = [tried[name] for name in estimates.layout.members if name in tried]
    slow = slow_node(estimates, grouped)
    for resource in tried.values():
        share = estimates.share(resource)
        if resource.kind == CPU:
            if resource is slow:
                causes.append(_Cause(("straggler",), share, resource))
            elif _stands_for_work(resource, tried, grouped, slow):
                causes.append(_Cause(_work_classes(session, resource, circumstances), share, resource))
        elif resource.kind == SEQUENCES and circumstances.waits_for_cache:
            limit = _Cause(("kv_cache_capacity",), share, resource)
        elif resource.kind == SEQUENCES and circumstances.waits_for_slots:
            limit = _Cause(("sequence_limit",), share, resource)
        elif resource.kind == SEQUENCES and circumstances.has_stages:
            limit = _Cause(("pipeline_bubble",), share, resource)
        elif resource.kind in _CLASSES:
            causes.append(_Cause((_CLASSES[resource.kind],), share, resource))
    return causes, limit


def _stands_for_work(
    resource: Resource, tried: Mapping[str, Resource], grouped: Sequence[Resource], slow: Resource | None
) -> bool:
    """Tell whether a processor's share is that of the work as a whole: of all together, or of the only one."""
    if slow is not None:
        return False  # the share is the slow node's
    if len(resource.nodes) > 1:
        return True
    # Its part is in that of all together.
    return CPU not in tried and resource not in grouped[1:]


def _work_classes(session: Session, resource: Resource, circumstances: Circumstances) -> tuple[str, ...]:
    """Tell the work of prompts from that of answers, by how much each depends on the processor."""
    parts = {}
    for metric, times in ((TTFT, 1), (ITL, max(1, circumstances.output_tokens - 1))):
        estimates = session.fit(metric)
        seen = [each.metric(metric) for each in session.measurements if each.block.resource is None]
        if estimates is None or not seen or resource.name not in estimates.layout.resources:
            return ("prefill_compute", *DECODE_CLASSES)
        parts[metric] = estimates.share(resource).value * float(np.nanmedian(seen)) * times
    return ("prefill_compute",) if parts[TTFT] > parts[ITL] else DECODE_CLASSES


def slow_node(estimates: Fit, grouped: Sequence[Resource]) -> Resource | None:
    """Return the processor that its peers wait for, or None when none of them stands out beyond the intervals.

    Parameters
    ----------
    estimates : Fit
        A fit of the blocks.
    grouped : Sequence[Resource]
        Processors that wait for each other.
    """
    if len(grouped) < 2:
        return None
    loads = {resource.name: estimates.interval(f"load {resource.name}") for resource in grouped}
    slowest = max(grouped, key=lambda resource: loads[resource.name].value)
    most = loads[slowest.name].value
    peers = [loads[resource.name] for resource in grouped if resource is not slowest]
    stands_out = all(peer.high < most and peer.value < (1 - LEAST_ROOM) * most for peer in peers)
    return slowest if stands_out else None


def _words(cause: _Cause) -> str:
    share = cause.share
    return (
        f"{cause.resource.name} has {share.value:.0%} ({share.low:.0%} to {share.high:.0%}) of the {METRIC_WORDS[TIME]}"
    )


def report(
    session: Session, circumstances: Circumstances, factors: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return everything that the experiment found, as plain data.

    Parameters
    ----------
    session : Session
        The experiment, at its end.
    circumstances : Circumstances
        Facts of the deployment and its load.
    factors : Mapping[str, float] or None
        Resource name -> upgrade to predict besides twice as good and without limit.
    """
    sensitivity = []
    tried = session.slowdowns()
    for resource in session.resources:
        if resource.kind == RANK:
            continue
        row: dict[str, Any] = {
            "resource": resource.name,
            "kind": resource.kind,
            "amount": resource.amount,
            "unit": resource.unit,
            "nodes": list(resource.nodes),
            "metrics": {},
        }
        for metric in METRICS:
            estimates = session.fit(metric)
            if estimates is None or resource.name not in estimates.layout.resources:
                continue
            found: dict[str, Any] = {"share": estimates.share(resource).to_json()}
            if resource.name in estimates.layout.group_of:
                found["load"] = estimates.interval(f"load {resource.name}").to_json()
            asked = {"2": 2.0, "inf": math.inf}
            if factors and resource.name in factors:
                asked[f"{factors[resource.name]:g}"] = factors[resource.name]
            found["upgrades"] = {
                label: predict(estimates, resource, factor, session.seed).to_json() for label, factor in asked.items()
            }
            row["metrics"][metric] = found
        row["slowdowns"] = tried[resource.name]
        row["blocks"] = sum(each.block.resource is resource for each in session.measurements)
        sensitivity.append(row)
    ranks = slack_of_ranks(session.fit(), tried)
    late = waited_for(ranks)
    return {
        **session.to_json(),
        "sensitivity": sensitivity,
        "slack": [rank.to_json() for rank in ranks],
        "waited_for": late.resource.name if late else None,
        "slack_statement": statement(ranks) if ranks else None,
        "conclusion": conclude(session, circumstances).to_json(),
    }
