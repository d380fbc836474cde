"""Facts from an engine's own metrics: where requests spent their time, how many ran and waited, how full the cache was.

Metric names are vLLM's (V1 engine): `request_queue_time_seconds` runs from arrival to the first schedule,
`request_prefill_time_seconds` on to the first token, `request_decode_time_seconds` on to the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bottleneck.diagnosis import thresholds
from bottleneck.runs.topology import Group, Topology
from bottleneck.telemetry.prometheus_text import Delta, Histogram, MetricsText, delta, histogram_delta
from bottleneck.telemetry.samples import Array

# Counters whose series the engine makes when it first needs them.
_ON_FIRST_USE = ("vllm:request_success", "vllm:prompt_tokens_cached")

Readings = Sequence[tuple[float, MetricsText]]


@dataclass(frozen=True)
class Waiting:
    """Reasons for which requests waited, as shares (0 to 1) of the readings in which any waited.

    `slots`: as many ran as are allowed, and the cache had room. `cache`: the cache was full and slots were free.
    `step`: neither; they waited for the running step to end.
    """

    slots: float = 0.0
    cache: float = 0.0
    step: float = 0.0


@dataclass(frozen=True)
class EngineFacts:
    """One engine over the interval; times are sums over its finished requests, in seconds; None is unknown.

    Attributes
    ----------
    counted_seconds : float or None
        Time between the two readings that the counts are from: less than the interval when they lie inside a window.
    watched_share : float or None
        How much of the interval the readings during it reach over, 0 to 1.
    stuck_share : float or None
        Share of the readings in which requests waited and none ran, where the engine made no token and computed no
        step from the first reading to the last; 0 where it made any. After a while (`STUCK_SECONDS`) those in which
        requests are said to run count too. Of several engines behind one server, that of the one that is stuck most.
    stuck_engine : str or None
        Which of several engines behind one server that is, and how many requests wait for it.
    api_server_cpu_share : float or None
        How much of a core the process in front of the engine used.
    api_server_wait_share : float or None
        How much of the time it was ready to run and not let, beyond what the other processes of its node were.
    """

    head: str
    requests: float = 0.0
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    latency_seconds: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    finished_tokens: float | None = None
    steps: float | None = None
    itl: Histogram | None = None
    preemptions: float | None = None
    reset: bool = False
    readings: int = 0
    counted_seconds: float | None = None
    watched_share: float | None = None
    busy_share: float | None = None
    running_mean: float | None = None
    running_max: float | None = None
    waiting_share: float | None = None
    waiting_mean: float | None = None
    waiting: Waiting | None = None
    cache_usage_mean: float | None = None
    cache_usage_max: float | None = None
    inferred_limit: float | None = None
    stuck_share: float | None = None
    stuck_engine: str | None = None
    unusable: int = 0
    flops: float | None = None
    read_bytes: float | None = None
    first_token_seconds: float | None = None
    api_server_cpu_seconds: float | None = None
    api_server_cpu_share: float | None = None
    api_server_wait_share: float | None = None

    @property
    def phases_seconds(self) -> float:
        """Queue, prefill and decode together, as far as they are known."""
        return (self.queue_seconds or 0.0) + (self.prefill_seconds or 0.0) + (self.decode_seconds or 0.0)

    @property
    def has_times(self) -> bool:
        """Return whether the engine says where its finished requests spent their time."""
        return self.requests > 0 and self.prefill_seconds is not None and self.decode_seconds is not None

    @property
    def api_server_need(self) -> float:
        """Share of the time in which the process in front of the engine ran or wanted to, 0 to 1."""
        return min(1.0, (self.api_server_cpu_share or 0.0) + (self.api_server_wait_share or 0.0))

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON-able data."""
        document = asdict(self)
        document["itl"] = None if self.itl is None else {"mean": self.itl.mean, "median": self.itl.quantile(1 / 2)}
        return document


