"""Makes run folders for tests: two nodes, tensor parallel, a slow direct link; or the same run degraded.

The numbers are like those measured on the embedded profile over a link shaped to 20 Mbit/s: prefill of 4x256 tokens
6.4 s, a decode step about 55 ms.
"""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.plan.nodes import deployment_record
from bottleneck.profile import load_profile
from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import SCHEMA
from bottleneck.telemetry.batches import write_batches
from tests.run_verdict import STARTED, verdict
from tests.vllm_metrics import exposition, series

PROFILE = Path(__file__).parent.parent / "profiles" / "embedded.yaml"
NODES = ("node0", "node1")


@dataclass(frozen=True)
class Shape:
    """The course of the run: lengths in seconds, rates in bytes per second."""

    prefill: float = 6.4
    step: float = 0.055
    link_ceiling: float = 2.5e6
    bursts: int = 4
    concurrency: int = 4
    output_tokens: int = 32
    input_tokens: int = 256

    @property
    def burst(self) -> float:
        return self.prefill + self.step * (self.output_tokens - 1) + 0.15

    @property
    def seconds(self) -> float:
        return self.burst * self.bursts

    def phase(self, moment: float) -> str:
        inside = moment % self.burst
        if not 0 <= moment < self.seconds or inside > self.burst - 0.15:
            return "idle"
        return "prefill" if inside < self.prefill else "decode"


# Share of a core, bytes per second on the direct link, KV cache in use: by phase.
_BUSY = {
    "node0": {"prefill": 0.97, "decode": 0.99, "idle": 0.12},
    "node1": {"prefill": 0.24, "decode": 0.58, "idle": 0.02},
}
_LINK = {"prefill": 0.985, "decode": 0.36, "idle": 0.0005}


def estimate(median: float, spread: float = 0.02, samples: int = 5) -> dict[str, float]:
    return {"median": median, "low": median * (1 - spread), "high": median * (1 + spread), "samples": samples}


def ceilings(shape: Shape) -> dict[str, Any]:
    machine = {"cpu_model": "Intel(R) Xeon(R) Processor", "cores": 1, "memory_bytes": 5 * 2**30, "kernel": "6.1.0"}
    node = {
        "machine": machine,
        "memory_read_bytes_per_second": estimate(11.2e9),
        "gemm_bf16_flops_per_second": estimate(95e9),
        "gemm_f32_flops_per_second": estimate(61e9),
        "disk_read_bytes_per_second": estimate(410e6, 0.2),
        "process_launch_seconds": estimate(0.0021),
        "kernel_dispatch_seconds": estimate(4.1e-6),
    }
    way = {"bandwidth_bytes_per_second": estimate(shape.link_ceiling), "latency_seconds": estimate(58e-6, 0.1)}
    slow = {"bandwidth_bytes_per_second": estimate(118e6), "latency_seconds": estimate(71e-6, 0.1)}
    return {
        "schema": 1,
        "measured": STARTED - 600,
        "profile": "embedded",
        "nodes": {"node0": node, "node1": node},
        "links": {
            "direct": {"node0->node1": way, "node1->node0": way},
            "ethernet": {"node0->node1": slow, "node1->node0": slow},
        },
        "allreduce": {
            "deployment": "tp2",
            "backend": "gloo",
            "link": "direct",
            "ranks": 2,
            "sizes": {"2048": estimate(0.00031), "131072": estimate(0.106), "1048576": estimate(0.84)},
        },
    }


