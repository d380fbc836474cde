"""Work out what each fault cost, from runs with and without it that were recorded beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bottleneck.accuracy.trials import Put, Trial

# Of the normal distribution: 95 % lie within so many standard deviations.
Z95 = 1.96
# How many differences of other loads a load's own scatter is mixed with: it has few itself.
PRIOR_DIFFERENCES = 4
# Two starts of one deployment differ by about so much in the logarithm of their speed; runs under different settings
# are compared over a start. Assumed: no case records it.
START_SCATTER = 0.03
# Runs beside a run: the last without the fault before it, the first after it.
NEAREST = 2


@dataclass(frozen=True)
class Measured:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Truth:
    """Measured facts of a recorded run, none of them judged.

    Attributes
    ----------
    cost
        Time per token more than without any fault, as a share of that: 0.4 is 40 % more. None for a healthy run and
        where no healthy run is beside it.
    reliefs
        For each fault, the share of this run's time per token that taking it away gives back: 1 - without / with. None
        where no run without that one was recorded.
    beside
        The healthy runs that it is compared with.
    """

    trial: Trial
    cost: Measured | None
    reliefs: tuple[Measured | None, ...]
    beside: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Return whether nothing was put in."""
        return not self.trial.faults


def truths(trials: Sequence[Trial]) -> dict[str, Truth]:
    """Return what every run's faults cost, by its case.

    Parameters
    ----------
    trials : Sequence[Trial]
        All runs of the record; healthy ones are what the others are compared with.
    """
    scatters = scatter(trials)
    by_place: dict[tuple[object, ...], list[Trial]] = {}
    for trial in trials:
        by_place.setdefault(trial.compared, []).append(trial)
    return {
        trial.case: _truth(trial, sorted(by_place[trial.compared], key=lambda each: each.began), scatters)
        for trial in trials
    }


def _truth(trial: Trial, runs: Sequence[Trial], scatters: Mapping[tuple[object, ...], float]) -> Truth:
    if not trial.faults:
        return Truth(trial, None, (), (trial.case,))
    noise = scatters[trial.compared]
    healthy = _beside(trial, runs, ())
    reliefs = []
    for put in trial.faults:
        others = tuple(other for other in trial.faults if other != put)
        without = healthy if not others else _beside(trial, runs, others)
        ratio = _ratio(trial, without, noise)
        reliefs.append(Measured(1 - 1 / ratio.value, 1 - 1 / ratio.low, 1 - 1 / ratio.high) if ratio else None)
    ratio = _ratio(trial, healthy, noise)
    cost = Measured(ratio.value - 1, ratio.low - 1, ratio.high - 1) if ratio else None
    return Truth(trial, cost, tuple(reliefs), tuple(each.case for each in healthy))


def _beside(trial: Trial, runs: Sequence[Trial], faults: tuple[Put, ...]) -> list[Trial]:
    """Return the runs with these faults alone that are nearest in time; all of them where settings differ."""
    found = [each for each in runs if set(each.faults) == set(faults)]
    same = [each for each in found if each.settings == trial.settings]
    if not same:
        return found
    before = [each for each in same if each.began < trial.began]
    after = [each for each in same if each.began > trial.began]
    near = [*before[-1:], *after[:1]]
    return near if len(near) == NEAREST else [*before[-NEAREST:], *after[:NEAREST]]


def _ratio(trial: Trial, without: Sequence[Trial], noise: float) -> Measured | None:
    """Return how many times longer a token took than in other runs."""
    if not without:
        return None
    mean = sum(math.log(each.seconds_per_token) for each in without) / len(without)
    log_ratio = math.log(trial.seconds_per_token) - mean
    variance = noise**2 * (1 + 1 / len(without))
    if any(each.settings != trial.settings for each in without):
        variance += 2 * START_SCATTER**2
    half = Z95 * math.sqrt(variance)
    return Measured(*(math.exp(value) for value in (log_ratio, log_ratio - half, log_ratio + half)))


def scatter(trials: Sequence[Trial]) -> dict[tuple[object, ...], float]:
    """Return the standard deviation of a run's logarithm of time per token, by what runs are compared over.

    From differences of healthy runs that follow each other, which a slow drift hardly touches; a load's own few are
    mixed with those of all loads of its deployment.

    Parameters
    ----------
    trials : Sequence[Trial]
        All runs of the record.

    Returns
    -------
    dict[tuple[object, ...], float]
        Key of runs that may be compared (`Trial.compared`) -> standard deviation, without a unit; about the relative
        one while it is small.
    """
    places: dict[tuple[object, ...], list[Trial]] = {}
    for trial in trials:
        places.setdefault(trial.compared, []).append(trial)
    own: dict[tuple[object, ...], list[float]] = {}
    for place, runs in places.items():
        healthy = sorted((each for each in runs if not each.faults), key=lambda each: each.began)
        own[place] = [
            (math.log(two.seconds_per_token / one.seconds_per_token)) ** 2 / 2
            for one, two in pairwise(healthy)
            if one.settings == two.settings
        ]
    of_deployment: dict[str, list[float]] = {}
    for place, runs in places.items():
        of_deployment.setdefault(runs[0].deployment, []).extend(own[place])
    found = {}
    for place, runs in places.items():
        whole = of_deployment[runs[0].deployment]
        prior = sum(whole) / len(whole) if whole else START_SCATTER**2
        squares = own[place]
        found[place] = math.sqrt((sum(squares) + PRIOR_DIFFERENCES * prior) / (len(squares) + PRIOR_DIFFERENCES))
    return found
