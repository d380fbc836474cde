"""Calibration points out of recorded runs: each run is one measured point of its deployment."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bottleneck.load.client import ClientRequest
from bottleneck.performance.calibration import Calibration, calibrate
from bottleneck.performance.served import Point, Served
from bottleneck.prediction.deployment import Scenario
from bottleneck.prediction.machine import Known, NoCeiling, measured_accelerator, measured_link
from bottleneck.prediction.sweep import SweepError
from bottleneck.profile.types import Profile
from bottleneck.runs.run import Run

LOOSE = 3.0
"""Factor on the priors' spread: they come from GPUs, and a cluster of other machines may be anything."""
_IN_STEP = 0.25
"""Requests belong to one burst when they start within this share of its time to the first token."""


@dataclass(frozen=True)
class Recorded:
    """Start values and calibration points from recorded runs of one deployment."""

    base: Scenario
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    def calibration(self) -> Calibration:
        """Return the efficiencies fitted to these runs; one alone leaves most to their priors, with wide intervals."""
        return calibrate(
            self.base.served,
            self.base.accelerator,
            self.points,
            max(2, self.base.output_tokens),
            split=self.base.split,
            loose=LOOSE,
        )


def recorded(runs: Sequence[Run]) -> Recorded:
    """Return what runs of one deployment give to predict from; the first is the base.

    Parameters
    ----------
    runs : Sequence[Run]
        At least one.

    Raises
    ------
    SweepError
        When a run lacks what is needed, or they are not of one deployment.
    """
    each = [_one(run) for run in runs]
    first = each[0].base
    for run, found in zip(runs[1:], each[1:], strict=True):
        if (found.base.served, found.base.split.ranks) != (first.served, first.split.ranks):
            raise SweepError(
                f"{run.id}: another model or split than {runs[0].id}; expected runs of one deployment to calibrate on"
            )
    points = {(point.batch, point.prompt): point for found in each for point in found.points}
    notes = tuple(note for found in each for note in found.notes)
    return Recorded(first, tuple(points.values()), notes)


def _one(run: Run) -> Recorded:
    profile = run.profile
    if profile is None:
        raise SweepError(f"{run.id}: profile.yaml: missing; expected the profile that the run was made with")
    deployment = profile.deployments.get(run.deployment)
    if deployment is None:
        raise SweepError(
            f"{run.id}: run.json: deployment {run.deployment!r}; expected one of {', '.join(profile.deployments)}"
        )
    # The link, too, may be another than the profile's.
    link = next((worker.link for worker in run.workers if worker.link), deployment.link)
    deployment = deployment.model_copy(update={"link": link})
    ceilings = run.ceilings
    if not ceilings.known:
        raise SweepError(f"{run.id}: ceilings.json: nothing was measured: run cluster probe, then cluster bench")
    try:
        accelerator = measured_accelerator(ceilings, deployment.nodes)
        known = measured_link(ceilings, profile, deployment) if deployment.ranks_per_replica > 1 else Known()
    except NoCeiling as missing:
        raise SweepError(f"{run.id}: ceilings.json: {missing}") from missing
    engine = profile.engine_for(deployment, deployment.nodes[0])
    split = replace(deployment.split, link=known.link, overlapping=engine.interface.overlapping_stages)
    head = profile.nodes[deployment.nodes[0]].accelerator
    on_host = engine.host_processor
    served = Served(
        profile.model.model_shape(),
        profile.model.weight_format(),
        run.settings.max_num_batched_tokens or deployment.limits(profile.model.shape, head, on_host).batched_tokens,
        kv_value_bytes=engine.cache_value_bytes(profile.model.kv_value_bytes),
    )
    batch, requests = _requests(run)
    batch = min(batch, deployment.replicas * (run.settings.max_num_seqs or batch))
    inside = -(-batch // deployment.replicas)
    prompt = round(statistics.median(request.input_tokens for request in requests))
    output = round(statistics.median(request.output_tokens for request in requests))
    point = Point(inside, max(1, prompt), _prefill(requests, batch), _decode(run.id, requests))
    base = Scenario(
        served,
        accelerator,
        split,
        deployment.replicas,
        batch,
        point.prompt,
        max(2, output),
        min(card.memory_bytes for name in deployment.nodes for card in profile.nodes[name].cards),
    )
    return Recorded(base, (point,), known.basis)


def _requests(run: Run) -> tuple[int, list[ClientRequest]]:
    if run.client is None or not run.client.good:
        raise SweepError(f"{run.id}: client.json: no request that finished; expected timings of at least one")
    good = sorted(run.client.good, key=lambda request: request.start_seconds or 0.0)
    limit = run.client.concurrency or (run.workload.concurrency if run.workload else None) or 1
    return max(1, min(int(limit), len(good))), good


def _prefill(requests: Sequence[ClientRequest], batch: int) -> float:
    """Return the median time from a burst's first start to the first token of its last request."""
    bursts = [requests[start : start + batch] for start in range(0, len(requests) - batch + 1, batch)]
    found: list[float] = []
    for burst in bursts:
        starts = [request.start_seconds or 0.0 for request in burst]
        took = max(start + request.ttft_seconds for start, request in zip(starts, burst, strict=True)) - min(starts)
        if not found or max(starts) - min(starts) <= _IN_STEP * took:
            found.append(took)
    return statistics.median(found)


def _decode(run_id: str, requests: Sequence[ClientRequest]) -> float:
    gaps = [gap for request in requests for gap in request.itl_seconds if math.isfinite(gap) and gap > 0]
    if not gaps:
        raise SweepError(
            f"{run_id}: client.json: itls: no time between tokens; expected answers of at least two tokens"
        )
    return statistics.median(gaps)


def calibrations(runs: Sequence[Run], profile: Profile) -> dict[str, Calibration]:
    """Fit the step model to recorded runs of a profile's model, for each engine among them.

    Parameters
    ----------
    runs
        Of one or several engines; those of one engine are of one deployment.
    profile
        Whose model and deployments they are to tell of.

    Returns
    -------
    dict
        Entry of the engine map -> what its runs tell of it.

    Raises
    ------
    SweepError
        When a run lacks what is needed, is of another model, or runs of an engine are not of one deployment.
    """
    by_engine: dict[str, list[Run]] = {}
    for run in runs:
        if run.profile is None or run.profile.model.model_shape() != profile.model.model_shape():
            served = run.profile.model.name if run.profile else "an unknown model"
            raise SweepError(f"{run.id}: served {served}; expected a run of {profile.model.name}, the profile's model")
        deployment = run.profile.deployments.get(run.deployment)
        if deployment is None:
            known = ", ".join(run.profile.deployments)
            raise SweepError(f"{run.id}: run.json: deployment {run.deployment!r}; expected one of {known}")
        entry = run.profile.engine_for(deployment, deployment.nodes[0]).kind
        by_engine.setdefault(entry, []).append(run)
    return {entry: recorded(found).calibration() for entry, found in by_engine.items()}
