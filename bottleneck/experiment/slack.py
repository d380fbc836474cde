"""Slack of ranks: pause one at a time for a few percent, and see how much of that the others wait for.

A rank that everything waits for costs its pause: paused for a share p of the time, its work takes 1 / (1 - p) times as
long, and the throughput falls by p. A rank that waits itself has slack: what it lost it makes up while it would have
waited. Slack is 1 - lost / p: 0 for the rank that is waited for, 1 for one whose pauses cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bottleneck.experiment.model import Fit, Interval
from bottleneck.experiment.resources import RANK, Resource, paused_share

# The rank that is waited for has less than this, interval and all; each of its peers more.
SLACK_LIMIT = 0.5


@dataclass(frozen=True)
class RankSlack:
    """One rank's slack.

    Attributes
    ----------
    resource
        The rank.
    put_in
        Largest share of the time for which it was paused.
    lost
        Throughput lost at that, as a share of what there is with nothing paused.
    slack
        1 - lost / put in.
    """

    resource: Resource
    put_in: float
    lost: Interval
    slack: Interval

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "rank": self.resource.name,
            "node": self.resource.place["node"],
            "replica": self.resource.replica,
            "put_in": self.put_in,
            "lost": self.lost.to_json(),
            "slack": self.slack.to_json(),
        }


def rank_slack(resource: Resource, cost: Interval, slowdown: float) -> RankSlack:
    """Return a rank's slack from what the fit found.

    Parameters
    ----------
    resource : Resource
        The rank.
    cost : Interval
        Its share in the fit: paused so that its work takes `s` times as long, the burst takes 1 + cost (s - 1).
    slowdown : float
        The largest that was tried, above 1.

    Returns
    -------
    RankSlack
        Shares of the throughput and of the pause, without a unit.

    Raises
    ------
    ValueError
        When nothing was slowed.
    """
    if not slowdown > 1:
        raise ValueError(f"slowdown {slowdown!r} of {resource.name}: expected more than 1")
    put_in = paused_share(slowdown)

    def lost(share: float) -> float:
        return 1.0 - 1.0 / max(1e-6, 1.0 + share * (slowdown - 1.0))

    found = Interval(lost(cost.value), lost(cost.low), lost(cost.high))
    slack = Interval(1 - found.value / put_in, 1 - found.high / put_in, 1 - found.low / put_in)
    return RankSlack(resource, put_in, found, slack)


def slack_of_ranks(estimates: Fit | None, slowdowns: Mapping[str, Sequence[float]]) -> list[RankSlack]:
    """Return the slack of every rank that was paused.

    Parameters
    ----------
    estimates : Fit or None
        A fit of the blocks; None gives none.
    slowdowns : Mapping[str, Sequence[float]]
        Name of a resource -> slowdowns that were tried.

    Returns
    -------
    list[RankSlack]
        In the order of the fit's resources.
    """
    if estimates is None:
        return []
    return [
        rank_slack(resource, estimates.share(resource), max(slowdowns[resource.name]))
        for resource in estimates.layout.resources.values()
        if resource.kind == RANK and slowdowns.get(resource.name)
    ]


def waited_for(ranks: Sequence[RankSlack]) -> RankSlack | None:
    """Return the rank that the others of its replica wait for; None where none stands out beyond the intervals.

    Parameters
    ----------
    ranks : Sequence[RankSlack]
        All that were paused. With several replicas, the one whose ranks differ most counts.

    Returns
    -------
    RankSlack or None
        One of `ranks`.
    """
    replicas: dict[int | None, list[RankSlack]] = {}
    for rank in ranks:
        replicas.setdefault(rank.resource.replica, []).append(rank)
    found: list[tuple[float, RankSlack]] = []
    for members in replicas.values():
        late, *others = sorted(members, key=lambda rank: rank.slack.value)
        if not others or late.slack.high >= SLACK_LIMIT:
            continue
        if all(other.slack.low > late.slack.high and other.slack.value >= SLACK_LIMIT for other in others):
            found.append((others[0].slack.low - late.slack.high, late))
    return max(found, key=lambda each: each[0])[1] if found else None


def statement(ranks: Sequence[RankSlack]) -> str:
    """Say in a sentence which rank everything waits for, or that none stands out.

    Parameters
    ----------
    ranks : Sequence[RankSlack]
        At least one.

    Returns
    -------
    str
        For people, with each slack and its interval in percent where a rank stands out.

    Raises
    ------
    ValueError
        For no rank.
    """
    if not ranks:
        raise ValueError("no rank was paused; expected at least one")
    late = waited_for(ranks)
    if late is not None:
        peers = [rank for rank in ranks if rank.resource.replica == late.resource.replica and rank is not late]
        has = "; ".join(f"{rank.resource.name} has {_words(rank)}" for rank in peers)
        return f"everything waits for {late.resource.name}: it has {_words(late)}; {has}"
    if all(rank.slack.high < SLACK_LIMIT for rank in ranks):
        return "no rank has slack: each is waited for, so none of them is the late one"
    if all(rank.slack.low > SLACK_LIMIT for rank in ranks):
        return "every rank has slack: what is waited for is a card, a link, the load or a quota, not a rank's own work"
    return "no rank stands out beyond the intervals as the one that is waited for; more time tells (--budget)"


def _words(rank: RankSlack) -> str:
    slack = rank.slack
    return f"{slack.value:.0%} slack ({slack.low:.0%} to {slack.high:.0%})"
