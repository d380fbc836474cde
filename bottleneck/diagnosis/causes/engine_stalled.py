"""Engine stalled: requests wait, none runs, and not a token is made."""

from __future__ import annotations

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes.base import RECORDED, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent


def find(context: Context) -> Finding | None:
    """Find an engine whose readings show waiting requests, none running, and no token or step from first to last.

    A first step that lasts long looks the same to the gauges: a worker that computes, or a link that carries bytes,
    tells it from a stall.

    Parameters
    ----------
    context : Context
        Supplies the gauges of each engine, its counters of tokens and steps, and the workers' and links' activity.

    Returns
    -------
    Finding or None
        Scored by the share of the readings; None when it is half of them or less, or something moves.
    """
    seen = max(context.seen.engines, key=lambda engine: engine.stuck_share or 0.0, default=None)
    if seen is None or not seen.stuck_share or seen.stuck_share <= 1 / 2 or _moves(context):
        return None
    share, waiting = seen.stuck_share, seen.waiting_mean or 0.0
    seconds = context.seen.span_seconds
    words = f"nothing ran in {percent(share)} of the readings while {waiting:.3g} requests waited, for {seconds:.3g} s"
    if seen.running_mean:
        ran = f"{seen.running_mean:.3g} requests ran and {waiting:.3g} waited"
        words = f"{ran} in {percent(share)} of the readings, for {seconds:.3g} s, and nothing came of it"
    if seen.stuck_engine:
        words = f"{seen.stuck_engine}: nothing was made there in {percent(share)} of the readings, for {seconds:.3g} s"
    return Finding(
        share,
        seen.head or None,
        evidence=(
            line(words, share, "1", "engine metrics: num_requests_running, num_requests_waiting"),
            line("no token was made and no step computed in that time", 0.0, "tokens", "engine metrics: counters"),
        ),
        terms=(Term("readings with requests waiting and none running", share),),
    )


def _moves(context: Context) -> bool:
    """Return whether workers or link were at work: then a first step lasts long, and the engine is not stuck."""
    seen = context.seen
    idle = thresholds.AT_WORK_CORES * seen.span_seconds
    working = any(not facts.spins and (facts.worker_cpu_seconds or 0.0) > idle for facts in seen.nodes.values())
    link = seen.link
    carried = link is not None and (link.full_share or 0.0) > thresholds.LEAST_SHOWN
    return working or carried


CAUSE = Cause(
    name="engine_stalled",
    title="Engine on {node} is stuck",
    meaning="Requests wait and the engine makes nothing: its scheduler, a worker or a collective does not go on.",
    signals=(
        "requests wait and none runs, reading after reading, or requests run for long and nothing comes of it",
        "no token is made and no step is computed from the first reading to the last",
        "no worker computes, and nothing crosses the link",
    ),
    similar=(
        ("kv_cache_capacity", "there requests run, and those that wait do so for a full cache"),
        ("client_limited", "there nothing waits"),
        ("weight_loading", "there the engine does not answer yet"),
    ),
    advice=(
        "Look at the workers' last lines: cluster logs {node}",
        "A rank that died leaves the others waiting in a collective: cluster status",
        "Start it anew: cluster undeploy, then cluster deploy",
    ),
    fault=True,
    tried=RECORDED,
    tier=Tier.MENDABLE,
    find=find,
)
