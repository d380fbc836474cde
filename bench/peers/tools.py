"""One adapter for each program: how it is asked, and what its words stand for."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.answers import Answer, Finding
from bench.peers.cases import PeerCase
from bench.peers.programs import Program, ProgramError, run_ours
from bench.peers.replay import Recording
from bottleneck.json_numbers import number

KV, SLOTS = "kv_cache_capacity", "sequence_limit"
PREFILL, DECODE_READS, DECODE_WORK = "prefill_compute", "decode_memory_bandwidth", "decode_compute"

# Shares of the load. A program that looks for a moment is asked at each: what it sees changes from one to the next.
MOMENTS = (0.2, 0.4, 0.5, 0.6, 0.8)
# A program that looks twice does so this much earlier first.
EARLIER = 0.15


@dataclass(frozen=True)
class Meaning:
    """One of a program's findings in our words: classes, whether it is a symptom only, what it rules out."""

    names: tuple[str, ...] = ()
    symptom: bool = False
    excludes: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Question:
    """One scenario, as a program is asked about it: the recording, the address that serves it, a folder to write in."""

    case: PeerCase
    recording: Recording
    address: str
    folder: Path


Ask = Callable[[Program, Question], Answer]


@dataclass(frozen=True)
class Peer:
    """A program: its package, the ways it is asked, what its findings mean.

    Attributes
    ----------
    ways : dict
        From the name of a way, which tells the command, to what asks.
    meanings : dict
        From a finding, by the program's own id or words, to what it stands for.
    """

    package: str
    version: str
    ways: dict[str, Ask]
    meanings: dict[str, Meaning]


# -- vllm-doctor

_DOCTOR = {
    "kv_cache_pressure": Meaning((KV,), reason="the cache is full"),
    "preemption_pressure": Meaning((KV,), reason="'KV cache exhaustion is forcing sequences to be re-computed'"),
    "queue_pressure": Meaning((SLOTS,), symptom=True, reason="requests queue; 'increase concurrency limits'"),
    "queue_latency": Meaning(
        (SLOTS, KV), symptom=True, reason="requests queue; 'increase concurrency limits', 'KV cache exhaustion'"
    ),
    "ttft_bottleneck": Meaning(
        (PREFILL, SLOTS), symptom=True, reason="'typically indicates prefill or queue pressure'"
    ),
    "tpot_bottleneck": Meaning(
        (DECODE_READS, DECODE_WORK), symptom=True, reason="'GPU decode saturation or memory bandwidth pressure'"
    ),
    "low_throughput": Meaning(("client_limited",), reason="'Low incoming request rate'"),
    "prefix_cache_efficiency": Meaning((PREFILL,), reason="'causing redundant prefill computation'"),
    "replica_imbalance": Meaning(("straggler",), reason="one replica does more than its peers"),
    "error_rate": Meaning(symptom=True, reason="failed requests"),
}


def _doctor(share: float, page: str) -> Ask:
    def ask(program: Program, question: Question) -> Answer:
        address = f"{question.address}/{question.case.name}/{share}{page}"
        report = json.loads(program.run("diagnose", address, "--output", "json"))
        findings = []
        for check in report["checks"]:
            if (found := check["finding"]) is not None:
                meaning = _DOCTOR[check["id"]]
                findings.append(
                    Finding(
                        (found["title"], found["summary"], *found["evidence"]),
                        meaning.names,
                        (found["severity"], found["confidence"]),
                        meaning.symptom,
                        meaning.excludes,
                    )
                )
        return Answer(tuple(findings), verbatim=f"health: {report['health']}")

    return ask


# -- InferPilot

_QUEUE_REASON = "'the bottleneck is compute or something other than KV'"
_PILOT = {
    "kv_capacity_bound_preempting": Meaning((KV,), reason="'The KV cache is full and the scheduler is preempting'"),
    "near_capacity": Meaning((KV,), reason="'KV is full but not preempting yet'"),
    "not_kv_bound": Meaning(symptom=True, excludes=(KV,), reason=_QUEUE_REASON),
}
# These name no limit.
_PILOT_SILENT = ("healthy_or_underutilized", "need_second_snapshot", "insufficient_metrics")


def _pilot(share: float) -> Ask:
    def ask(program: Program, question: Question) -> Answer:
        files = []
        for name, moment in (("before", share - EARLIER), ("after", share)):
            files.append(question.folder / f"{name}.prom")
            files[-1].write_text(question.recording.text_at(moment), encoding="utf-8")
        reading = json.loads(program.run("inspect", *map(str, files), "--json"))
        words = (reading["verdict"], *reading["reasons"], reading["next_step"])
        if reading["verdict"] in _PILOT_SILENT:
            return Answer(verbatim="; ".join(words))
        meaning = _PILOT[reading["verdict"]]
        return Answer((Finding(words, meaning.names, (), meaning.symptom, meaning.excludes),))

    return ask


