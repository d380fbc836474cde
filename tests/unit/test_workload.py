"""Workloads: points, command lines, and what the load generator says."""

import json
from pathlib import Path
from typing import Any

import pytest

from bottleneck.load import results, workload
from bottleneck.load.client import client_result
from bottleneck.load.workload import Load, WorkloadError
from bottleneck.profile.types import Workload

RESULT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "bench" / "result.json").read_text())
PROFILE = Workload()
SEND = {"base_url": "http://10.77.0.10:8000", "model": "m", "tokenizer": "/models/m", "result_directory": "/runs/x"}


def option(arguments: list[str], name: str) -> str:
    assert arguments.count(name) == 1, f"{name} in {arguments}"
    return arguments[arguments.index(name) + 1]


def test_without_wishes_it_is_the_profiles_workload() -> None:
    (point,) = workload.points(PROFILE)
    assert point == Load(input_tokens=256, output_tokens=32, requests=16, seed=1, concurrency=4)


def test_a_sweep_has_a_point_for_each_load_and_enough_requests_for_it() -> None:
    found = workload.points(PROFILE, concurrency=[1, 4, 20], input_tokens=64)
    assert [(point.concurrency, point.requests) for point in found] == [(1, 16), (4, 16), (20, 40)]
    assert {point.input_tokens for point in found} == {64}
    assert len({point.seed for point in found}) == 3, "a prompt is not sent twice"
    asked = workload.points(PROFILE, concurrency=[1, 20], requests=5, seed=7)
    assert [(point.requests, point.seed) for point in asked] == [(5, 7), (5, 1007)]


