"""Groups of runs: what one lab records at a stretch.

Deployments one after the other, and under each of them blocks of runs, in which healthy and faulty ones take turns.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cli.verify.loads import Load
from cli.verify.strengths import TARGETS, Fault

# What things are expected to take, by which groups are dealt out.
DEPLOY_SECONDS = 75.0
RUN_SECONDS: Mapping[str, float] = {"tp2": 14.0, "pp2": 14.0, "replicas": 10.0, "single": 10.0}
# A fault is recorded again and again at the strength that costs about so much.
REPEATED_COST = 0.3
REPEATS = 5
# Where a fault's cost is drawn.
DRAWN_COSTS = (0.03, 2.0)
Part = tuple[str, str | None]


@dataclass(frozen=True)
class Step:
    """One faulty run to be made.

    Attributes
    ----------
    parts
        The kind of fault and its node; two of them at once make two.
    costs
        What each part is to cost, as a share of the healthy time per token.
    again
        Whether the part is to have the strength, of those so far, whose cost was nearest.
    """

    parts: tuple[Part, ...]
    costs: tuple[float, ...]
    again: bool = False


@dataclass(frozen=True)
class Block:
    """A load and what is put in under it; healthy runs take turns with the steps.

    Attributes
    ----------
    healthy
        Runs without a step, where there are no steps that they could take turns with.
    """

    load: Load
    steps: tuple[Step, ...] = ()
    healthy: int = 0

    @property
    def runs(self) -> int:
        """The number of runs it makes."""
        return self.healthy + len(self.steps) + (math.ceil(len(self.steps) / 2) + 1 if self.steps else 0)


@dataclass(frozen=True)
class Stage:
    """A deployment and the blocks under it.

    Attributes
    ----------
    settings
        Server settings that differ from the profile's.
    faults
        What they are a fault by, against the roomy ones.
    starts
        Starts that are recorded before the blocks: with a fault, or with none.
    """

    deployment: str
    blocks: tuple[Block, ...]
    settings: Mapping[str, object] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    starts: tuple[Fault | None, ...] = ()


@dataclass(frozen=True)
class Group:
    """Runs that one lab makes at a stretch."""

    name: str
    stages: tuple[Stage, ...]

    @property
    def runs(self) -> int:
        """The number of runs it makes."""
        return sum(len(stage.starts) + sum(block.runs for block in stage.blocks) for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Its length, about, in seconds."""
        return sum(
            DEPLOY_SECONDS * max(len(stage.starts), 1)
            + sum(block.runs for block in stage.blocks) * RUN_SECONDS[stage.deployment]
            for stage in self.stages
        )


def sweep(kind: str, node: str | None = None, costs: Sequence[float] = TARGETS, repeats: int = 0) -> tuple[Step, ...]:
    """Return the steps of one kind over its costs, and again at one strength."""
    parts = ((kind, node),)
    again = tuple(Step(parts, (REPEATED_COST,), again=True) for _ in range(repeats))
    return tuple(Step(parts, (cost,)) for cost in costs) + again


def together(one: Part, two: Part) -> tuple[Step, ...]:
    """Return the steps of two faults at once and of each alone: alike, and the one or the other the larger."""
    alike, mild, hard = 0.4, 0.25, 0.9
    pairs = ((alike, alike), (hard, mild), (mild, hard))
    alone = [[Step((one,), (first,)), Step((two,), (second,))] for first, second in pairs]
    both = [[Step((one, two), (first, second), again=True)] for first, second in pairs]
    return tuple(step for single, double in zip(alone, both, strict=True) for step in (*single, *double))


def drawn(parts: Sequence[Part], count: int, rng: random.Random) -> tuple[Step, ...]:
    """Return steps whose fault, place and cost are drawn; every fourth is two faults at once."""
    steps = []
    for number in range(count):
        chosen: list[Part] = []
        while len(chosen) < (2 if number % 4 == 3 else 1):
            part = rng.choice(parts)
            if part[0] not in [kind for kind, _ in chosen]:
                chosen.append(part)
        low, high = (math.log(cost) for cost in DRAWN_COSTS)
        steps.append(Step(tuple(chosen), tuple(round(math.exp(rng.uniform(low, high)), 3) for _ in chosen)))
    return tuple(steps)


def dealt(chosen: Sequence[Group], parts: int) -> list[list[Group]]:
    """Return the groups of each part: about equal in time, each in the order of what they are worth."""
    shares: list[list[Group]] = [[] for _ in range(parts)]
    for group in chosen:
        min(shares, key=lambda share: sum(each.seconds for each in share)).append(group)
    return shares
