"""A workload: what the load generator is told at each point of a sweep, and what it says afterwards.

The generator is `vllm bench serve`, at home in the engine's environment. Pure functions: commands are made here, and
run elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bottleneck.load.client import ClientRequest, client_result
from bottleneck.profile.types import Workload

# A point sends at least this many rounds of its concurrency: the first round is all prefill.
ROUNDS = 2
# Keeps the prompts of points and replicas apart, whatever the seed.
_SEED_STRIDE = 1000
_PROGRESS = re.compile(r"(\d+)/(\d+) \[")
_STATISTICS = (
    ("mean", np.mean),
    ("median", np.median),
    ("std", np.std),
    ("p99", lambda values: np.percentile(values, 99)),
)
_PER_REQUEST = ("input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "errors")
_SUMS = ("num_prompts", "completed", "failed", "total_input_tokens", "total_output_tokens")


class WorkloadError(ValueError):
    """What was asked for cannot be sent; the text says what was seen and what is expected."""


@dataclass(frozen=True)
class Point:
    """One load of a sweep.

    Attributes
    ----------
    index
        From 1.
    concurrency
        Requests kept under way (closed loop); None when they come at a rate.
    rate_per_second
        Arrivals per second, Poisson (open loop); None when they are kept under way.
    """

    index: int
    input_tokens: int
    output_tokens: int
    requests: int
    seed: int
    temperature: float = 0.0
    concurrency: int | None = None
    rate_per_second: float | None = None

    @property
    def label(self) -> str:
        """The load in a few words."""
        if self.rate_per_second is not None:
            return f"{self.rate_per_second:g} requests/s"
        return f"concurrency {self.concurrency}"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, without what does not apply."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def points(
    workload: Workload,
    *,
    concurrency: Sequence[int] | None = None,
    rate_per_second: Sequence[float] | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    requests: int | None = None,
    seed: int | None = None,
    context_length: int | None = None,
) -> list[Point]:
    """Return the points of a sweep: the profile's workload where nothing else is asked for.

    Parameters
    ----------
    concurrency, rate_per_second
        One point each; not both.
    requests
        Requests of every point; left out, the profile's number, but at least two rounds of the concurrency.
    context_length
        Most tokens of one sequence that the server takes, when it is known.

    Raises
    ------
    WorkloadError
        When that cannot be sent.
    """
    if concurrency and rate_per_second:
        raise WorkloadError("a concurrency and a rate; expected one of them: the loop is closed or it is open")
    base = Point(
        index=1,
        input_tokens=_positive("input tokens", input_tokens, workload.input_tokens),
        output_tokens=_positive("output tokens", output_tokens, workload.output_tokens),
        requests=_positive("requests", requests, workload.requests),
        seed=workload.seed if seed is None else seed,
        temperature=workload.temperature,
    )
    if base.seed < 0:
        raise WorkloadError(f"seed {base.seed}; expected 0 or more")
    if context_length is not None and base.input_tokens + base.output_tokens > context_length:
        raise WorkloadError(
            f"{base.input_tokens} input and {base.output_tokens} output tokens; "
            f"expected at most {context_length} together, the server's longest sequence"
        )
    if rate_per_second:
        loads = [replace(base, rate_per_second=_rate(rate)) for rate in rate_per_second]
    else:
        counts = [_positive("concurrency", count, 1) for count in concurrency or [workload.concurrency]]
        loads = [
            replace(base, concurrency=count, requests=requests or max(workload.requests, ROUNDS * count))
            for count in counts
        ]
    return [
        replace(load, index=index, seed=base.seed + _SEED_STRIDE * (index - 1)) for index, load in enumerate(loads, 1)
    ]


def _positive(name: str, asked: int | None, default: int) -> int:
    value = default if asked is None else asked
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WorkloadError(f"{name} {value!r}; expected a whole number above zero")
    return value


def _rate(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise WorkloadError(f"rate {value!r}; expected requests per second above zero")
    return float(value)


def shares(point: Point, heads: int) -> list[Point | None]:
    """Divide a point among the heads of a deployment, each of which has a generator of its own.

    A head is left without work (None) when there are fewer requests under way than heads.
    """
    working = min(heads, point.requests, point.concurrency or heads)
    found: list[Point | None] = [
        replace(
            point,
            seed=point.seed + index,
            requests=_part(point.requests, working, index),
            concurrency=None if point.concurrency is None else _part(point.concurrency, working, index),
            rate_per_second=None if point.rate_per_second is None else point.rate_per_second / working,
        )
        for index in range(working)
    ]
    return found + [None] * (heads - working)


def _part(whole: int, parts: int, index: int) -> int:
    return whole // parts + (index < whole % parts)


def client_arguments(
    point: Point, *, base_url: str, model: str, tokenizer: str, result_directory: str, result_name: str
) -> list[str]:
    """Return the arguments, after the `vllm` executable, that send a point to one head.

    Parameters
    ----------
    base_url
        Of the head, such as ``http://10.77.0.10:8000``.
    model
        The name the server answers to.
    tokenizer
        The model's directory.
    """
    if point.rate_per_second is not None:
        load = ["--request-rate", f"{point.rate_per_second:g}"]
    else:
        load = ["--max-concurrency", str(point.concurrency)]
    return [
        *("bench", "serve", "--backend", "openai", "--base-url", base_url),
        *("--model", model, "--tokenizer", tokenizer),
        *("--dataset-name", "random"),
        *("--random-input-len", str(point.input_tokens), "--random-output-len", str(point.output_tokens)),
        *("--num-prompts", str(point.requests), *load, "--seed", str(point.seed)),
        *("--ignore-eos", "--temperature", f"{point.temperature:g}"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el"),
        *("--save-result", "--save-detailed"),
        *("--result-dir", result_directory, "--result-filename", result_name),
    ]


def warm_up_request(point: Point, model: str, vocabulary_size: int) -> dict[str, Any]:
    """Return the body of a completion request of a point's lengths, whose tokens are random."""
    # Well inside the vocabulary, clear of its special tokens.
    tokens = np.random.default_rng(point.seed).integers(vocabulary_size // 4, vocabulary_size // 2, point.input_tokens)
    return {
        "model": model,
        "prompt": tokens.tolist(),
        "max_tokens": point.output_tokens,
        "temperature": point.temperature,
        "ignore_eos": True,
    }


def progress(text: str) -> tuple[int, int] | None:
    """Return (done, total) of the last progress bar in what a generator has printed."""
    found = _PROGRESS.findall(text)
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def merge_results(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results of generators that ran at the same time on one machine as one result.

    Counts add up; the time is that from the first request of any to the last answer of any, by the clock they share;
    times are those of all requests together.
    """
    if len(documents) == 1:
        return dict(documents[0])
    merged = {key: value for key, value in documents[0].items() if not isinstance(value, list)}
    for key in _PER_REQUEST:
        columns = [document.get(key) for document in documents]
        if all(isinstance(column, list) for column in columns):
            merged[key] = [value for column in columns if column for value in column]
    for key in _SUMS:
        merged[key] = sum(int(document.get(key) or 0) for document in documents)
    for key in ("max_concurrency", "request_rate"):
        told = [document.get(key) for document in documents]
        values = [value for value in told if isinstance(value, int | float)]
        merged[key] = sum(values) if len(values) == len(told) else told[0]
    start, end = interval(merged) or (0.0, max(float(document.get("duration") or 0) for document in documents))
    merged["duration"] = end - start
    merged["merged_from"] = len(documents)
    seconds = merged["duration"] or math.nan
    merged["request_throughput"] = merged["completed"] / seconds
    merged["output_throughput"] = merged["total_output_tokens"] / seconds
    merged["total_token_throughput"] = (merged["total_input_tokens"] + merged["total_output_tokens"]) / seconds
    for name in [key for key in merged if key.startswith(("max_output_tokens", "max_concurrent_requests"))]:
        # Peaks at different moments do not add up.
        del merged[name]
    for name, seen in _latencies(client_result(merged).good).items():
        for statistic, function in _STATISTICS if seen else ():
            merged[f"{statistic}_{name}_ms"] = float(function(seen)) * 1e3
    return merged


def interval(document: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return when the first request was sent and the last answer ended, on the generator's clock.

    The clock is that of `time.perf_counter`, which all processes of a Linux machine share. None when a result has no
    times of its requests.
    """
    requests = client_result(dict(document)).requests
    starts = [request.start_seconds for request in requests if request.start_seconds is not None]
    ends = [
        request.start_seconds + request.latency_seconds
        for request in requests
        if request.start_seconds is not None and math.isfinite(request.latency_seconds)
    ]
    return (min(starts), max(ends)) if starts and ends else None


def headline(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers a person wants first, in base units, from the requests themselves.

    Returns
    -------
    dict
        Throughputs per second; `ttft`, `tpot`, `itl` and `e2e` in seconds, each with mean, median and p99, or None
        when no request succeeded.
    """
    result = client_result(dict(document))
    seconds = result.duration_seconds
    tokens = sum(request.output_tokens for request in result.good)
    usable = math.isfinite(seconds) and seconds > 0
    numbers: dict[str, Any] = {
        "completed": len(result.good),
        "failed": result.failed,
        "duration_seconds": seconds if usable else None,
        "output_tokens_per_second": tokens / seconds if usable else None,
        "requests_per_second": len(result.good) / seconds if usable else None,
    }
    for name, values in _latencies(result.good).items():
        numbers[f"{name.replace('e2el', 'e2e')}_seconds"] = (
            {statistic: float(function(values)) for statistic, function in _STATISTICS if statistic != "std"}
            if values
            else None
        )
    return numbers


def _latencies(requests: Sequence[ClientRequest]) -> dict[str, list[float]]:
    per_token = [request.tpot_seconds for request in requests]
    return {
        "ttft": [request.ttft_seconds for request in requests],
        "tpot": [value for value in per_token if math.isfinite(value)],
        "itl": [gap for request in requests for gap in request.itl_seconds],
        "e2el": [request.latency_seconds for request in requests],
    }


def first_error(document: Mapping[str, Any]) -> str | None:
    """Return the last line of the first request's error, or None when none failed."""
    for error in document.get("errors") or []:
        lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
        if lines:
            return lines[-1][:300]
    return None