# -- inference-profiler

# By what the title of each of its rules always holds.
_PROFILER = {
    "in queue vs": Meaning((SLOTS,), symptom=True, reason="'TTFT is dominated by scheduler/queue wait, not compute'"),
    "Batching is under-filled": Meaning(("client_limited",), reason="'open-loop mode with a higher rate'"),
    "TTFT grows roughly linearly": Meaning((PREFILL,), reason="'prefix caching or chunked prefill'"),
    "Heavy latency tail": Meaning(symptom=True, reason="a few requests are slow"),
    "The slowest 10% of requests": Meaning(symptom=True, reason="the slow requests are long"),
    "of requests failed": Meaning(symptom=True, reason="failed requests"),
    "Throughput saturates near": Meaning(symptom=True, reason="needs a sweep over concurrency"),
    "GPU utilization averaged": Meaning((DECODE_WORK, PREFILL), reason="needs samples of the GPU"),
}


def _profiler(program: Program, question: Question) -> Answer:
    document = question.recording.document
    requests, load = document.get("requests"), document.get("load") or {}
    if not requests:
        return Answer(unread="it reads the client's times of each request (metrics.jsonl); the recording has none")
    folder = question.folder / "results"
    folder.mkdir(exist_ok=True)
    config = {"endpoint": question.address, "model": "m", "requests": len(requests), "concurrency": [load["conc"]]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = profiler_rows(requests, load)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    program.run("report", "--results", str(folder))
    findings = []
    for found in json.loads((folder / "findings.json").read_text(encoding="utf-8")):
        meaning = next((meaning for words, meaning in _PROFILER.items() if words in found["title"]), None)
        if meaning is None:
            raise ProgramError(
                f"{program.name} {program.version} says what this adapter does not know: {found['title']}"
            )
        words = (found["title"], found["detail"])
        findings.append(Finding(words, meaning.names, (found["severity"],), meaning.symptom, meaning.excludes))
    return Answer(tuple(findings), verbatim="no finding")


def profiler_rows(requests: list[dict[str, Any]], load: dict[str, Any]) -> list[dict[str, Any]]:
    """Return recorded requests in inference-profiler's form.

    A scenario has no time at which a request was sent. Its clients send the next when one has come back, so that each
    request begins when the first client is free.
    """
    free = [0.0] * int(load["conc"])
    rows = []
    for index, request in enumerate(requests):
        sent = heapq.heappop(free)
        done = sent + request["e2e"]
        heapq.heappush(free, done)
        ttft, tokens = number(request.get("ttft")), int(request.get("output_tokens") or load["O"])
        gap = (request["e2e"] - ttft) / max(1, tokens - 1)
        error = str(request.get("error") or "")
        rows.append(
            {
                "index": index,
                "stage": 0,
                "concurrency": int(load["conc"]),
                "scheduled_at": sent,
                "sent_at": sent,
                "first_token_at": sent + ttft,
                "completed_at": done,
                "inter_token_latencies": [gap] * (tokens - 1),
                "prompt_tokens": int(load["L"]),
                "output_tokens": tokens,
                "success": not error,
                "error": error or None,
                "status_code": None if error else 200,
            }
        )
    return rows


PEERS = {
    "vllm-doctor": Peer(
        "vllm-doctor",
        "0.6.0",
        {
            **{f"`diagnose` /metrics at {share:.0%} of the load": _doctor(share, "/metrics") for share in MOMENTS},
            **{f"`diagnose` Prometheus at {share:.0%} of the load": _doctor(share, "") for share in MOMENTS},
        },
        _DOCTOR,
    ),
    "InferPilot": Peer(
        "inferpilot",
        "0.1.0",
        {
            f"`inspect` /metrics at {share - EARLIER:.0%} and {share:.0%} of the load": _pilot(share)
            for share in MOMENTS
        },
        _PILOT,
    ),
    "inference-profiler": Peer(
        "inference-profiler", "0.1.0", {"`report` over the clients' times": _profiler}, _PROFILER
    ),
}


# -- ours

OURS = "ours"
OUR_WAYS = ("`cluster bottleneck --from`", "`cluster bottleneck --from` with the machine's ceilings")


def ask_ours(case: PeerCase, ceilings: Path | None = None) -> Answer:
    """Ask this repository's own command; its first name alone counts, not its runners-up."""
    added = ["--ceilings", str(ceilings)] if ceilings else []
    verdict = json.loads(run_ours("bottleneck", "--from", str(case.path), *added, "--json"))
    words = (verdict["title"], *(item["statement"] for item in verdict["evidence"]))
    if verdict["class"] == "inconclusive":
        return Answer(verbatim="; ".join(words))
    return Answer((Finding(words, (verdict["class"],)),))