def test_an_open_loop_has_no_concurrency() -> None:
    found = workload.points(PROFILE, rate_per_second=[0.5, 2])
    assert [(point.rate_per_second, point.concurrency) for point in found] == [(0.5, None), (2.0, None)]
    assert found[0].label == "0.5 requests/s"
    assert "concurrency" not in found[0].to_json()


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"concurrency": [1], "rate_per_second": [1.0]}, "expected one of them"),
        ({"concurrency": [0]}, "concurrency 0; expected a whole number above zero"),
        ({"concurrency": [1.5]}, "concurrency 1.5; expected a whole number"),
        ({"concurrency": [True]}, "concurrency True"),
        ({"rate_per_second": [0.0]}, "rate 0.0; expected requests per second above zero"),
        ({"rate_per_second": [float("inf")]}, "rate inf"),
        ({"requests": -1}, "requests -1"),
        ({"seed": -2}, "seed -2; expected 0 or more"),
        ({"input_tokens": 2000, "output_tokens": 100}, "expected at most 2048 together"),
    ],
)
def test_what_cannot_be_sent_is_refused(wishes: dict[str, Any], says: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        workload.points(PROFILE, context_length=2048, **wishes)
    assert says in str(caught.value)


def test_arguments_of_a_closed_loop() -> None:
    (point,) = workload.points(PROFILE)
    arguments = workload.client_arguments(point, result_name="1.json", **SEND)
    assert arguments[:2] == ["bench", "serve"]
    expected = {
        "--backend": "openai",
        "--base-url": "http://10.77.0.10:8000",
        "--model": "m",
        "--tokenizer": "/models/m",
        "--dataset-name": "random",
        "--random-input-len": "256",
        "--random-output-len": "32",
        "--num-prompts": "16",
        "--max-concurrency": "4",
        "--seed": "1",
        "--temperature": "0",
        "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--result-dir": "/runs/x",
        "--result-filename": "1.json",
    }
    assert {name: option(arguments, name) for name in expected} == expected
    assert {"--ignore-eos", "--save-result", "--save-detailed"} <= set(arguments)
    assert "--request-rate" not in arguments
    assert len(arguments) == 2 + 2 * len(expected) + 3, "nothing else"


def test_arguments_of_an_open_loop() -> None:
    (point,) = workload.points(PROFILE, rate_per_second=[0.25])
    arguments = workload.client_arguments(point, result_name="1.json", **SEND)
    assert option(arguments, "--request-rate") == "0.25"
    assert "--max-concurrency" not in arguments


def test_a_point_is_divided_among_heads_without_loss() -> None:
    (point,) = workload.points(PROFILE, concurrency=[5], requests=17)
    parts = [part for part in workload.shares(point, 2) if part]
    assert [(part.concurrency, part.requests) for part in parts] == [(3, 9), (2, 8)]
    assert len({part.seed for part in parts}) == 2
    (open_loop,) = workload.points(PROFILE, rate_per_second=[3.0])
    halves = [part for part in workload.shares(open_loop, 2) if part]
    assert [(part.rate_per_second, part.requests) for part in halves] == [(1.5, 8), (1.5, 8)]


def test_a_head_without_work_gets_none_and_nothing_is_lost() -> None:
    (point,) = workload.points(PROFILE, concurrency=[1])
    assert workload.shares(point, 2) == [point, None]
    (few,) = workload.points(PROFILE, concurrency=[8], requests=1)
    assert [part.requests if part else None for part in workload.shares(few, 3)] == [1, None, None]


def test_one_head_gets_the_whole_point() -> None:
    (point,) = workload.points(PROFILE)
    assert workload.shares(point, 1) == [point]


def test_warm_up_has_the_lengths_of_the_point() -> None:
    (point,) = workload.points(PROFILE)
    body = workload.warm_up_request(point, "m", 8192)
    assert len(body["prompt"]) == 256 and body["max_tokens"] == 32 and body["ignore_eos"] is True
    assert all(2048 <= token < 4096 for token in body["prompt"])
    assert json.loads(json.dumps(body)) == body


def test_progress_is_the_last_bar_printed() -> None:
    text = (
        "Traffic request rate: inf\n\r  0%|   | 0/16 [00:00<?, ?it/s]\r  6%|▋  | 1/16 [00:02<00:41,  2.7s/it]\r 25%|██"
    )
    assert workload.progress(text) == (1, 16)
    assert workload.progress("INFO 11-23 21:25:35 [__init__.py:1/2] starting") is None


def test_headline_is_what_the_generator_says_in_base_units() -> None:
    numbers = results.headline(RESULT)
    assert numbers["completed"] == 16 and numbers["failed"] == 0
    assert numbers["output_tokens_per_second"] == pytest.approx(RESULT["output_throughput"])
    assert numbers["requests_per_second"] == pytest.approx(RESULT["request_throughput"])
    for ours, theirs in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        for statistic in ("mean", "median", "p99"):
            seconds = numbers[f"{ours}_seconds"][statistic]
            assert seconds * 1e3 == pytest.approx(RESULT[f"{statistic}_{theirs}_ms"]), (ours, statistic)


def test_interval_spans_all_requests() -> None:
    found = results.interval(RESULT)
    assert found is not None
    assert found[0] == min(RESULT["start_times"])
    assert found[1] - found[0] == pytest.approx(RESULT["duration"], rel=1e-3)
    assert results.interval({"duration": 3.0}) is None


def half(document: dict[str, Any], first: bool) -> dict[str, Any]:
    """Return what a generator that sent every second request would have saved."""
    part = dict(document)
    for key, value in document.items():
        if isinstance(value, list):
            part[key] = value[0 if first else 1 :: 2]
    part["completed"] = part["num_prompts"] = len(part["input_lens"])
    part["total_output_tokens"] = sum(part["output_lens"])
    part["total_input_tokens"] = sum(part["input_lens"])
    part["max_concurrency"] = document["max_concurrency"] // 2
    return part


def test_two_halves_merge_to_the_whole() -> None:
    merged = results.merge_results([half(RESULT, True), half(RESULT, False)])
    assert merged["max_concurrency"] == 4 and merged["num_prompts"] == 16 and merged["merged_from"] == 2
    assert merged["output_throughput"] == pytest.approx(RESULT["output_throughput"], rel=1e-3)
    for name in [name for name in RESULT if name.endswith("_ms")]:
        assert merged[name] == pytest.approx(RESULT[name]), name
    assert sorted(merged["ttfts"]) == sorted(RESULT["ttfts"])
    assert "max_output_tokens_per_s" not in merged, "peaks at different moments do not add up"
    assert len(client_result(merged).good) == 16
    assert json.loads(json.dumps(merged)) == merged


def test_one_result_is_left_as_it_is() -> None:
    assert results.merge_results([RESULT]) == RESULT


def test_failures_are_counted_and_the_first_is_named() -> None:
    failed = {**RESULT, "failed": 2, "completed": 14}
    failed["errors"] = [
        "",
        "Traceback (most recent call last):\n  ...\nConnectionError: refused\n",
        "other",
        *[""] * 13,
    ]
    numbers = results.headline(failed)
    assert numbers["failed"] == 2 and numbers["completed"] == 14
    assert results.first_error(failed) == "ConnectionError: refused"
    assert results.first_error(RESULT) is None


def test_when_everything_failed_there_are_no_times() -> None:
    nothing = {**RESULT, "failed": 16, "completed": 0, "errors": ["refused"] * 16, "output_lens": [0] * 16}
    numbers = results.headline(nothing)
    assert numbers["completed"] == 0 and numbers["failed"] == 16
    assert numbers["ttft_seconds"] is None and numbers["output_tokens_per_second"] == 0.0
    merged = results.merge_results([nothing, nothing])
    assert merged["failed"] == 32 and merged["output_throughput"] >= 0
