"""A simulator of one vLLM server on an accelerator: it writes scenario files whose bottleneck is known.

Continuous batching with chunked prefill, a block-less KV cache with preemption by recomputation, one API server. A
step takes its kernels (roofline over efficiencies of the kernels' own) or its launches, whichever is longer, plus what
the host does between steps. Nothing here knows the rules; what is shared with them is physics alone.

The truth of a scenario is asked of the simulator itself: it is run again with one thing of `MENDED` mended at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.vllm_metrics import exposition, inter_token_buckets, series, series_name

MODEL = "simulated"


@dataclass(frozen=True)
class Server:
    """A model on an accelerator under a load; defaults are the 22 B model in 4 bit on an H200."""

    parameters: float = 22e9
    weight_bytes: float = 0.5
    layers: int = 56
    cache_bytes_per_token: float = 229e3
    flops_per_second: float = 8.1e14
    bytes_per_second: float = 4.2e12
    prefill_efficiency: float = 0.68
    decode_efficiency: float = 0.4
    eager: bool = False
    launch_seconds: float = 2.0e-4  # a layer, without graphs
    host_step_seconds: float = 8e-4
    host_sequence_seconds: float = 1e-5
    max_num_seqs: int = 1024
    cache_tokens: int = 490_000
    batched_tokens: int = 8192
    api_server_token_seconds: float = 1.5e-5
    api_server_request_seconds: float = 5e-4
    client_seconds: float = 0.001
    think_seconds: float = 0.0
    concurrency: int | None = 8
    rate: float | None = None
    prompt: int = 256
    output: int = 128
    requests: int = 48
    seed: int = 1


class _Request:
    def __init__(self, sent: float, prompt: int, output: int) -> None:
        self.sent, self.prompt, self.output = sent, prompt, output
        self.arrived = sent
        self.scheduled: float | None = None
        self.computed = 0
        self.to_compute = prompt
        self.made = 0
        self.evicted = False
        self.first = self.last = 0.0
        self.seen_first = self.seen_last = 0.0


class Simulation:
    """One server serving its whole load."""

    def __init__(self, server: Server) -> None:
        self.server, self.random = server, np.random.default_rng(server.seed)
        self.now = self.idle = self.api_server = self.api_server_cpu = self.flops = self.read = 0.0
        self.sent = self.steps = self.step_tokens = self.preemptions = 0
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []
        self.done: list[_Request] = []
        self.coming: list[_Request] = []
        self.gaps: list[float] = []
        self.rows: list[tuple[float, int, int, float, int]] = []
        self.prompts = 0
        if server.rate is not None:
            moment = 0.0
            for _ in range(server.requests):
                self._send(moment)
                moment += float(self.random.exponential(1 / server.rate))
        else:
            for index in range(min(server.concurrency or 1, server.requests)):
                self._send(index * 1e-4)
        while len(self.done) < server.requests:
            self._advance()
        self.seconds = max(request.seen_last for request in self.done)
        self._record(self.seconds)

    def _send(self, moment: float) -> None:
        def near(size: int) -> int:
            return max(1, int(size * self.random.uniform(0.9, 1.1)))

        request = _Request(moment, near(self.server.prompt), near(self.server.output))
        self.api_server = max(self.api_server, moment) + self.server.api_server_request_seconds
        self.api_server_cpu += self.server.api_server_request_seconds
        request.arrived = self.api_server
        self.coming.append(request)
        self.sent += 1

    def _record(self, until: float) -> None:
        while len(self.rows) * 0.5 + 0.5 <= until:
            usage = sum(request.computed for request in self.running) / self.server.cache_tokens
            self.rows.append(
                (len(self.rows) * 0.5 + 0.5, len(self.running), len(self.waiting), min(usage, 1.0), self.preemptions)
            )

    def _advance(self) -> None:
        self.coming.sort(key=lambda request: request.arrived)
        while self.coming and self.coming[0].arrived <= self.now:
            self.waiting.append(self.coming.pop(0))
        if not self.running and not self.waiting:
            self._record(self.coming[0].arrived)
            self.idle += self.coming[0].arrived - self.now
            self.now = self.coming[0].arrived
            return
        self._step(*self._schedule())

    def _used(self) -> int:
        return sum(request.computed for request in self.running)

    def _schedule(self) -> tuple[list[_Request], list[tuple[_Request, int]]]:
        server, budget = self.server, self.server.batched_tokens
        decodes: list[_Request] = []
        used = self._used()
        for request in list(self.running):
            if request.evicted or request.computed < request.to_compute:
                continue
            while used + len(decodes) + 1 > server.cache_tokens and len(self.running) > 1:
                victim = self.running.pop()
                if decodes and decodes[-1] is victim:
                    decodes.pop()
                used -= victim.computed
                victim.to_compute, victim.computed, victim.evicted = victim.prompt + victim.made, 0, True
                self.waiting.appendleft(victim)
                self.preemptions += 1
                if victim is request:
                    break
            if not request.evicted:
                decodes.append(request)
                budget -= 1
        chunks = []
        for request in self.running:
            if request.computed < request.to_compute and budget > 0:
                size = min(budget, request.to_compute - request.computed)
                chunks.append((request, size))
                budget -= size
        taken = used + len(decodes) + sum(size for _, size in chunks)
        while self.waiting and len(self.running) < server.max_num_seqs and budget > 0:
            request = self.waiting[0]
            if taken + request.to_compute + 1 > server.cache_tokens:
                break
            self.waiting.popleft()
            request.evicted = False
            request.scheduled = request.scheduled if request.scheduled is not None else self.now
            self.running.append(request)
            size = min(budget, request.to_compute)
            chunks.append((request, size))
            taken += request.to_compute
            budget -= size
        return decodes, chunks

    def _step(self, decodes: list[_Request], chunks: list[tuple[_Request, int]]) -> None:
        server = self.server
        prompts = sum(size for _, size in chunks)
        tokens = prompts + len(decodes)
        width = (server.parameters / server.layers / 12) ** 0.5
        attention = sum(4 * server.layers * width * size * (request.computed + size / 2) for request, size in chunks)
        flops = 2 * server.parameters * tokens + attention
        flops += sum(4 * server.layers * width * request.computed for request in decodes)
        cache = sum(request.computed for request in decodes) * server.cache_bytes_per_token
        weights = server.parameters * server.weight_bytes
        arithmetic = flops / server.flops_per_second / server.prefill_efficiency
        kernels = max(weights / server.bytes_per_second / server.decode_efficiency, arithmetic)
        kernels += cache / server.bytes_per_second / max(server.decode_efficiency, 0.6)
        launches = server.layers * server.launch_seconds if server.eager else 0.0
        host = server.host_step_seconds + server.host_sequence_seconds * (len(decodes) + len(chunks))
        seconds = (max(kernels, launches) + host) * float(self.random.normal(1.0, 0.02))
        self.flops, self.read = self.flops + flops, self.read + weights + cache
        self.steps, self.step_tokens, self.prompts = self.steps + 1, self.step_tokens + tokens, self.prompts + prompts
        self._record(self.now + seconds)
        self.now += seconds
        for request, size in chunks:
            request.computed += size
        finished_prompts = [request for request, _ in chunks if request.computed >= request.to_compute]
        for request in decodes:
            request.computed += 1
            self._token(request)
        for request in finished_prompts:
            self._token(request)

    def _token(self, request: _Request) -> None:
        if request.made:
            self.gaps.append(self.now - request.last)
        else:
            request.first = self.now
        request.last, request.made = self.now, request.made + 1
        request.to_compute = min(request.to_compute, request.computed)
        self.api_server = max(self.api_server, self.now) + self.server.api_server_token_seconds
        self.api_server_cpu += self.server.api_server_token_seconds
        if request.made == 1:
            request.seen_first = self.api_server + self.server.client_seconds
        if request.made >= request.output:
            request.seen_last = self.api_server + self.server.client_seconds
            self.running.remove(request)
            self.done.append(request)
            if self.server.rate is None and self.sent < self.server.requests:
                self._send(request.seen_last + self.server.think_seconds)

    def _metrics(self, end: bool) -> str:
        done = self.done if end else []
        scale = 1.0 if end else 0.0
        server = self.server
        numbers = {
            "estimated_flops_per_gpu_total": self.flops * scale,
            "estimated_read_bytes_per_gpu_total": self.read * scale,
            "num_preemptions_total": self.preemptions * scale,
            "prompt_tokens_total": float(sum(request.prompt for request in done)),
            "generation_tokens_total": float(sum(request.made for request in done)),
            "request_generation_tokens_sum": float(sum(request.made for request in done)),
            "iteration_tokens_total_count": self.steps * scale,
            "iteration_tokens_total_sum": self.step_tokens * scale,
            "num_requests_running": 0.0,
            "num_requests_waiting": 0.0,
            "kv_cache_usage_perc": 0.0,
        }
        sums = {
            "time_to_first_token_seconds": [
                request.seen_first - server.client_seconds - request.sent for request in done
            ],
            "e2e_request_latency_seconds": [
                request.seen_last - server.client_seconds - request.sent for request in done
            ],
            "request_queue_time_seconds": [(request.scheduled or 0.0) - request.arrived for request in done],
            "request_prefill_time_seconds": [request.first - (request.scheduled or 0.0) for request in done],
            "request_decode_time_seconds": [request.last - request.first for request in done],
            "request_inference_time_seconds": [request.last - (request.scheduled or 0.0) for request in done],
            "inter_token_latency_seconds": self.gaps if end else [],
        }
        for name, values in sums.items():
            numbers[f"{name}_sum"], numbers[f"{name}_count"] = float(np.sum(values)), float(len(values))
        found = series(numbers, MODEL) | inter_token_buckets(self.gaps if end else [], MODEL)
        return exposition(found | {"process_cpu_seconds_total": 20 + self.api_server_cpu * scale})

    def document(self) -> dict[str, Any]:
        """The scenario file."""
        server = self.server
        arguments = ["--enforce-eager"] if server.eager else []
        if server.max_num_seqs != 1024:
            arguments += ["--max-num-seqs", str(server.max_num_seqs)]
        rows = [
            [
                moment,
                f"{series_name('num_requests_running', MODEL)} {running}",
                f"{series_name('num_requests_waiting', MODEL)} {waiting}",
                f"{series_name('num_requests_waiting_by_reason', MODEL, reason='capacity')} {waiting}",
                f"{series_name('kv_cache_usage_perc', MODEL)} {usage}",
                f"{series_name('num_preemptions_total', MODEL)} {preemptions}",
            ]
            for moment, running, waiting, usage, preemptions in self.rows
        ]
        requests = [
            {
                "ttft": request.seen_first - request.sent,
                "e2e": request.seen_last - request.sent,
                "itl": (request.seen_last - request.seen_first) / max(request.made - 1, 1),
            }
            for request in self.done
        ]
        load: dict[str, Any] = {"L": server.prompt, "O": server.output, "n": server.requests}
        load |= {"rate": server.rate} if server.rate is not None else {"conc": server.concurrency}
        return {
            "scenario": "simulated",
            "engine": "vllm 0.24.0 on 1x NVIDIA H200",
            "accelerator": "NVIDIA H200",
            "server_args": arguments,
            "load": load,
            "seconds": self.seconds,
            "requests": requests,
            "metrics_before": self._metrics(False),
            "metrics_during": rows,
            "metrics_after": self._metrics(True),
        }

    @property
    def latency(self) -> float:
        """Mean seconds of a request per output token."""
        return sum(request.seen_last - request.sent for request in self.done) / sum(each.made for each in self.done)


def ceilings(server: Server) -> dict[str, Any]:
    """The short form of an accelerator's ceilings."""
    return {
        "name": "NVIDIA H200",
        "read_Bps": server.bytes_per_second,
        "gemm_bf16_8192_flops": server.flops_per_second,
        "launch_s": 7.5e-6,
    }


def _faster_decode(server: Server) -> dict[str, Any]:
    # The same prompts at the same speed: only what decoding reads is halved.
    return {"bytes_per_second": 2 * server.bytes_per_second}


# What mends a cause: the settings of a server that does not have it.
MENDED: dict[str, Callable[[Server], dict[str, Any]]] = {
    "prefill_compute": lambda server: {"flops_per_second": 2 * server.flops_per_second},
    "decode": _faster_decode,
    "host_overhead": lambda server: {"host_step_seconds": 1e-6, "host_sequence_seconds": 0.0, "eager": False},
    "sequence_limit": lambda server: {"max_num_seqs": 4096},
    "kv_cache_capacity": lambda server: {"cache_tokens": 10**9},
    "api_server": lambda server: {"api_server_token_seconds": 1e-9, "api_server_request_seconds": 1e-9},
}
