"""Calibration points out of recorded runs: each run is one measured point of its deployment."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bottleneck.load.client import ClientRequest
from bottleneck.performance.calibration import Calibration, calibrate
from bottleneck.performance.collectives import DEFAULT_BACKEND, Link, link_of
from bottleneck.performance.served import Accelerator, Point, Served
from bottleneck.prediction.deployment import Scenario
from bottleneck.prediction.sweep import SweepError
from bottleneck.profile.types import Deployment, Profile
from bottleneck.runs.ceilings import Ceilings, Spread
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
    notes: list[str] = []
    split = replace(deployment.split, link=_link(run.id, ceilings, profile, deployment, notes))
    head = profile.nodes[deployment.nodes[0]].accelerator
    on_host = profile.engine_for(deployment, deployment.nodes[0]).host_processor
    served = Served(
        profile.model.model_shape(),
        profile.model.weight_format(),
        run.settings.max_num_batched_tokens or deployment.limits(profile.model.shape, head, on_host).batched_tokens,
        kv_value_bytes=profile.model.kv_value_bytes,
    )
    batch, requests = _requests(run)
    batch = min(batch, deployment.replicas * (run.settings.max_num_seqs or batch))
    inside = -(-batch // deployment.replicas)
    prompt = round(statistics.median(request.input_tokens for request in requests))
    output = round(statistics.median(request.output_tokens for request in requests))
    point = Point(inside, max(1, prompt), _prefill(requests, batch), _decode(run.id, requests))
    base = Scenario(
        served,
        _accelerator(run.id, ceilings, deployment),
        split,
        deployment.replicas,
        batch,
        point.prompt,
        max(2, output),
        min(card.memory_bytes for name in deployment.nodes for card in profile.nodes[name].cards),
    )
    return Recorded(base, (point,), tuple(notes))


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


def _accelerator(run_id: str, ceilings: Ceilings, deployment: Deployment) -> Accelerator:
    """Return what the slowest node of a deployment can do: the others wait for it."""
    nodes = [ceilings.nodes.get(name) for name in deployment.nodes]
    memory = [_median(node.memory_read_bytes_per_second) for node in nodes if node]
    products = [
        _median(node.gemm_bf16_flops_per_second) or _median(node.gemm_f32_flops_per_second) for node in nodes if node
    ]
    for name, values in (("memory_read_bytes_per_second", memory), ("gemm_bf16_flops_per_second", products)):
        if not values or any(value is None for value in values):
            raise SweepError(
                f"{run_id}: ceilings.json: nodes: {name}: missing; measure it with: cluster probe --only nodes"
            )
    launches = [_median(node.kernel_dispatch_seconds) for node in nodes if node]
    return Accelerator(
        "the slowest node",
        min(value for value in memory if value),
        min(value for value in products if value),
        max((value for value in launches if value), default=1e-5),
    )


def _link(run_id: str, ceilings: Ceilings, profile: Profile, deployment: Deployment, notes: list[str]) -> Link | None:
    if deployment.ranks_per_replica == 1:
        return None
    pairs = [*ceilings.links.get(deployment.link, {}).values()]
    latencies = [value for pair in pairs if (value := _median(pair.latency_seconds))]
    rates = [value for pair in pairs if (value := _median(pair.bandwidth_bytes_per_second))]
    probed = ceilings.allreduce if deployment.tensor_parallel > 1 else ceilings.send_receive
    backend = profile.engine_of(deployment.nodes[0]).collective_backend or DEFAULT_BACKEND
    if probed is not None and probed.link == deployment.link:
        sizes = {float(size): spread.median for size, spread in probed.sizes.items()}
        messages = link_of(sizes, probed.ranks if deployment.tensor_parallel > 1 else 1, probed.backend)
        if messages is not None:
            # Messages between ranks know the software's latency; the link's rate is measured anew before each run.
            return replace(messages, bytes_per_second=min([messages.bytes_per_second, *rates]))
    if not latencies:
        raise SweepError(
            f"{run_id}: ceilings.json: allreduce, links.{deployment.link}: missing; measure them with: "
            "cluster probe --only links"
        )
    if not rates:
        notes.append(f"the rate of {deployment.link} was not measured; the profile's is used")
    return Link(max(latencies), min(rates, default=profile.networks[deployment.link].rate_bytes_per_second), backend)


def _median(spread: Spread | None) -> float | None:
    return spread.median if spread is not None and spread.median > 0 else None
