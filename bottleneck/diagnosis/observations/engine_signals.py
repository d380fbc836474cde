"""What an engine's own metrics say: where requests spent their time, how many ran and waited, how full the cache was.

Metric names are vLLM's (V1 engine): `request_queue_time_seconds` runs from arrival to the first schedule,
`request_prefill_time_seconds` on to the first token, `request_decode_time_seconds` on to the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bottleneck.runs.topology import Group, Topology
from bottleneck.telemetry.prometheus_text import Delta, Histogram, MetricsText, delta, histogram_delta

# A cache fuller than this cannot be trusted to take one more request; vLLM preempts when a running one needs a block.
CACHE_FULL = 0.85
CACHE_ROOMY = 0.7

# Counters whose series the engine makes when it first needs them.
_ON_FIRST_USE = ("vllm:request_success", "vllm:prompt_tokens_cached")

Readings = Sequence[tuple[float, MetricsText]]


@dataclass
class Waiting:
    """Why requests waited, as shares (0 to 1) of the readings in which any waited.

    `slots`: as many ran as are allowed, and the cache had room. `cache`: the cache was full and slots were free.
    `step`: neither; they waited for the running step to end.
    """

    slots: float = 0.0
    cache: float = 0.0
    step: float = 0.0


@dataclass
class EngineFacts:
    """One engine over the interval; times are sums over its finished requests, in seconds; None is unknown.

    `counted_seconds` is how much time lies between the two readings the counts are from: less than the interval when
    they are those inside a window. `front_cpu_share` is how much of a core the process in front of the engine used,
    `front_wait_share` how much of the time it was held back where the other processes of its node were not.
    `watched_share` is how much of the interval the readings during it reach over.
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
    unusable: int = 0
    flops: float | None = None
    read_bytes: float | None = None
    first_token_seconds: float | None = None
    front_cpu_seconds: float | None = None
    front_cpu_share: float | None = None
    front_wait_share: float | None = None

    @property
    def adds_up(self) -> bool:
        """Whether the phases' sums go with the sum of the whole latencies, as far as both are known."""
        parts = (self.queue_seconds or 0.0) + (self.prefill_seconds or 0.0) + (self.decode_seconds or 0.0)
        return not self.latency_seconds or 0.3 * self.latency_seconds < parts < 1.1 * self.latency_seconds

    @property
    def has_times(self) -> bool:
        """Whether the engine told where its finished requests spent their time."""
        return self.requests > 0 and self.prefill_seconds is not None and self.decode_seconds is not None

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON-able data."""
        document = asdict(self)
        document["itl"] = None if self.itl is None else {"mean": self.itl.mean, "median": self.itl.quantile(0.5)}
        return document


def engine_facts(group: Group, readings: Readings, topology: Topology) -> EngineFacts:
    """Gather one engine's facts.

    Parameters
    ----------
    group : Group
        With the readings before and after.
    readings : sequence of (float, MetricsText)
        Readings taken during the interval: unix seconds and metrics.
    topology : Topology
        For the limit on sequences.
    """
    facts = EngineFacts(head=group.head)
    _totals(facts, group.before, group.after)
    _gauges(facts, readings, topology.max_num_seqs)
    return facts


def _totals(facts: EngineFacts, before: MetricsText | None, after: MetricsText | None) -> None:
    if after is None:
        return
    facts.unusable = after.unusable + (before.unusable if before else 0)
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

    facts.queue_seconds = grown("vllm:request_queue_time_seconds_sum")
    facts.prefill_seconds = grown("vllm:request_prefill_time_seconds_sum")
    facts.decode_seconds = grown("vllm:request_decode_time_seconds_sum")
    facts.latency_seconds = grown("vllm:e2e_request_latency_seconds_sum")
    inference = grown("vllm:request_inference_time_seconds_sum")
    _complete(facts, inference)
    facts.requests = grown("vllm:e2e_request_latency_seconds_count") or grown("vllm:request_success_total") or 0.0
    facts.prompt_tokens = grown("vllm:prompt_tokens_total")
    cached = grown("vllm:prompt_tokens_cached_total")
    if facts.prompt_tokens is not None and cached:
        # A prompt whose beginning is in the cache is computed from there on only.
        facts.prompt_tokens = max(0.0, facts.prompt_tokens - cached)
    facts.generation_tokens = grown("vllm:generation_tokens_total")
    # Tokens of the finished requests: what the sums above belong to. A window cuts others in two.
    facts.finished_tokens = grown("vllm:request_generation_tokens_sum")
    if facts.finished_tokens is None:
        facts.finished_tokens = facts.generation_tokens
    facts.steps = grown("vllm:iteration_tokens_total_count")
    # Of the engine's own analytic model (--enable-mfu-metrics), per accelerator.
    facts.flops = grown("vllm:estimated_flops_per_gpu_total")
    facts.read_bytes = grown("vllm:estimated_read_bytes_per_gpu_total")
    facts.first_token_seconds = grown("vllm:time_to_first_token_seconds_sum")
    facts.front_cpu_seconds = grown("process_cpu_seconds_total")
    facts.preemptions = grown("vllm:num_preemptions_total")
    facts.itl = histogram_delta(before, after, "vllm:inter_token_latency_seconds")
    facts.reset = any(resets)


def _complete(facts: EngineFacts, inference: float | None) -> None:
    """Work out one missing sum from the others: latency is queue, prefill and decode; inference the last two."""
    queue, prefill, decode, whole = (
        facts.queue_seconds,
        facts.prefill_seconds,
        facts.decode_seconds,
        facts.latency_seconds,
    )
    if inference is None and prefill is not None and decode is not None:
        inference = prefill + decode
    if decode is None and prefill is not None and inference is not None:
        facts.decode_seconds = max(0.0, inference - prefill)
    if prefill is None and decode is not None and inference is not None:
        facts.prefill_seconds = max(0.0, inference - decode)
    if queue is None and whole is not None and inference is not None:
        facts.queue_seconds = max(0.0, whole - inference)


def _column(readings: Readings, name: str, **labels: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = [reading.value(name, **labels) for _, reading in readings]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _gauges(facts: EngineFacts, readings: Readings, limit: int | None) -> None:
    running = _column(readings, "vllm:num_requests_running")
    waiting = _column(readings, "vllm:num_requests_waiting")
    capacity = _column(readings, "vllm:num_requests_waiting_by_reason", reason="capacity")
    # `deferred` waits for something else than capacity; the engine's own word is the better one where it is said.
    waiting = np.where(np.isfinite(capacity), capacity, waiting)
    cache = _column(readings, "vllm:kv_cache_usage_perc")
    known = np.isfinite(running)
    facts.readings = int(known.sum())
    if facts.readings == 0:
        return
    busy = known & ((running > 0) | (waiting > 0))
    facts.busy_share = float(busy.sum() / known.sum())
    facts.running_mean, facts.running_max = _mean(running[busy]), float(np.max(running[known]))
    facts.cache_usage_mean = _mean(cache[busy])
    known_cache = cache[np.isfinite(cache)]
    facts.cache_usage_max = float(known_cache.max()) if known_cache.size else None
    held = busy & (waiting > 0)
    if busy.any() and np.isfinite(waiting[busy]).any():
        facts.waiting_share = float(held.sum() / busy.sum())
        facts.waiting_mean = float(np.nansum(waiting[busy]) / busy.sum())
    if held.any():
        facts.inferred_limit = float(limit) if limit else _plateau(running[held], cache[held])
        # Who waits while none is counted waits for one in its first step, which the engine counts at that step's end.
        facts.waiting = _why(np.maximum(running[held], 1.0), cache[held], facts.inferred_limit)
    if facts.preemptions is None and len(readings) > 1:
        seen = delta(readings[0][1], readings[-1][1], "vllm:num_preemptions_total")
        facts.preemptions = seen.value if seen is not None else None


def _plateau(
    running: np.ndarray[Any, np.dtype[np.float64]], cache: np.ndarray[Any, np.dtype[np.float64]]
) -> float | None:
    """Return the limit on sequences as far as the readings show one: the same number ran whenever others waited."""
    top = float(running.max())
    at_top = running >= top
    if running.size < 3 or at_top.mean() < 0.6:
        return None
    usage = cache[at_top & np.isfinite(cache)]
    return top if usage.size and float(np.median(usage)) < CACHE_ROOMY else None


def _why(
    running: np.ndarray[Any, np.dtype[np.float64]],
    cache: np.ndarray[Any, np.dtype[np.float64]],
    limit: float | None,
) -> Waiting:
    at_limit = running >= limit if limit else np.zeros(running.size, dtype=bool)
    full = np.nan_to_num(cache, nan=0.0) >= CACHE_FULL
    slots, by_cache = at_limit & ~full, full & ~at_limit
    both = at_limit & full
    count = float(running.size)
    return Waiting(
        slots=float(slots.sum() + 0.5 * both.sum()) / count,
        cache=float(by_cache.sum() + 0.5 * both.sum()) / count,
        step=float((~at_limit & ~full).sum()) / count,
    )
