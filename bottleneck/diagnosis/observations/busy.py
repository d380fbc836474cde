"""Find when some request was under way: by the client's timings, the engine's gauges, or what nodes and link did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.observations.client import ClientFacts, busy_time
from bottleneck.diagnosis.observations.engine import EngineFacts
from bottleneck.diagnosis.observations.link import crossing_seconds
from bottleneck.diagnosis.observations.observed import BusyTime
from bottleneck.runs.run import Run
from bottleneck.runs.topology import Topology
from bottleneck.telemetry.samples import NodeSamples


def busy_seconds(
    run: Run,
    topology: Topology,
    engines: Sequence[EngineFacts],
    client: ClientFacts | None,
    samples: Mapping[str, NodeSamples],
) -> BusyTime:
    """Return how long was watched, and how much of that some request was under way.

    Parameters
    ----------
    run : Run
        A recorded run or a window.
    topology : Topology
        Who the nodes of the deployment are.
    engines : Sequence[EngineFacts]
        What was read of each engine.
    client : ClientFacts or None
        What the load generator measured; None in a window.
    samples : Mapping[str, NodeSamples]
        Node to its samples.
    """
    found = _by_requests(run, engines, client)
    if run.live and not run.start:
        return _by_samples(found, run, topology, samples)
    return found


def _by_requests(run: Run, engines: Sequence[EngineFacts], client: ClientFacts | None) -> BusyTime:
    duration = run.client.duration_seconds if run.client is not None else math.nan
    timed = [
        (request.start_seconds, request.start_seconds + request.latency_seconds)
        for request in (run.client.good if run.client else [])
        if request.start_seconds is not None
    ]
    if timed:
        first, last = min(start for start, _ in timed), max(end for _, end in timed)
        busy = busy_time(timed)
        # Between the points of a sweep the load generator starts again: that is not the load's idleness.
        return BusyTime(max(duration if duration > 0 else last - first, busy), busy, "client timings")
    span = duration if duration > 0 else run.seconds if math.isfinite(run.seconds) else 0.0
    shares = [engine.busy_share for engine in engines if engine.busy_share is not None]
    busy, source = (span * max(shares), "engine metrics, num_requests_running") if shares else (span, "")
    if client is None:
        return BusyTime(span, busy, source)
    # Nor can requests overlap more than the client lets them, or than there are.
    least = client.latency_seconds / max(client.concurrency or client.requests, 1)
    if span >= least > busy:
        busy, source = least, "client timings: the sum of all requests / concurrency"
    # However they overlap, requests cannot keep the engine busy for longer than they last together.
    if 0 < client.latency_seconds < busy:
        busy, source = client.latency_seconds, "client timings: the sum of all requests is less than the time watched"
    return BusyTime(span, busy, source)


def _by_samples(found: BusyTime, run: Run, topology: Topology, samples: Mapping[str, NodeSamples]) -> BusyTime:
    """Lengthen a live window's busy time to what its workers were at work for, or their link carried their bytes.

    The engine counts a request as running from the end of its first step on: of a long one (a long prompt, a slow link)
    its gauge knows nothing while it lasts.
    """
    start, end = run.interval
    edges = np.arange(start, end, 1.0)
    lengths = np.minimum(1.0, end - edges)
    crossing = crossing_seconds(run, topology, samples, edges)
    seconds = 0.0
    for node in topology.nodes:
        if (series := samples.get(node)) is None:
            continue
        used = [
            sum(series.workers(kind, edge, edge + 1.0) or 0.0 for kind in ("cpu_user_s", "cpu_system_s"))
            for edge in edges
        ]
        at_work = np.array(used) > thresholds.AT_WORK_CORES * lengths
        seconds = max(seconds, float(lengths[at_work | np.isin(edges, list(crossing))].sum()))
    if seconds <= found.busy_seconds:
        return found
    source = "samples: CPU time of the workers" + (f", bytes on {topology.link}" if crossing else "")
    return BusyTime(found.span_seconds, min(seconds, found.span_seconds), source)
