"""A small simulator of a served cluster: it makes runs whose bottleneck is known because it was put in.

Steps of an engine in continuous batching, two nodes with tensor parallelism, one link. A step takes what the slowest
node needs (its arithmetic, stretched by its CPU quota or by other processes) plus the link (bytes over bandwidth,
messages times latency). Samples, engine metrics and client timings are read off the same timeline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.load.workload import load_of
from bottleneck.plan.nodes import deployment_record
from bottleneck.plan.workers import DeploymentRecord
from bottleneck.profile import load_profile
from bottleneck.profile.types import Profile
from bottleneck.runs.ceilings import Ceilings
from bottleneck.runs.run import ClientRequest, ClientResult, Run
from bottleneck.telemetry.batches import engine_readings
from bottleneck.telemetry.prometheus_text import MetricsText
from tests.vllm_metrics import inter_token_buckets, series, series_name

EPOCH = 1_790_000_000.0
PROFILE = Path(__file__).parents[2] / "profiles" / "embedded.yaml"
MODEL = "m"


@dataclass
class World:
    """The cluster to simulate; the defaults are a healthy embedded cluster, compute-bound."""

    link_bytes_per_second: float = 1e9
    probe_bytes_per_second: float | None = None  # None: the ceiling on file is right
    message_seconds: float = 0.0006
    prefill_token_seconds: float = 0.0012
    decode_step_seconds: float = 0.035
    quota: dict[str, float] = field(default_factory=dict)  # cores a node may use
    speed: dict[str, float] = field(default_factory=dict)  # of a node's arithmetic and ceilings
    stolen: dict[str, float] = field(default_factory=dict)  # share of a node's core that others take
    max_num_seqs: int = 16
    cache_tokens: int = 100_000
    concurrency: int | None = 4
    arrival_seconds: float | None = None  # open loop: one request every so many seconds
    requests: int = 16
    input_tokens: int = 256
    output_tokens: int = 32
    budget: int = 2048
    seed: int = 7


@dataclass
class _Request:
    arrived: float
    scheduled: float = 0.0
    done_tokens: int = 0
    token_times: list[float] = field(default_factory=list)


class Simulation:
    """One simulated run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = np.random.default_rng(world.seed)
        self.now = 0.0
        self.edges = [0.0]
        self.rates: list[dict[str, tuple[float, float, float, float]]] = []  # node -> cpu, throttled, delay, bytes
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []
        self.finished: list[_Request] = []
        self.sent = 0
        self.preemptions = 0
        self.steps = 0
        self.gauges: list[tuple[float, int, int, float]] = []
        self.totals: list[tuple[float, dict[str, float]]] = []
        self._simulate()

    def _cache_used(self) -> float:
        return sum(self.world.input_tokens + request.done_tokens for request in self.running) / self.world.cache_tokens

    def _arrive(self) -> None:
        world = self.world
        while self.sent < world.requests:
            if world.arrival_seconds is not None:
                moment = self.sent * world.arrival_seconds
                if moment > self.now:
                    return
                self.waiting.append(_Request(moment))
            else:
                if len(self.waiting) + len(self.running) >= (world.concurrency or 1):
                    return
                self.waiting.append(_Request(self.now))
            self.sent += 1

    def _pass(self, seconds: float, rates: dict[str, tuple[float, float, float, float]]) -> None:
        self.now += seconds
        self.edges.append(self.now)
        self.rates.append(rates)

    def _step(self, prompts: int, decodes: int) -> None:
        world = self.world
        work = (prompts * world.prefill_token_seconds + world.decode_step_seconds) * self.random.normal(1.0, 0.03)
        local, parts = 0.0, {}
        for node in ("node0", "node1"):
            cpu = work / world.speed.get(node, 1.0)
            quota, stolen = world.quota.get(node, 1.0), world.stolen.get(node, 0.0)
            throttled = cpu / quota - cpu if quota < 1 else 0.0
            delay = cpu / (1 - stolen) - cpu
            parts[node] = (cpu, throttled, delay)
            local = max(local, cpu + throttled + delay)
        payload = 17 * (prompts + decodes) * 1024 * 2
        link = payload / world.link_bytes_per_second + 17 * world.message_seconds
        seconds = local + link
        # The head's loop spins: its CPU is busy whatever it does.
        spin = {"node0": min(seconds - parts["node0"][1] - parts["node0"][2], seconds), "node1": parts["node1"][0]}
        self._pass(
            seconds,
            {
                node: (spin[node] / seconds, parts[node][1] / seconds, parts[node][2] / seconds, payload / seconds)
                for node in parts
            },
        )
        self.steps += 1

    def _simulate(self) -> None:
        world = self.world
        idle = dict.fromkeys(("node0", "node1"), (0.0, 0.0, 0.0, 0.0))
        while len(self.finished) < world.requests:
            self._arrive()
            if not self.waiting and not self.running:
                self._pass((self.sent * (world.arrival_seconds or 0.0)) - self.now + 1e-6, idle)
                continue
            admitted, room = [], world.budget - len(self.running)
            while (
                self.waiting
                and len(self.running) < world.max_num_seqs
                and room >= world.input_tokens
                and self._cache_used() * world.cache_tokens + world.input_tokens + 1 <= world.cache_tokens
            ):
                request = self.waiting.popleft()
                request.scheduled = request.scheduled or self.now
                self.running.append(request)
                admitted.append(request)
                room -= world.input_tokens
            self.gauges.append((self.now, len(self.running), len(self.waiting), self._cache_used()))
            prompts = sum(world.input_tokens + request.done_tokens for request in admitted)
            self._step(prompts, len(self.running) - len(admitted))
            for request in list(self.running):
                request.done_tokens += 1
                request.token_times.append(self.now)
                if request.done_tokens >= world.output_tokens:
                    self.running.remove(request)
                    self.finished.append(request)
            while self._cache_used() >= 1.0 and len(self.running) > 1:
                self.waiting.appendleft(self.running.pop())
                self.preemptions += 1
            self.totals.append((self.now, self._engine()))
            self.gauges.append((self.now, len(self.running), len(self.waiting), self._cache_used()))

    def _engine(self) -> dict[str, float]:
        done, world = self.finished, self.world
        ends = [(request.token_times[0], request.token_times[-1]) for request in done]
        gaps = np.concatenate([np.diff(request.token_times) for request in (*done, *self.running)] or [np.empty(0)])
        generated = sum(len(request.token_times) for request in (*done, *self.running))
        numbers = {
            "request_queue_time_seconds_sum": sum(request.scheduled - request.arrived for request in done),
            "request_prefill_time_seconds_sum": sum(request.token_times[0] - request.scheduled for request in done),
            "request_decode_time_seconds_sum": sum(last - first for first, last in ends),
            "e2e_request_latency_seconds_sum": sum(request.token_times[-1] - request.arrived for request in done),
            "e2e_request_latency_seconds_count": len(done),
            "request_generation_tokens_sum": len(done) * world.output_tokens,
            "prompt_tokens_total": (len(done) + len(self.running)) * world.input_tokens,
            "generation_tokens_total": generated,
            "iteration_tokens_total_count": self.steps,
            "num_preemptions_total": self.preemptions,
            "inter_token_latency_seconds_sum": float(gaps.sum()),
            "inter_token_latency_seconds_count": float(gaps.size),
        }
        return series(numbers, MODEL) | inter_token_buckets(gaps, MODEL)

    def metrics_at(self, moment: float) -> dict[str, float]:
        """Engine metrics as they stood at a moment of the simulation."""
        flat = dict.fromkeys(self.totals[0][1], 0.0)
        for when, numbers in self.totals:
            if when <= moment:
                flat = dict(numbers)
        running, waiting, cache = 0, 0, 0.0
        for when, ran, waited, used in self.gauges:
            if when <= moment:
                running, waiting, cache = ran, waited, used
        gauges = {"num_requests_running": running, "num_requests_waiting": waiting, "kv_cache_usage_perc": cache}
        by_reason = series_name("num_requests_waiting_by_reason", MODEL, reason="capacity")
        return flat | series(gauges, MODEL) | {by_reason: float(waiting)}

    def batches(self, engine_interval: float = 3.0) -> list[dict[str, Any]]:
        """Batches of both nodes, one a second, ten samples each."""
        edges, found = np.array(self.edges), []
        lengths = np.diff(edges)
        for node in ("node0", "node1"):
            table = np.array([rates[node] for rates in self.rates])
            grown = [np.append(0.0, np.cumsum(table[:, column] * lengths)) for column in range(4)]
            count = int(np.ceil(self.now))
            for second in range(count):
                samples = []
                for tick in range(11 if second == count - 1 else 10):
                    moment = second + tick / 10
                    cpu, throttled, delay, sent = (float(np.interp(moment, edges, column)) for column in grown)
                    samples.append(self._sample(node, moment, cpu, throttled, delay, sent))
                engine = None
                if node == "node0" and second % engine_interval == 0:
                    engine = {"t": EPOCH + second + 0.5, "metrics": self.metrics_at(second + 0.5)}
                found.append(
                    {
                        "node": node,
                        "boot": f"{node}-a",
                        "sequence": second + 1,
                        "t0": EPOCH + second,
                        "t1": EPOCH + second + 1,
                        "samples": samples,
                        "engine": engine,
                        "sampler": {"cpu_s": 0.01, "dropped": 0},
                    }
                )
        return found

    def _sample(
        self, node: str, moment: float, cpu: float, throttled: float, delay: float, sent: float
    ) -> dict[str, Any]:
        # A wait for the core is the time in which others ran on it.
        busy = 100 + cpu + delay
        return {
            "t": EPOCH + moment,
            "cpu": {"0": [busy, 60 + cpu, 40.0, max(0.0, moment - cpu), 0.0, 0.0]},
            "links": {"direct": [5e6 + sent, 5e6 + sent, 0, 0, 0, 0, 0, 0]},
            "cgroup": {"throttled_s": throttled, "quota_cores": self.world.quota.get(node)},
            "workers": {
                "tp2-0" if node == "node0" else "tp2-1": {
                    "cpu_user_s": 0.9 * cpu,
                    "cpu_system_s": 0.1 * cpu,
                    # The kernel counts a throttled worker as waiting too; the spinning head's own threads queue up.
                    "run_delay_s": delay + throttled + (0.5 * cpu if node == "node0" else 0.0),
                }
            },
        }

    def ceilings(self) -> dict[str, Any]:
        """Ceilings as the probes would have written them."""

        def known(value: float) -> dict[str, float]:
            return {"median": value, "low": 0.95 * value, "high": 1.05 * value, "samples": 20}

        rate = self.world.probe_bytes_per_second or self.world.link_bytes_per_second
        pair = {"bandwidth_bytes_per_second": known(rate), "latency_seconds": known(self.world.message_seconds / 4)}
        return {
            "schema": 1,
            "nodes": {
                node: {
                    "memory_read_bytes_per_second": known(8e9 * self.world.speed.get(node, 1.0)),
                    "gemm_bf16_flops_per_second": known(1e11 * self.world.speed.get(node, 1.0)),
                }
                for node in ("node0", "node1")
            },
            "links": {"direct": {"node0->node1": pair, "node1->node0": pair}},
            "allreduce": {
                "deployment": "tp2",
                "backend": "gloo",
                "link": "direct",
                "ranks": 2,
                "sizes": {"2048": known(self.world.message_seconds + 2048 / rate)},
            },
        }

    def client(self) -> ClientResult:
        """The file that the load generator would have saved."""
        overhead = 0.004
        requests = [
            ClientRequest(
                self.world.input_tokens,
                self.world.output_tokens,
                request.token_times[0] - request.arrived + overhead,
                tuple(np.diff(request.token_times)),
                request.token_times[-1] - request.arrived + overhead,
                50.0 + request.arrived,
            )
            for request in self.finished
        ]
        rate = 1 / self.world.arrival_seconds if self.world.arrival_seconds else float("inf")
        return ClientResult(tuple(requests), self.now, self.world.concurrency, rate)

    def run(self) -> Run:
        """The whole run, as `load_run` would give it."""
        profile = load_profile(PROFILE)
        start = dict.fromkeys(self.totals[0][1], 0.0)
        return Run(
            id="simulated",
            interval=(EPOCH, EPOCH + self.now),
            profile=profile,
            workload=load_of(
                {
                    "input_tokens": self.world.input_tokens,
                    "output_tokens": self.world.output_tokens,
                    "requests": self.world.requests,
                    "seed": 1,
                    "concurrency": None if self.world.arrival_seconds else self.world.concurrency,
                    "rate_per_second": 1 / self.world.arrival_seconds if self.world.arrival_seconds else None,
                }
            ),
            **deployed(profile, "tp2", {"max_num_seqs": self.world.max_num_seqs, "enforce_eager": False}),
            ceilings=Ceilings.model_validate(self.ceilings()),
            batches=tuple(self.batches()),
            engine_before={"node0": MetricsText.from_flat(start)},
            engine_after={"node0": MetricsText.from_flat(self.totals[-1][1])},
            client=self.client(),
        )

    def window(self, start: float, end: float) -> Run:
        """A live window of it, from the batches alone."""
        whole = self.run()
        inside = [batch for batch in whole.batches if batch["t1"] > EPOCH + start and batch["t0"] < EPOCH + end]
        assert engine_readings(inside, EPOCH + start, EPOCH + end)
        return replace(whole, batches=tuple(inside)).window(EPOCH + start, EPOCH + end)


def deployed(profile: Profile, name: str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The record of a deployment in a run."""
    record = DeploymentRecord.model_validate(deployment_record(profile, name, overrides))
    names = ("deployment", "workers", "settings", "overrides")
    return {key: getattr(record, key) for key in names}


def measured_anew(run: Run, change: Callable[[dict[str, Any]], object]) -> Run:
    """The run with its ceilings' document changed."""
    document = run.ceilings.to_json()
    change(document)
    return replace(run, ceilings=Ceilings.model_validate(document))


def simulate(**settings: Any) -> Simulation:
    """Simulate a world with some settings changed."""
    return Simulation(World(**settings))
