"""Model how long a burst takes when a resource is slowed, as a function of a few parameters; and their estimate.

The time is a sum of parts, each of which scales with one resource. With everything as it is the time is 1, and a
resource's share of it, phi, is its part: slowed s times, the burst takes 1 + phi (s - 1). Phi is also the elasticity of
the time to the resource, where everything is as it is.

Processors that wait for each other in every step (tensor parallel) are no sum but a maximum: together they have a
share phi, and each has a load rho of it, 1 for the slowest. Slowed alone, a processor shows from s = 1/rho on:
1 + max(0, phi (rho s - 1)).

Everything is estimated at once, by nonlinear least squares on the logarithms of the blocks' times with a linear drift.
Interleaving in random order keeps what drift is left out of the shares. A soft loss (Huber's idea; `soft_l1` of
scipy.optimize.least_squares) keeps a block that something else disturbed from carrying the estimate away. Intervals
are Student's t with the covariance of the linearised problem (Seber and Wild, Nonlinear Regression, 1989, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

from bottleneck.experiment.blocks import TIME, Measurement
from bottleneck.experiment.resources import CPU, RANK, Resource

Array = npt.NDArray[np.float64]

# What is known of a processor's load before it is measured: its cores against its peers', this far off.
LOAD_DEVIATION = 0.3
# A share a little below zero is noise and may show as such; one far above one is not a share. What is predicted of an
# upgrade takes no less than nothing and no more than all of the time away.
SHARE_BOUNDS = (-0.3, 1.3)
# A rank is slowed a few percent only, so that what it costs is further off.
RANK_BOUNDS = (-2.0, 3.0)
_LEAST_RELATIVE_TIME = 0.05
# Blocks closer together than this are not to be believed: two blocks that happen to agree know nothing yet.
_LEAST_DEVIATION = 0.003


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of what lies between the bounds."""
        return (self.high - self.low) / 2

    def to_json(self) -> dict[str, float]:
        """Return it as plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}


class Layout:
    """Index of the parameters, and the time of a block under a set of them."""

    def __init__(self, resources: Sequence[Resource], groups: Sequence[Sequence[str]]) -> None:
        """Lay the parameters out.

        Parameters
        ----------
        groups
            Nodes whose processors wait for each other in every step; others count as a sum.
        """
        self.resources = {resource.name: resource for resource in resources}
        self.group_of = {
            f"{CPU}:{node}": index for index, group in enumerate(groups) if len(group) > 1 for node in group
        }
        names: list[str] = ["base", "drift"]
        for resource in resources:
            if resource.name not in self.group_of:
                names.append(f"share {resource.name}")
            if resource.has_placebo:
                names.append(f"placebo {resource.name}")
        self.members = [name for name in self.resources if name in self.group_of]
        if self.members and f"share {CPU}" not in names:
            names.append(f"share {CPU}")
        names += [f"load {name}" for name in self.members]
        self.names = names
        self.index = {name: place for place, name in enumerate(names)}

    def prior_load(self, name: str) -> float:
        """Return the load of a processor by its cores alone: the fewest of its group have load 1.

        Parameters
        ----------
        name : str
            Name of a processor that waits for others.

        Returns
        -------
        float
            Above 0, at most 1.

        Raises
        ------
        KeyError
            For a resource that is no such processor.
        """
        mine = self.resources[name]
        peers = [self.resources[each] for each in self.members if self.group_of[each] == self.group_of[name]]
        return min(peer.amount for peer in peers) / mine.amount

    def relative_time(self, parameters: Array, resource: Resource | None, slowdown: float) -> float:
        """Return the time with a resource slowed, in units of the time with nothing slowed.

        Parameters
        ----------
        parameters
            Of the model, in the order of the layout, shape (parameters,).
        resource
            The one that is slowed; None is none.
        slowdown
            How many times slower it is; below 1 it is faster.
        """
        if resource is None:
            return 1.0
        known = self.index
        more = parameters[known[f"placebo {resource.name}"]] if resource.has_placebo else 0.0
        if resource.name in self.group_of:
            share = _share(parameters[known[f"share {CPU}"]], slowdown)
            load = parameters[known[f"load {resource.name}"]]
            if slowdown >= 1:
                more += share * max(0.0, load * slowdown - 1.0)
            else:
                loads = [parameters[known[f"load {each}"]] for each in self.members]
                others = [
                    parameters[known[f"load {each}"]]
                    for each in self.members
                    if each != resource.name and self.group_of[each] == self.group_of[resource.name]
                ]
                most = max(loads)
                more += share * (max(load * slowdown, *others) / most - 1.0)
        else:
            more += _share(parameters[known[f"share {resource.name}"]], slowdown) * (slowdown - 1.0)
        return max(_LEAST_RELATIVE_TIME, 1.0 + float(more))


def _share(estimated: float, slowdown: float) -> float:
    """Return a share as it is to be used: as estimated for what was slowed, as it can be for an upgrade."""
    return estimated if slowdown >= 1 else min(1.0, max(0.0, estimated))


@dataclass(frozen=True)
class Fit:
    """Parameters of one metric with their covariance.

    Attributes
    ----------
    deviation
        Standard deviation of a block's logarithm around the model.
    degrees
        Of freedom: blocks minus parameters that they carry.
    """

    layout: Layout
    metric: str
    parameters: Array
    covariance: Array
    deviation: float
    degrees: int
    blocks: int

    def interval(self, name: str, confidence: float = 0.95) -> Interval:
        """Return a parameter with its interval.

        Parameters
        ----------
        name : str
            Name of a parameter, such as "share cpu" or "load node0".
        confidence : float
            Probability that the value is inside, above 0 and below 1.

        Returns
        -------
        Interval
            By Student's t with the fit's degrees of freedom.

        Raises
        ------
        KeyError
            For a name that is no parameter of this fit.
        """
        place = self.layout.index[name]
        value = float(self.parameters[place])
        reach = float(scipy.stats.t.ppf(0.5 + confidence / 2, self.degrees)) * math.sqrt(
            max(0.0, self.covariance[place, place])
        )
        return Interval(value, value - reach, value + reach)

    def share(self, resource: Resource, confidence: float = 0.95) -> Interval:
        """Return a resource's share of the time; of a processor that waits for others, that of all of them.

        Parameters
        ----------
        resource : Resource
            One of the fit's resources.
        confidence : float
            As in `interval`.

        Returns
        -------
        Interval
            Share of the time, without a unit; noise may take its ends below 0 or above 1.
        """
        grouped = resource.name in self.layout.group_of
        return self.interval(f"share {CPU}" if grouped else f"share {resource.name}", confidence)

    def draws(self, count: int, seed: int) -> Array:
        """Draw parameters from what is known of them, shape (count, parameters).

        Parameters
        ----------
        count : int
            Number of draws.
        seed : int
            Seed of the random numbers: the same one draws the same.

        Returns
        -------
        Array
            Student's t of the fit's estimate and covariance; loads are cut to 0 to 1.
        """
        random = np.random.default_rng(seed)
        # Student's t with the fit's degrees: a normal draw widened by a chi-square one.
        normal = random.multivariate_normal(np.zeros(len(self.parameters)), self.covariance, count, method="eigh")
        widening = np.sqrt(self.degrees / random.chisquare(self.degrees, count))
        found: Array = self.parameters + normal * widening[:, None]
        for name in self.layout.members:
            place = self.layout.index[f"load {name}"]
            found[:, place] = np.clip(found[:, place], 0.0, 1.0)
        return found


def fit(
    measurements: Sequence[Measurement],
    resources: Sequence[Resource],
    groups: Sequence[Sequence[str]],
    metric: str = TIME,
) -> Fit | None:
    """Estimate the shares behind one metric.

    Parameters
    ----------
    measurements : Sequence[Measurement]
        Of all blocks; those of resources that are not in `resources` are left out, as are values that are no numbers.
    resources : Sequence[Resource]
        Resources that the blocks slowed, with those that were not.
    groups : Sequence[Sequence[str]]
        Nodes whose processors wait for each other in every step.
    metric : str
        One of `METRICS`.

    Returns
    -------
    Fit or None
        None while there are fewer blocks than parameters that they could carry, plus two.
    """
    names = {resource.name for resource in resources}
    known = [
        each
        for each in measurements
        if (each.block.resource is None or each.block.resource.name in names)
        and math.isfinite(each.metric(metric))
        and each.metric(metric) > 0
    ]
    seen = {each.block.resource.name for each in known if each.block.resource is not None}
    layout = Layout([resource for resource in resources if resource.name in seen], groups)
    free = len(layout.names) - len(layout.members)
    if len(known) < free + 2 or not any(each.block.resource is None for each in known):
        return None
    values = np.log([each.metric(metric) for each in known])
    moments = np.array([each.started_seconds for each in known])
    middle, span = float(moments.mean()), max(float(np.ptp(moments)), 1e-9)
    prior = {layout.index[f"load {name}"]: layout.prior_load(name) for name in layout.members}

    def misses(parameters: Array) -> Array:
        expected = np.log(
            [layout.relative_time(parameters, each.block.resource, each.block.slowdown) for each in known]
        )
        drift = parameters[1] * (moments - middle) / span
        found: Array = values - parameters[0] - drift - expected
        return found

    start, low, high = _bounds(layout, float(np.median(values)), prior)
    deviation = max(_LEAST_DEVIATION, _spread_of_cells(known, values))
    loads = list(prior.items())

    def residuals(parameters: Array) -> Array:
        beliefs = [(parameters[place] - mean) / LOAD_DEVIATION for place, mean in loads]
        found: Array = np.concatenate([misses(parameters) / deviation, beliefs])
        return found

    degrees = max(1, len(known) - free)
    for _ in range(2):
        solved = scipy.optimize.least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=1.5)
        start = np.clip(solved.x, low + 1e-9, high - 1e-9)
        # From the median: what a disturbed block adds is bounded (1.4826 makes it a normal's deviation).
        typical = 1.4826 * float(np.median(np.abs(misses(solved.x))))
        deviation = max(_LEAST_DEVIATION, typical * math.sqrt(len(known) / degrees))
    solved = scipy.optimize.least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=1.5)
    jacobian = np.asarray(solved.jac, dtype=np.float64)
    information = jacobian.T @ jacobian
    covariance: Array = np.asarray(np.linalg.pinv(information, rcond=1e-12, hermitian=True), dtype=np.float64)
    return Fit(layout, metric, solved.x, covariance, deviation, degrees, len(known))


def _bounds(layout: Layout, base: float, prior: Mapping[int, float]) -> tuple[Array, Array, Array]:
    start = np.zeros(len(layout.names))
    low, high = np.full(len(start), SHARE_BOUNDS[0]), np.full(len(start), SHARE_BOUNDS[1])
    start[0], low[0], high[0] = base, base - 10, base + 10
    low[1], high[1] = -2.0, 2.0
    for name, place in layout.index.items():
        if name.startswith("share"):
            start[place] = 0.1
            if name.startswith(f"share {RANK}:"):
                low[place], high[place] = RANK_BOUNDS
        elif name.startswith("placebo"):
            high[place] = 20.0
    for place, mean in prior.items():
        low[place], high[place] = 0.0, 1.0
        start[place] = min(max(mean, 0.01), 0.99)
    return start, low, high


def _spread_of_cells(known: Sequence[Measurement], values: Array) -> float:
    """Return how far blocks that were alike are apart, as a standard deviation: a first idea of the noise."""
    cells: dict[tuple[str | None, float], list[float]] = {}
    for each, value in zip(known, values, strict=True):
        resource = each.block.resource
        cells.setdefault((resource.name if resource else None, each.block.slowdown), []).append(float(value))
    misses = [abs(value - float(np.median(cell))) for cell in cells.values() if len(cell) > 2 for value in cell]
    return 1.4826 * float(np.median(misses)) if misses else 0.05
