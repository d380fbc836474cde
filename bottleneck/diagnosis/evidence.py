"""What the rules work with: a line of evidence, a candidate for the verdict, the case before them.

A score is the share of an output token's time that a class accounts for (0 to 1), so that scores compare and the
winner's says what mending it could gain. Confidence is another thing: how far the evidence carries the winner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from bottleneck.diagnosis.attribution.ledger import Ledger
from bottleneck.diagnosis.observations.engine_signals import EngineFacts
from bottleneck.diagnosis.observations.signals import Signals
from bottleneck.json_numbers import number


@dataclass(frozen=True)
class Evidence:
    """One line of evidence; `value` in `unit`, shares as ratios of unit `1`."""

    statement: str
    value: float | None
    unit: str
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return the line as JSON-able data."""
        return {"statement": self.statement, "value": self.value, "unit": self.unit, "source": self.source}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Evidence:
        """Read a line that `to_json` wrote."""
        value = number(document.get("value"))
        return cls(
            str(document.get("statement", "")),
            value if math.isfinite(value) else None,
            str(document.get("unit", "")),
            str(document.get("source", "")),
        )


@dataclass
class Candidate:
    """A class with its score, its place and its evidence.

    `inferred` is how much of the score was not measured but left over by elimination, 0 to 1; `certainty` how sure it
    is that the name is the right one among classes that are mended together. `kind` says what a straggler lacks,
    `between` which classes it is between when it cannot be told.
    """

    name: str
    score: float = 0.0
    node: str | None = None
    link: str | None = None
    gain_share: float | None = None
    evidence: list[Evidence] = field(default_factory=list)
    confidence: float = 0.0
    inferred: float = 0.0
    certainty: float = 1.0
    kind: str | None = None
    between: tuple[str, ...] = ()

    def say(self, statement: str, value: float | None, unit: str, source: str) -> None:
        """Add a line of evidence."""
        known = value if value is not None and math.isfinite(value) else None
        self.evidence.append(Evidence(statement, known, unit, source))


@dataclass
class Case:
    """What a scorer looks at.

    Attributes
    ----------
    queue_share : float
        Share of the time in the engine's queue; of it `slots_share` for want of a slot, `cache_share` for want of
        cache, and the rest because a step was running.
    step_wait_share : float
        Share of the time before the queue, because a step was running.
    front_saturation : float
        How far the process in front of the engine is saturated, 0 to 1.
    """

    signals: Signals
    ledger: Ledger
    queue_share: float
    slots_share: float
    cache_share: float
    step_wait_share: float = 0.0
    front_saturation: float = 0.0

    @property
    def work(self) -> float:
        """Share of the nodes' own work inside steps."""
        return self.share("compute", "memory")

    @property
    def engine_told(self) -> bool:
        """Whether the engine gave its own account of the requests."""
        return any(engine.has_times for engine in self.signals.engines)

    @property
    def norm(self) -> float:
        """The whole without the part of the waiting that is only the length of a step."""
        unseen = self.step_wait_share * (1.0 - self.front_saturation)
        behind_steps = unseen + self.queue_share - self.slots_share - self.cache_share
        return max(1.0 - behind_steps, 0.05)

    def share(self, *resources: str) -> float:
        """Share of resources inside the engine's phases, relative to `norm`."""
        return min(1.0, self.ledger.of(*resources) / self.norm)

    def share_of_kind(self, kind: str, *resources: str) -> float:
        """Share of resources inside the steps of one kind, relative to `norm`."""
        return min(1.0, self.ledger.of_kind(kind, *resources) / self.norm)

    def busy_share_of(self, seconds: float | None) -> float:
        """Return seconds as a share of the busy time, 0 to 1."""
        busy = self.signals.busy_seconds
        return min(1.0, max(0.0, (seconds or 0.0) / busy)) if busy > 0 else 0.0


def percent(value: float) -> str:
    return f"{value:.0%}"


# A front process that runs, or wants to, for this share of the time or less is not what limits; from the second number
# on it is full.
FRONT_EASY, FRONT_FULL = 0.6, 0.9


def front_need(engine: EngineFacts) -> float:
    """Return the share of the time in which the process in front of an engine ran or wanted to."""
    return min(1.0, (engine.front_cpu_share or 0.0) + (engine.front_wait_share or 0.0))


def build_case(signals: Signals, ledger: Ledger) -> Case:
    """Divide the queueing by why requests waited."""
    behind = ledger.share(lambda entry: entry.resource == "step_wait")
    queue = ledger.phase("queue") - behind
    slots = cache = total = 0.0
    for engine in signals.engines:
        if engine.waiting is None:
            continue
        weight = max(engine.waiting_mean or 0.0, 1e-9)
        by_cache, by_step = engine.waiting.cache, engine.waiting.step
        if (engine.preemptions or 0.0) > 0:
            # Right after a preemption the cache looks roomy for a moment: the wait is still for the cache.
            by_cache, by_step = by_cache + by_step, 0.0
        # A slot more does nothing where arithmetic has no room left: that wait is for the work.
        useful = engine.waiting.slots * (1.0 - signals.saturation)
        slots, cache, total = slots + weight * useful, cache + weight * by_cache, total + weight
    front = max((front_need(engine) for engine in signals.engines), default=0.0)
    return Case(
        signals,
        ledger,
        queue,
        queue * slots / total if total > 0 else 0.0,
        queue * cache / total if total > 0 else 0.0,
        behind,
        min(1.0, max(0.0, (front - FRONT_EASY) / (FRONT_FULL - FRONT_EASY))),
    )
