"""Results of the load generator: merge those of several, sum one up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bottleneck.load.client import ClientRequest, client_result, count

_STATISTICS = (
    ("mean", np.mean),
    ("median", np.median),
    ("std", np.std),
    ("p99", lambda values: np.percentile(values, 99)),
)
_PER_REQUEST = ("input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "errors")
_SUMS = ("num_prompts", "completed", "failed", "reconnected", "total_input_tokens", "total_output_tokens")


def merge_results(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results of generators that ran at the same time on one machine as one result.

    Counts add up; the time is that from the first request of any to the last answer of any, by the clock they share;
    times are those of all requests together.

    Parameters
    ----------
    documents : Sequence[Mapping[str, Any]]
        At least one result file's content, as `vllm bench serve` writes it.

    Returns
    -------
    dict[str, Any]
        In the same form.
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
        recorded = [document.get(key) for document in documents]
        values = [value for value in recorded if isinstance(value, int | float)]
        merged[key] = sum(values) if len(values) == len(recorded) else recorded[0]
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

    Parameters
    ----------
    document : Mapping[str, Any]
        Content of a result file.

    Returns
    -------
    tuple[float, float] or None
        Two times in seconds.
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

    Parameters
    ----------
    document : Mapping[str, Any]
        Content of a result file.

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
        # Sent a second time, for the server had closed their idle connection (`load.reconnecting`).
        "reconnected": count(document.get("reconnected")) or 0,
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
    """Return the last line of the first request's error, or None when none failed.

    Parameters
    ----------
    document : Mapping[str, Any]
        Content of a result file.

    Returns
    -------
    str or None
        300 characters of it at most.
    """
    for error in document.get("errors") or []:
        lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
        if lines:
            return lines[-1][:300]
    return None
