"""What an upgrade would give, and which cause the experiment confirms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.causal.blocks import METRIC_WORDS, METRICS, TIME
from bottleneck.causal.model import Fit, Interval
from bottleneck.causal.resources import ARRIVALS, CPU, LINK_LATENCY, LINK_RATE, SEQUENCES, Resource
from bottleneck.causal.session import Session
from bottleneck.taxonomy import CLASSES

DRAWS = 2000
# Below this share, interval and all, a resource is no bottleneck.
LEAST_SHARE = 0.15
# A peer must have at least this much room for one node to be the slow one.
LEAST_ROOM = 0.15
# The words that a class may go by, the present one first.
_CLASS_NAMES = {
    "straggler": ("straggler",),
    "compute": ("compute", "prefill_compute"),
    LINK_RATE: ("link_bandwidth",),
    LINK_LATENCY: ("link_latency",),
    SEQUENCES: ("sequence_limit", "too_few_sequences", "queueing"),
    ARRIVALS: ("client_limited", "load_too_small"),
}


@dataclass(frozen=True)
class Gain:
    """What an upgrade is predicted to give, or gave: the share of the time that is saved, below 1.

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
    factor
        2 is twice the bandwidth, half the latency, twice the cores; infinity takes the resource out altogether.

    Returns
    -------
    Gain
        With a 95 % interval from the parameters' covariance.
    """
    if not factor > 0:
        raise ValueError(f"an upgrade by {factor!r}; expected a number above zero")
    slowdown = 0.0 if math.isinf(factor) else 1.0 / factor

    def time(parameters: Any) -> float:
        # The actuator's own cost is not part of the cluster.
        placebo = parameters[estimates.layout.index[f"placebo {resource.name}"]] if resource.has_placebo else 0.0
        return estimates.layout.relative_time(parameters, resource, slowdown) - float(placebo)

    drawn = [1.0 - time(parameters) for parameters in estimates.draws(DRAWS, seed)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    value = 1.0 - time(estimates.parameters)
    ceiling = 0.999
    return Gain(Interval(min(value, ceiling), min(float(low), ceiling), min(float(high), ceiling)))


def measured_gain(before: Sequence[float], after: Sequence[float]) -> Gain:
    """Return what an upgrade that was made gave.

    Parameters
    ----------
    before, after
        Seconds of the same work in blocks that took turns; at least two of each.
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
    """What the experiment says.

    Attributes
    ----------
    name
        A class of the taxonomy, `inconclusive` or `balanced`.
    confirmed
        Whether one cause stands out beyond the intervals.
    """

    name: str
    node: str | None
    link: str | None
    confirmed: bool
    statement: str
    candidates: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "class": self.name,
            "where": {"node": self.node, "link": self.link},
            "confirmed": self.confirmed,
            "statement": self.statement,
            "candidates": list(self.candidates),
        }


def conclude(session: Session, waits_for_slots: bool) -> Conclusion:
    """Say which resource holds the load back.

    Parameters
    ----------
    waits_for_slots
        Whether requests outnumber the sequences that the engine may run: then it is that limit that an effect of fewer
        sequences points to, otherwise the load itself.
    """
    estimates = session.fit()
    if estimates is None:
        return Conclusion("inconclusive", None, None, False, "too few blocks to estimate anything", ())
    rows = _causes(estimates, session.resources, waits_for_slots)
    if not rows:
        return Conclusion("inconclusive", None, None, False, "no resource could be slowed", ())
    rows.sort(key=lambda row: -row[1].value)
    (name, share, resource), *others = rows
    words = f"{resource.name} has a share of {_percent(share)} of the {METRIC_WORDS[TIME]}"
    if share.low < LEAST_SHARE:
        if share.high < LEAST_SHARE:
            statement = f"no resource that was slowed holds the load back: at most {words}"
            return Conclusion("inconclusive", None, None, True, statement, ())
        statement = f"{words}: that may or may not be a bottleneck; give it more time (--budget)"
        return Conclusion("inconclusive", None, None, False, statement, (name,))
    rivals = [row for row in others if row[1].high >= share.low and row[1].value >= LEAST_SHARE]
    place = resource.place
    if rivals:
        named = [f"{row[2].name} with {_percent(row[1])}" for row in rivals]
        statement = f"{words}, not clearly more than {', '.join(named)}"
        return Conclusion(name, place["node"], place["link"], False, statement, (name, *(row[0] for row in rivals)))
    statement = f"{words}, more than any other beyond the intervals"
    return Conclusion(name, place["node"], place["link"], True, statement, (name,))


def _causes(
    estimates: Fit, resources: Sequence[Resource], waits_for_slots: bool
) -> list[tuple[str, Interval, Resource]]:
    """Return (class, share, resource) of every cause that was tried."""
    rows = []
    tried = {resource.name: resource for resource in resources if resource.name in estimates.layout.resources}
    grouped = [tried[name] for name in estimates.layout.members if name in tried]
    slow = slow_node(estimates, grouped)
    for resource in tried.values():
        if resource.kind == CPU:
            if resource in grouped:
                if resource is slow:
                    rows.append((class_of("straggler"), estimates.share(resource), resource))
                continue
            if len(resource.nodes) > 1 and slow is not None:
                continue  # the share is the slow node's
            if len(resource.nodes) == 1 and CPU in tried:
                continue  # its part is in that of all together
            rows.append((class_of("compute"), estimates.share(resource), resource))
        elif resource.kind == SEQUENCES:
            # Fewer sequences take longer by less than in proportion; more of them save as much less.
            rows.append((class_of(SEQUENCES if waits_for_slots else ARRIVALS), estimates.share(resource), resource))
        elif resource.kind in _CLASS_NAMES:
            rows.append((class_of(resource.kind), estimates.share(resource), resource))
    return rows


def slow_node(estimates: Fit, grouped: Sequence[Resource]) -> Resource | None:
    """Return the processor that its peers wait for, or None when none of them stands out beyond the intervals."""
    if len(grouped) < 2:
        return None
    loads = {resource.name: estimates.interval(f"load {resource.name}") for resource in grouped}
    slowest = max(grouped, key=lambda resource: loads[resource.name].value)
    most = loads[slowest.name].value
    peers = [loads[resource.name] for resource in grouped if resource is not slowest]
    stands_out = all(peer.high < most and peer.value < (1 - LEAST_ROOM) * most for peer in peers)
    return slowest if stands_out else None


def class_of(cause: str) -> str:
    """Return the taxonomy's name for a cause."""
    return next((name for name in _CLASS_NAMES[cause] if name in CLASSES), _CLASS_NAMES[cause][0])


def _percent(interval: Interval) -> str:
    return f"{interval.value:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def report(session: Session, waits_for_slots: bool, factors: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return everything that the experiment found, as plain data.

    Parameters
    ----------
    factors
        Resource name -> upgrade to predict besides twice as good and without limit.
    """
    sensitivity = []
    for resource in session.resources:
        row: dict[str, Any] = {"resource": resource.name, "kind": resource.kind, "amount": resource.amount,
                               "unit": resource.unit, "nodes": list(resource.nodes), "metrics": {}}  # fmt: skip
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
        tried = sorted({each.block.slowdown for each in session.measurements if each.block.resource is resource})
        row["slowdowns"] = tried
        row["blocks"] = sum(each.block.resource is resource for each in session.measurements)
        sensitivity.append(row)
    return {
        **session.to_json(),
        "sensitivity": sensitivity,
        "conclusion": conclude(session, waits_for_slots).to_json(),
    }
