"""Lay out what a cause looks at: the observations, the ledger, and what follows from both for all causes."""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.attribution.ledger import Ledger
from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL
from bottleneck.diagnosis.observations.engine import EngineFacts
from bottleneck.diagnosis.observations.observed import Observations

GROWING = ((PREFILL, ("compute", "memory", "link_transfer", "unwatched")), (DECODE, ("compute", "link_transfer")))
"""Parts of a step that grow with the sequences in it; the rest is there once, whatever the batch."""


@dataclass(frozen=True)
class Context:
    """Everything that a cause looks at.

    Attributes
    ----------
    queue_share : float
        Share of the time in the engine's queue; of it `slots_share` for want of a slot, `cache_share` for want of
        cache, and the rest because a step was running.
    step_wait_share : float
        Share of the time before the queue, because a step was running.
    api_server_saturation : float
        How far the process in front of the engine is saturated or held back, 0 to 1.
    """

    seen: Observations
    ledger: Ledger
    queue_share: float = 0.0
    slots_share: float = 0.0
    cache_share: float = 0.0
    step_wait_share: float = 0.0
    api_server_saturation: float = 0.0

    @property
    def work(self) -> float:
        """Share of the nodes' own work inside steps."""
        return self.share("compute", "memory")

    @property
    def engine_reported(self) -> bool:
        """Return whether the engine gave its own account of the requests."""
        return any(engine.has_times for engine in self.seen.engines)

    @property
    def norm(self) -> float:
        """The whole without the waiting that is only the length of a step.

        Where steps become shorter, what waits for their end waits less in proportion: so a part of a step counts as its
        share of this.
        """
        unseen = self.step_wait_share * (1.0 - self.api_server_saturation)
        behind_steps = unseen + self.queue_share - self.slots_share - self.cache_share
        return max(1.0 - behind_steps, thresholds.LEAST_SHOWN)

    @property
    def steps_share(self) -> float:
        """Share of the time that requests spend in steps, relative to `norm`; all of it without a ledger."""
        if not self.ledger.entries:
            return 1.0
        return min(1.0, (self.ledger.phase(PREFILL) + self.ledger.phase(DECODE)) / self.norm)

    @property
    def growing_share(self) -> float:
        """Share of a step's time that grows with the sequences in it, 0 to 1; what is not explained grows by half."""
        whole = sum(self.ledger.kinds.values())
        if whole <= 0:
            return 0.0
        grows = sum(self.ledger.of_kind(kind, *resources) for kind, resources in GROWING)
        unknown = sum(self.ledger.of_kind(kind, "unexplained") for kind in (PREFILL, DECODE))
        return min(1.0, (grows + unknown / 2) / whole)

    def share(self, *resources: str) -> float:
        """Share of resources inside the engine's phases, relative to `norm`.

        Parameters
        ----------
        *resources : str
            Names of `RESOURCES`.

        Returns
        -------
        float
            0 to 1.
        """
        return min(1.0, self.ledger.of(*resources) / self.norm)

    def share_of_kind(self, kind: str, *resources: str) -> float:
        """Share of resources inside the steps of one kind, relative to `norm`.

        Parameters
        ----------
        kind : str
            Kind of step, `PREFILL` or `DECODE`.
        *resources : str
            Names of `RESOURCES`.

        Returns
        -------
        float
            0 to 1.
        """
        return min(1.0, self.ledger.of_kind(kind, *resources) / self.norm)

    def sources(self, *resources: str) -> str:
        """Return where the ledger's entries of some resources are from.

        Parameters
        ----------
        *resources : str
            Names of `RESOURCES`.
        """
        return "ledger: " + "; ".join(
            sorted({entry.source for entry in self.ledger.entries if entry.resource in resources})
        )


def context_of(seen: Observations, ledger: Ledger) -> Context:
    """Return what causes look at: observations and ledger, with the queueing divided by why requests waited.

    Parameters
    ----------
    seen : Observations
        Everything observed of a run.
    ledger : Ledger
        The ledger of the same run.
    """
    behind = ledger.share(lambda entry: entry.resource == "step_wait")
    queue = ledger.phase("queue") - behind
    slots = cache = whole = 0.0
    for engine in seen.engines:
        if engine.waiting is None:
            continue
        weight = engine.waiting_mean or 0.0
        by_cache = engine.waiting.cache
        if (engine.preemptions or 0.0) > 0:
            # Right after a preemption the cache looks roomy for a moment: the wait is still for the cache.
            by_cache += engine.waiting.step
        slots, cache, whole = slots + weight * engine.waiting.slots, cache + weight * by_cache, whole + weight
    by_slots = max(queue * slots / whole if whole > 0 else 0.0, min(_beyond_slots(seen), queue))
    api_server = max((_saturation(engine) for engine in seen.engines), default=0.0)
    return Context(
        seen,
        ledger,
        queue,
        by_slots,
        min(queue * cache / whole if whole > 0 else 0.0, queue - by_slots),
        behind,
        api_server,
    )


def _beyond_slots(seen: Observations) -> float:
    """Return the share of requests that have no slot because there are fewer than clients, 0 to 1.

    Readings are seconds apart and may all fall into a moment that is not typical; that clients which send again at once
    are more than the slots is always so. What the cache keeps from running shows in the readings.
    """
    limit, client = seen.topology.max_num_seqs, seen.client
    full = any(engine.waiting is not None and engine.waiting.cache > 0 for engine in seen.engines)
    if not limit or client is None or client.open_loop or not client.concurrency or full:
        return 0.0
    return max(0.0, 1.0 - limit * len(seen.engines) / client.concurrency)


def _saturation(engine: EngineFacts) -> float:
    """Return how far the process in front of an engine is saturated, or held back, 0 to 1."""
    easy, full = thresholds.API_SERVER_EASY, thresholds.FULL
    needed = (engine.api_server_need - easy) / (full - easy)
    return min(1.0, max(needed, (engine.api_server_wait_share or 0.0) / thresholds.API_SERVER_DELAYED))