def batches(shape: Shape, model: str, rng: random.Random) -> list[dict[str, Any]]:
    """One batch a second and node, ten samples each, from two seconds before to two after."""
    found = []
    for node in NODES:
        busy = stolen = pressure = 0.0
        sent = received = packets = ethernet = 0.0
        for sequence in range(1, int(shape.seconds) + 5):
            samples = []
            for index in range(10):
                moment = sequence - 3 + index / 10
                phase = shape.phase(moment)
                share = min(1.0, max(0.0, _BUSY[node][phase] + rng.gauss(0, 0.015)))
                busy += 0.1 * share
                pressure += 0.1 * (0.07 if node == "node0" and phase == "decode" else 0.012)
                rate = shape.link_ceiling * _LINK[phase] * (1 + rng.gauss(0, 0.01))
                sent, received = sent + rate * 0.1, received + rate * 0.0998
                packets, ethernet = packets + rate * 0.1 / 8800, ethernet + 900
                elapsed = sequence - 3 + 10 + index / 10
                sample: dict[str, Any] = {
                    "t": round(STARTED + moment, 3),
                    "cpu": {
                        "0": [
                            round(busy, 2),
                            round(busy * 0.6, 2),
                            round(busy * 0.4, 2),
                            round(elapsed - busy, 2),
                            0,
                            stolen,
                        ]
                    },
                    "psi": {"cpu": [round(pressure, 6), 0.0], "memory": [0.0, 0.0], "io": [0.002, 0.002]},
                    "links": {
                        "direct": [int(received), int(sent), int(packets), int(packets), 0, 0, 0, 0, 9000],
                        "ethernet": [
                            int(ethernet),
                            int(ethernet * 1.4),
                            int(ethernet / 300),
                            int(ethernet / 300),
                            0,
                            0,
                            0,
                            0,
                        ],
                    },
                    "cgroup": {
                        "throttled_s": 0.0,
                        "periods": sequence * 10,
                        "throttled_periods": 0,
                        "quota_cores": None,
                    },
                    "workers": {
                        "tp2-0": {
                            "cpu_user_s": round(busy * 0.6, 2),
                            "cpu_system_s": round(busy * 0.4, 2),
                            "run_delay_s": round(pressure * 0.8, 4),
                        }
                    },
                }
                if index == 0:
                    sample["mem"] = {"total": 5 * 2**30, "available": int(3.1 * 2**30)}
                    sample["disk"] = {"read_bytes": 10**8, "write_bytes": 10**6}
                    sample["workers"]["tp2-0"] |= {"rss_bytes": 1_400_000_000, "processes": 4}
                samples.append(sample)
            moment = sequence - 3.0
            found.append(
                {
                    "node": node,
                    "boot": f"b-{node}",
                    "sequence": sequence,
                    "t0": samples[0]["t"],
                    "t1": samples[-1]["t"],
                    "samples": samples,
                    "engine": {"t": STARTED + moment, "metrics": engine_metrics(shape, model, moment)}
                    if node == "node0" and sequence % 2
                    else None,
                    "sampler": {"cpu_s": round(sequence * 0.012, 3), "dropped": 0},
                }
            )
    return found


def engine_metrics(shape: Shape, model: str, moment: float) -> dict[str, float]:
    """The engine's counters `moment` seconds into the run, as the exposition text names them."""
    phase = shape.phase(moment)
    served = min(max(moment, 0.0), shape.seconds)
    burst, inside = divmod(served, shape.burst)
    decoded = max(0.0, min(shape.output_tokens - 1, (inside - shape.prefill) / shape.step))
    first = burst * shape.concurrency + (shape.concurrency if inside > shape.prefill else 0)
    done = burst * shape.concurrency
    tokens = shape.concurrency * (burst * shape.output_tokens + (decoded + 1 if inside > shape.prefill else 0))
    found = {
        "num_requests_running": 0.0 if phase == "idle" else float(shape.concurrency),
        "num_requests_waiting": 0.0,
        "kv_cache_usage_perc": 0.0 if phase == "idle" else 0.055 + 0.002 * decoded / 31,
        "num_preemptions_total": 0.0,
        "prompt_tokens_total": first * shape.input_tokens,
        "generation_tokens_total": float(int(tokens)),
        "iteration_tokens_total_count": burst * shape.output_tokens + decoded + 1,
        "iteration_tokens_total_sum": first * shape.input_tokens + tokens,
        "time_to_first_token_seconds_sum": first * shape.prefill,
        "time_to_first_token_seconds_count": first,
        "inter_token_latency_seconds_sum": (tokens - first) * shape.step,
        "inter_token_latency_seconds_count": float(int(tokens - first)),
        "e2e_request_latency_seconds_sum": done * (shape.burst - 0.15),
        "e2e_request_latency_seconds_count": done,
        "request_queue_time_seconds_sum": done * 0.004,
        "request_queue_time_seconds_count": done,
        "request_prefill_time_seconds_sum": done * shape.prefill,
        "request_prefill_time_seconds_count": done,
        "request_decode_time_seconds_sum": done * shape.step * (shape.output_tokens - 1),
        "request_decode_time_seconds_count": done,
    }
    return series(found, model)


