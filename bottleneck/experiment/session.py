"""The experiment: which block comes next, when it is enough, and what came out.

Blocks of one burst each, baseline and slowed, in random order within rounds. How much a resource is slowed next
follows from what is known of it: enough for its effect to stand out of the noise, and no more. Pure: whoever drives it
makes the bursts (the runner, or a simulator in a test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bottleneck.experiment.blocks import METRICS, TIME, Block, Measurement
from bottleneck.experiment.model import Fit, fit
from bottleneck.experiment.resources import ARRIVALS, CPU, LINK_LATENCY, LINK_RATE, RANK, SEQUENCES, Resource

SCHEMA = 1
BUDGET_SECONDS = 180.0
# An interval of a share this narrow (each way) is narrow enough.
TOLERANCE = 0.04
# How much longer a slowed burst is to take: with R times the time, the error of a share for the time spent on it goes
# with R**1.5 / (R - 1), which is least at 3; at 2 it is hardly more, and the straight line has to reach less far.
WANTED_EFFECT = 1.0
LEAST_SLOWDOWN = 1.3
# A rank is paused for a few percent of the time: of that, what it costs is to be known within a fifth each way.
LEAST_RANK_SLOWDOWN = 1.02
RANK_TOLERANCE = 0.2
LARGEST_STEP = 6.0
# Intervals from fewer are too hopeful.
LEAST_BLOCKS = 5
_FIRST_SLOWDOWN = {LINK_RATE: 3.0, CPU: 1.8, SEQUENCES: 2.0, ARRIVALS: 1.5, RANK: 1.05}
_OTHER_FIRST_SLOWDOWN = 1.3
# A latency is first made this much longer, which shows beside any step; one that is long already is at most doubled.
_FIRST_DELAY_SECONDS = 1e-3


class Session:
    """One experiment over some resources."""

    def __init__(
        self,
        resources: Sequence[Resource],
        groups: Sequence[Sequence[str]],
        *,
        budget_seconds: float = BUDGET_SECONDS,
        tolerance: float = TOLERANCE,
        seed: int = 1,
    ) -> None:
        """Prepare an experiment.

        Parameters
        ----------
        groups
            Nodes whose processors wait for each other in every step.
        budget_seconds
            No block begins that is not expected to end within it.
        """
        self.resources = [resource for resource in resources if resource.largest > _least_slowdown(resource)]
        self.left_out = [resource for resource in resources if resource not in self.resources]
        self.groups = [list(group) for group in groups]
        self.budget_seconds, self.tolerance, self.seed = budget_seconds, tolerance, seed
        self.measurements: list[Measurement] = []
        self.stopped = ""
        self._random = np.random.default_rng(seed)
        self._queue: list[Block] = []
        self._fits: dict[str, Fit | None] = {}

    @property
    def baseline_seconds(self) -> float:
        """The median length of a baseline burst so far, NaN before the first."""
        seen = [each.burst_seconds for each in self.measurements if each.block.resource is None]
        return float(np.median(seen)) if seen else math.nan

    def add(self, measured: Measurement) -> None:
        """Take what a block measured.

        Parameters
        ----------
        measured : Measurement
            The block that `next_block` returned last, as it was measured.
        """
        self.measurements.append(measured)
        self._fits = {}

    def fit(self, metric: str = TIME) -> Fit | None:
        """Return the estimates so far.

        Parameters
        ----------
        metric : str
            One of `METRICS`.

        Returns
        -------
        Fit or None
            None while there are too few blocks.
        """
        if metric not in self._fits:
            self._fits[metric] = fit(self.measurements, self.resources, self.groups, metric)
        return self._fits[metric]

    def next_block(self, elapsed_seconds: float) -> Block | None:
        """Return the next block, or None when it is enough; `stopped` says why.

        Parameters
        ----------
        elapsed_seconds : float
            Time since the experiment began.
        """
        if not self._queue:
            self._queue = self._round()
        if not self._queue:
            self.stopped = "every interval is narrow enough"
            return None
        first = self._queue.pop(0)
        block = Block(len(self.measurements), first.resource, first.slowdown)
        if elapsed_seconds + self._expected_seconds(block) > self.budget_seconds:
            self.stopped = "the time is up"
            return None
        return block

    def slowdowns(self) -> dict[str, list[float]]:
        """Return the slowdowns that were tried, each once, by the name of the resource."""
        return {
            resource.name: sorted(
                {each.block.slowdown for each in self.measurements if each.block.resource is resource}
            )
            for resource in self.resources
        }

    def open_resources(self) -> list[Resource]:
        """Return the resources whose share is not known well enough."""
        estimates = self.fit()
        counts = {resource.name: 0 for resource in self.resources}
        for each in self.measurements:
            if each.block.resource is not None:
                counts[each.block.resource.name] += 1
        found = []
        for resource in self.resources:
            narrow = (
                estimates is not None
                and resource.name in estimates.layout.resources
                and counts[resource.name] >= LEAST_BLOCKS
                and estimates.share(resource).half_width <= self._tolerance(resource)
                and self._is_load_known(estimates, resource)
            )
            if not narrow:
                found.append(resource)
        return found

    def _tolerance(self, resource: Resource) -> float:
        return max(self.tolerance, RANK_TOLERANCE) if resource.kind == RANK else self.tolerance

    def _is_load_known(self, estimates: Fit, resource: Resource) -> bool:
        if resource.name not in estimates.layout.group_of:
            return True
        # A processor of no account has a load that nobody can measure, or need to.
        share = max(estimates.share(resource).high, 0.0)
        return estimates.interval(f"load {resource.name}").half_width * share <= 2 * self.tolerance

    def _round(self) -> list[Block]:
        """Lay out the next round: every open resource once, and baselines among them."""
        if not self.resources:
            return []
        open_resources = self.open_resources()
        if not open_resources:
            return []
        # The error of a comparison is least when the baseline has the square root of the number of the others' blocks.
        baselines = max(1, round(math.sqrt(len(open_resources))))
        blocks = [Block(-1) for _ in range(baselines)]
        for resource in open_resources:
            # A placebo in every other round of its resource.
            tried = [each for each in self.measurements if each.block.resource is resource]
            placebo = resource.has_placebo and len(tried) % 2 == 1
            blocks.append(Block(-1, resource, 1.0 if placebo else self._slowdown(resource)))
        order = self._random.permutation(len(blocks))
        return [blocks[place] for place in order]

    def _slowdown(self, resource: Resource) -> float:
        """Choose how much to slow a resource next."""
        tried = [each.block.slowdown for each in self.measurements if each.block.resource is resource]
        first = _first_slowdown(resource)
        estimates = self.fit()
        if not tried or estimates is None or resource.name not in estimates.layout.resources:
            wanted = first if not tried else max(tried)
        else:
            share = max(estimates.share(resource).value, 1e-3)
            load = 1.0
            if resource.name in estimates.layout.group_of:
                load = max(float(estimates.parameters[estimates.layout.index[f"load {resource.name}"]]), 0.05)
            # What makes the time longer by the wanted effect.
            wanted = (1.0 + WANTED_EFFECT / share) / load
            # Two levels show whether the time really grows in a straight line.
            wanted = 1.0 + (wanted - 1.0) * float(self._random.choice([0.7, 1.3]))
            wanted = min(wanted, LARGEST_STEP * max(tried))
        slowdown = float(min(max(wanted, _least_slowdown(resource)), resource.largest))
        if resource.kind == SEQUENCES:
            # Whole sequences only.
            left = max(1.0, math.floor(resource.amount / slowdown))
            slowdown = resource.amount / left
        return slowdown

    def _expected_seconds(self, block: Block) -> float:
        base = self.baseline_seconds
        if math.isnan(base):
            return 0.0
        estimates = self.fit()
        if block.resource is None:
            return base
        if estimates is None or block.resource.name not in estimates.layout.resources:
            return base * 1.5
        return base * estimates.layout.relative_time(estimates.parameters, block.resource, block.slowdown)

    def to_json(self) -> dict[str, Any]:
        """Return what was done, as plain data."""
        return {
            "schema": SCHEMA,
            "seed": self.seed,
            "budget_seconds": self.budget_seconds,
            "tolerance": self.tolerance,
            "stopped": self.stopped,
            "blocks": [each.to_json() for each in self.measurements],
            "resources": [resource.to_json() for resource in self.resources],
            "left_out": [resource.name for resource in self.left_out],
            "deviation": {metric: found.deviation for metric in METRICS if (found := self.fit(metric)) is not None},
        }


def _least_slowdown(resource: Resource) -> float:
    return LEAST_RANK_SLOWDOWN if resource.kind == RANK else LEAST_SLOWDOWN


def _first_slowdown(resource: Resource) -> float:
    if resource.kind == LINK_LATENCY:
        return 1.0 + max(1.0, _FIRST_DELAY_SECONDS / resource.amount)
    return _FIRST_SLOWDOWN.get(resource.kind, _OTHER_FIRST_SLOWDOWN)