def engine_facts(
    group: Group, readings: Readings, topology: Topology, interval: tuple[float, float], live: bool
) -> EngineFacts:
    """Return one engine's facts.

    Parameters
    ----------
    group : Group
        With the readings before and after.
    readings : sequence of (float, MetricsText)
        Readings taken during the interval: unix seconds and metrics.
    topology : Topology
        For the limit on sequences.
    interval : (float, float)
        Unix seconds.
    live : bool
        Whether it is a window, whose counts are those between two readings inside it.
    """
    moments = [moment for moment, _ in readings]
    seconds = interval[1] - interval[0]
    watched = None
    if len(moments) > 1 and seconds > 0:
        # The last reading stands for the time until the next one would have come.
        watched = min(1.0, (max(moments) - min(moments)) * len(moments) / (len(moments) - 1) / seconds)
    facts = EngineFacts(
        head=group.head,
        counted_seconds=max(moments) - min(moments) if live and moments else None,
        watched_share=watched,
    )
    facts = _with_totals(facts, group.before, group.after)
    # Of several engines behind one server each has its own limit, and what they run is counted together.
    engines = max((reading.engines for _, reading in readings), default=1)
    facts = _with_gauges(facts, readings, topology.max_num_seqs and topology.max_num_seqs * engines)
    if facts.preemptions is None and len(readings) > 1:
        seen = delta(readings[0][1], readings[-1][1], "vllm:num_preemptions_total")
        facts = replace(facts, preemptions=seen.value if seen is not None else None)
    if any((made or 0.0) > 0 for made in (facts.steps, facts.generation_tokens, facts.prompt_tokens)):
        share, words = _stuck_engine(readings) or (0.0, None)
        return replace(facts, stuck_share=share, stuck_engine=words)
    if facts.generation_tokens is not None or facts.prompt_tokens is not None:
        running, waiting = (_column(readings, f"vllm:num_requests_{name}") for name in ("running", "waiting"))
        if (stuck := _stuck(readings, running, waiting)) is not None:
            return replace(facts, stuck_share=stuck)
    return facts


def _with_totals(facts: EngineFacts, before: MetricsText | None, after: MetricsText | None) -> EngineFacts:
    """Return the facts with what grew between two readings."""
    if after is None:
        return facts
    resets: list[bool] = []
    known = before.names() if before is not None else set()

    def grown(name: str) -> float | None:
        if known and name not in known and not name.startswith(_ON_FIRST_USE):
            # The engine has these from its start: a reading without one lost it, and it does not count from zero.
            return None
        found: Delta | None = delta(before, after, name)
        if found is None or not math.isfinite(found.value):
            return None
        resets.append(found.reset)
        return found.value

    prompts, cached = grown("vllm:prompt_tokens_total"), grown("vllm:prompt_tokens_cached_total")
    if prompts is not None and cached:
        # A prompt whose beginning is in the cache is computed from there on only.
        prompts = max(0.0, prompts - cached)
    generated = grown("vllm:generation_tokens_total")
    # Tokens of the finished requests: what the sums of times belong to. A window cuts others in two.
    finished = grown("vllm:request_generation_tokens_sum")
    whole = grown("vllm:e2e_request_latency_seconds_sum")
    queue, prefill, decode = _phases(
        grown("vllm:request_queue_time_seconds_sum"),
        grown("vllm:request_prefill_time_seconds_sum"),
        grown("vllm:request_decode_time_seconds_sum"),
        grown("vllm:request_inference_time_seconds_sum"),
        whole,
    )
    found = replace(
        facts,
        unusable=after.unusable + (before.unusable if before else 0),
        queue_seconds=queue,
        prefill_seconds=prefill,
        decode_seconds=decode,
        latency_seconds=whole,
        requests=grown("vllm:e2e_request_latency_seconds_count") or grown("vllm:request_success_total") or 0.0,
        prompt_tokens=prompts,
        generation_tokens=generated,
        finished_tokens=generated if finished is None else finished,
        steps=grown("vllm:iteration_tokens_total_count"),
        # Of the engine's own analytic model (--enable-mfu-metrics), per accelerator.
        flops=grown("vllm:estimated_flops_per_gpu_total"),
        read_bytes=grown("vllm:estimated_read_bytes_per_gpu_total"),
        first_token_seconds=grown("vllm:time_to_first_token_seconds_sum"),
        api_server_cpu_seconds=grown("process_cpu_seconds_total"),
        preemptions=grown("vllm:num_preemptions_total"),
        itl=histogram_delta(before, after, "vllm:inter_token_latency_seconds"),
    )
    return replace(found, reset=any(resets))


def _phases(
    queue: float | None, prefill: float | None, decode: float | None, inference: float | None, whole: float | None
) -> tuple[float | None, float | None, float | None]:
    """Work out one missing sum from the others: latency is queue, prefill and decode; inference the last two."""
    if inference is None and prefill is not None and decode is not None:
        inference = prefill + decode
    if decode is None and prefill is not None and inference is not None:
        decode = max(0.0, inference - prefill)
    elif prefill is None and decode is not None and inference is not None:
        prefill = max(0.0, inference - decode)
    if queue is None and whole is not None and inference is not None:
        queue = max(0.0, whole - inference)
    return queue, prefill, decode