def client(shape: Shape, model: str, rng: random.Random) -> dict[str, Any]:
    """The file that the load generator saves with --save-detailed."""
    ttfts, itls, starts = [], [], []
    for burst in range(shape.bursts):
        for _ in range(shape.concurrency):
            ttfts.append(shape.prefill * (1 + rng.gauss(0, 0.03)))
            itls.append([max(0.02, shape.step * (1 + rng.gauss(0, 0.12))) for _ in range(shape.output_tokens - 1)])
            starts.append(1000 + burst * shape.burst)
    count = len(ttfts)
    return {
        "date": "20261123-213000",
        "backend": "openai",
        "model_id": model,
        "num_prompts": count,
        "request_rate": "inf",
        "max_concurrency": shape.concurrency,
        "duration": shape.seconds,
        "completed": count,
        "failed": 0,
        "total_input_tokens": count * shape.input_tokens,
        "total_output_tokens": count * shape.output_tokens,
        "request_throughput": count / shape.seconds,
        "output_throughput": count * shape.output_tokens / shape.seconds,
        "input_lens": [shape.input_tokens] * count,
        "output_lens": [shape.output_tokens] * count,
        "ttfts": ttfts,
        "itls": itls,
        "start_times": starts,
        "errors": [""] * count,
    }


def build_run(
    root: Path,
    *,
    identity: str = "20261123T213000Z-tp2-a1b2",
    model: str = "mistral-tiny-w4a16",
    note: str = "direct link shaped to 20 Mbit/s",
    shape: Shape | None = None,
    degraded: bool = False,
    with_verdict: bool = True,
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder under `root` and return it.

    `degraded`: cut short (status partial), batches missing, no ceilings, no engine text, no versions, no verdict.
    """
    shape = shape or Shape()
    rng = random.Random(7)
    folder = root / identity
    folder.mkdir(parents=True)
    recorded = batches(shape, model, rng)
    if degraded:
        recorded = [item for item in recorded if item["node"] == "node0" and not 12 <= item["sequence"] < 17]
        for batch in recorded:
            batch["engine"] = None
    documents: dict[str, Any] = {
        "run.json": {
            "schema": SCHEMA,
            "id": identity,
            "started": STARTED,
            "ended": STARTED + shape.seconds,
            "profile": {"name": "embedded", "version": "1.0"},
            "deployment": "tp2",
            "note": note,
            "workload": {
                "input_tokens": shape.input_tokens,
                "output_tokens": shape.output_tokens,
                "concurrency": shape.concurrency,
                "requests": shape.concurrency * shape.bursts,
                "temperature": 0.0,
                "seed": 1,
            },
            "status": "partial" if degraded else "complete",
        }
    }
    if not degraded:
        documents["ceilings.json"] = ceilings(shape)
        documents["versions.json"] = {"cluster": "0.1.0", "salt": "3008.3", "vllm": "0.32.0+cpu", "kernel": "6.1.0"}
        documents["plan.json"] = {"schema": SCHEMA, **deployment_record(load_profile(PROFILE), "tp2", overrides)}
        documents["client.json"] = client(shape, model, rng)
        if with_verdict:
            documents["verdict.json"] = verdict(shape)
        (folder / "engine_before.node0.prom").write_text(exposition(engine_metrics(shape, model, 0)))
        (folder / "engine_after.node0.prom").write_text(exposition(engine_metrics(shape, model, shape.seconds)))
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1))
    (folder / "profile.yaml").write_text(PROFILE.read_text())
    with gzip.open(folder / "samples.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(batch) + "\n" for batch in recorded)
    return folder


def save_run(run: Run, folder: Path) -> Path:
    """Write what the analysis reads of a run that was put together in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "schema": SCHEMA,
        "id": run.id,
        "started": run.interval[0],
        "ended": run.interval[1],
        "deployment": run.deployment,
        "overrides": run.overrides,
        "note": run.note,
        "workload": run.workload.to_json() if run.workload else {},
        "status": run.status,
        **({"kind": "start"} if run.start else {}),
    }
    plan = {
        "schema": SCHEMA,
        "deployment": run.deployment,
        "overrides": run.overrides,
        "settings": run.settings.model_dump(mode="json"),
        "workers": [worker.model_dump(mode="json") for worker in run.workers],
    }
    ceilings = run.ceilings.to_json()
    documents = {"run.json": head, "plan.json": plan, "ceilings.json": ceilings, "verdict.json": run.verdict}
    for name, document in documents.items():
        if document is not None:
            (folder / name).write_text(json.dumps(document), encoding="utf-8")
    write_batches(folder / "samples.jsonl.gz", run.batches)
    for stem, readings in (("engine_before", run.engine_before), ("engine_after", run.engine_after)):
        for name, reading in readings.items():
            text = "".join(f"{point.key()} {point.value!r}\n" for point in reading.points)
            (folder / f"{stem}.{name}.prom").write_text(text, encoding="utf-8")
    return folder
