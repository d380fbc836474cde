"""Show what goes on right now: the newest batches as rates, for a screen that is drawn every second or two."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bottleneck.telemetry.batches import engine_readings
from bottleneck.telemetry.prometheus_text import MetricsText, delta, histogram_delta
from bottleneck.telemetry.sample_schema import SOME_STALLED
from bottleneck.telemetry.samples import NodeSamples, node_samples

if TYPE_CHECKING:
    from bottleneck.profile import Profile

# Rates are taken over this long, so that they follow what happens and do not flicker.
RATE_SECONDS = 3.0


def recent(batches: Iterable[Mapping[str, Any]], profile: Profile, now: float) -> dict[str, Any]:
    """Return the rates of every node, link and engine.

    Parameters
    ----------
    batches : iterable of mapping
        The batches of the last few seconds, of all nodes.
    profile : Profile
        Profile of the cluster.
    now : float
        Unix seconds of the control node.

    Returns
    -------
    dict
        JSON-able: `time` and `nodes`, by node name. A node is `up` when its last sample is younger than the heartbeat
        deadline. What is not known is None; ratios are 0 to 1, other units are in the names.
    """
    kept = [dict(batch) for batch in batches]
    series = node_samples(kept)
    engines = engine_readings(kept, -math.inf, math.inf)
    nodes: dict[str, dict[str, Any]] = {}
    for name, node in profile.nodes.items():
        capacities = {link: profile.networks[link].rate_bytes_per_second for link in node.links}
        found = series.get(name)
        if found is None or found.times.size == 0:
            nodes[name] = {"up": False, "age_seconds": None}
            continue
        age = now - float(found.times[-1])
        nodes[name] = {
            "up": age <= profile.lost_after_seconds,
            "age_seconds": age,
            **_node(found, capacities),
            "engine": _engine(engines.get(name, [])),
        }
    return {"time": now, "nodes": nodes}


def _rate(increase: float | None, seconds: float) -> float | None:
    return None if increase is None or seconds <= 0 else increase / seconds


def _node(found: NodeSamples, capacities: Mapping[str, float]) -> dict[str, Any]:
    end = float(found.times[-1])
    start = max(end - RATE_SECONDS, float(found.times[0]))
    seconds = end - start

    def rate(*path: str | int) -> float | None:
        return _rate(found.steps(*path).increase(start, end), seconds)

    cores = {core: rate("cpu", core, 0) for core in found.keys("cpu")}
    known = [value for value in cores.values() if value is not None]
    links = {}
    for link in sorted(set(found.keys("links")) & set(capacities)):
        received = _rate(found.link(link, "receive_bytes").increase(start, end), seconds)
        sent = _rate(found.link(link, "transmit_bytes").increase(start, end), seconds)
        both = [value for value in (received, sent) if value is not None]
        links[link] = {
            "receive_bytes_per_second": received,
            "transmit_bytes_per_second": sent,
            "capacity_bytes_per_second": capacities[link],
            "utilization_ratio": max(both) / capacities[link] if both else None,
        }
    workers = {}
    for worker in found.keys("workers"):
        user, system = rate("workers", worker, "cpu_user_s"), rate("workers", worker, "cpu_system_s")
        workers[worker] = {
            "cpu_cores": None if user is None or system is None else user + system,
            "run_delay_ratio": rate("workers", worker, "run_delay_s"),
            "resident_bytes": found.last("workers", worker, "rss_bytes"),
            "processes": found.last("workers", worker, "processes"),
        }
    return {
        "cores": cores,
        "busy_ratio": sum(known) / len(known) if known else None,
        "pressure_cpu_ratio": rate("psi", "cpu", SOME_STALLED),
        "throttled_ratio": rate("cgroup", "throttled_s"),
        "quota_cores": found.last("cgroup", "quota_cores"),
        "memory_total_bytes": found.last("mem", "total"),
        "memory_available_bytes": found.last("mem", "available"),
        "disk_read_bytes_per_second": rate("disk", "read_bytes"),
        "disk_write_bytes_per_second": rate("disk", "write_bytes"),
        "links": links,
        "workers": workers,
        "missing_batches": found.missing_batches,
    }


def _engine(readings: list[tuple[float, MetricsText]]) -> dict[str, Any] | None:
    """Return the engine's rates between its first and last reading; None where no head is read."""
    if not readings:
        return None
    (first, before), (last, after) = readings[0], readings[-1]
    seconds = last - first

    def growth(name: str) -> float | None:
        grown = delta(before, after, name)
        return _rate(grown.value if grown else None, seconds)

    def mean(family: str) -> float | None:
        observed = histogram_delta(before, after, family)
        return observed.mean if observed else None

    return {
        "time": last,
        "running": after.value("vllm:num_requests_running"),
        "waiting": after.value("vllm:num_requests_waiting"),
        "kv_cache_ratio": after.value("vllm:kv_cache_usage_perc"),
        "prompt_tokens_per_second": growth("vllm:prompt_tokens_total"),
        "generation_tokens_per_second": growth("vllm:generation_tokens_total"),
        "preemptions_per_second": growth("vllm:num_preemptions_total"),
        "time_to_first_token_seconds": mean("vllm:time_to_first_token_seconds"),
        "inter_token_latency_seconds": mean("vllm:inter_token_latency_seconds"),
    }