def _column(readings: Readings, name: str, **labels: str) -> Array:
    values = [reading.value(name, **labels) for _, reading in readings]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _mean(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _with_gauges(facts: EngineFacts, readings: Readings, limit: int | None) -> EngineFacts:
    """Return the facts with what the gauges say."""
    running = _column(readings, "vllm:num_requests_running")
    waiting = _column(readings, "vllm:num_requests_waiting")
    capacity = _column(readings, "vllm:num_requests_waiting_by_reason", reason="capacity")
    # `deferred` waits for something else than capacity; the engine's own word is the better one where it is said.
    waiting = np.where(np.isfinite(capacity), capacity, waiting)
    cache = _column(readings, "vllm:kv_cache_usage_perc")
    known = np.isfinite(running)
    facts = replace(facts, readings=int(known.sum()))
    if not known.any():
        return facts
    busy = known & ((running > 0) | (waiting > 0))
    known_cache = cache[np.isfinite(cache)]
    facts = replace(
        facts,
        busy_share=float(busy.sum() / known.sum()),
        running_mean=_mean(running[busy]),
        running_max=float(np.max(running[known])),
        cache_usage_mean=_mean(cache[busy]),
        cache_usage_max=float(known_cache.max()) if known_cache.size else None,
        stuck_share=float((known & (running == 0) & (waiting > 0)).sum() / known.sum()),
    )
    queued = busy & (waiting > 0)
    if busy.any() and np.isfinite(waiting[busy]).any():
        share, mean = float(queued.sum() / busy.sum()), float(np.nansum(waiting[busy]) / busy.sum())
        facts = replace(facts, waiting_share=share, waiting_mean=mean)
    if queued.any():
        inferred = float(limit) if limit else _plateau(running[queued], cache[queued])
        # Who waits while none is counted waits for one in its first step, which the engine counts at that step's end.
        why = _why(np.maximum(running[queued], 1.0), cache[queued], inferred)
        facts = replace(facts, inferred_limit=inferred, waiting=why)
    return facts


def _stuck(readings: Readings, running: Array, waiting: Array) -> float | None:
    """Return the share of the readings of an engine that makes nothing in which it ought to; None without readings."""
    known = np.isfinite(running)
    if not known.any():
        return None
    ought = (running == 0) & (waiting > 0)
    if readings[-1][0] - readings[0][0] >= thresholds.STUCK_SECONDS:
        ought = (running > 0) | (waiting > 0)
    return float((known & ought).sum() / known.sum())


def _stuck_engine(readings: Readings) -> tuple[float, str] | None:
    """Return the one of several engines that made nothing while requests waited for it: its share, and which it is.

    The others may well work.
    """
    labels = readings[-1][1].engine_labels if len(readings) > 1 else []
    found: tuple[float, str] | None = None
    for each in labels if len(labels) > 1 else ():
        running = _column(readings, "vllm:num_requests_running", **each)
        waiting = _column(readings, "vllm:num_requests_waiting", **each)
        made = [
            delta(readings[0][1], readings[-1][1], f"vllm:{name}_tokens_total", **each)
            for name in ("generation", "prompt")
        ]
        if all(grown is None for grown in made) or any(grown and grown.value for grown in made):
            continue
        share = _stuck(readings, running, waiting)
        if share is not None and share > (found[0] if found else 0.0):
            name = " ".join(each.values())
            words = f"engine {name} of {len(labels)}, for which {np.nanmean(waiting):.3g} requests wait"
            found = share, words
    return found


def _plateau(running: Array, cache: Array) -> float | None:
    """Return the limit on sequences as far as the readings show one: the same number ran whenever others waited."""
    top = float(running.max())
    at_top = running >= top
    if running.size <= 2 or at_top.mean() <= 1 / 2:
        return None
    usage = cache[at_top & np.isfinite(cache)]
    return top if usage.size and float(np.median(usage)) < thresholds.CACHE_ROOMY else None


def _why(running: Array, cache: Array, limit: float | None) -> Waiting:
    at_limit = running >= limit if limit else np.zeros(running.size, dtype=bool)
    full = np.nan_to_num(cache, nan=0.0) >= thresholds.FULL
    both = float((at_limit & full).sum()) / 2
    count = float(running.size)
    return Waiting(
        slots=(float((at_limit & ~full).sum()) + both) / count,
        cache=(float((full & ~at_limit).sum()) + both) / count,
        step=float((~at_limit & ~full).sum()) / count,
    )
