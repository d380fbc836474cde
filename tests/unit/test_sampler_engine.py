"""The sampler's share of the engine's metrics: all that the analysis reads, and no more."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bottleneck.runs.scenario import read_document

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import engine_metrics

REPOSITORY = Path(__file__).parents[2]


def test_only_the_families_of_the_analysis_are_kept() -> None:
    recorded = read_document(Path(__file__).parents[1] / "data/h200/scenario_kv_preempt.json.xz")["metrics_after"]
    other = 'python_info{version="3.12.3"} 1.0\nhttp_requests_total{method="GET"} 3.0\nvllm:engine_sleep_state 0.0\n'
    comment = "# TYPE vllm:num_requests_running gauge\n"
    found = engine_metrics.keep(comment + other + recorded)
    names = {key.partition("{")[0] for key in found}
    assert {"vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:num_preemptions_total"} <= names
    assert {f"vllm:inter_token_latency_seconds_{end}" for end in ("bucket", "sum", "count")} <= names
    assert not names & {"python_info", "http_requests_total", "vllm:engine_sleep_state"}
    assert found['vllm:num_preemptions_total{engine="0",model_name="mistral-small-2409-w4a16"}'] > 0
    assert len(found) < 250


def test_everything_the_analysis_reads_is_kept() -> None:
    source = "".join(path.read_text() for path in (REPOSITORY / "bottleneck").rglob("*.py"))
    asked = set(re.findall(r'"(vllm:[a-z_0-9]+)"', source))
    ends = ("_sum", "_count", "_bucket", "_total")
    families = {name.removesuffix(end) for name in engine_metrics._NAMES for end in ends}
    assert len(asked) > 10
    assert asked - engine_metrics._NAMES - families == set()


def test_only_a_head_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "worker.json"
    assert engine_metrics.head_metrics(str(path)) is None
    path.write_text('{"name": "tp2-0", "head": false, "api_address": null, "api_port": null}')
    assert engine_metrics.head_metrics(str(path)) is None
    path.write_text('{"name": "tp2-0", "head": true, "api_address": "10.77.0.10", "api_port": 8000}')
    assert engine_metrics.head_metrics(str(path)) == ("10.77.0.10", 8000, "/metrics")
    worker = {"name": "a-0", "head": True, "api_address": "10.77.0.10", "api_port": 8000}
    path.write_text(json.dumps({**worker, "watch": {"metrics": {"dialect": "vllm", "path": "/v1/metrics"}}}))
    assert engine_metrics.head_metrics(str(path)) == ("10.77.0.10", 8000, "/v1/metrics")
    path.write_text(json.dumps({**worker, "watch": {"metrics": {"dialect": "none", "path": "/metrics"}}}))
    assert engine_metrics.head_metrics(str(path)) is None, "an engine without metrics is not asked"


def test_another_dialect_is_kept_in_its_own_names() -> None:
    text = "# TYPE llamacpp:n_decode_total counter\nllamacpp:n_decode_total 7\nllamacpp:n_tokens_max 3\n"
    assert engine_metrics.keep(text) == {"llamacpp:n_decode_total": 7.0}


class Head:
    """An engine whose metrics are text, and a clock."""

    def __init__(self, tmp_path: Path) -> None:
        self.now = 0.0
        self.text: str | None = ""
        path = tmp_path / "worker.json"
        path.write_text(json.dumps({"head": True, "api_address": "127.0.0.1", "api_port": 1}))
        self.reader = engine_metrics.EngineReader(str(path), 3.0, lambda: 1e9 + self.now, lambda: self.now)
        self.reader._ask = self.ask  # type: ignore[method-assign]

    def ask(self, address: tuple[str, int, str]) -> str | None:
        return self.text

    def read(self, requests: int, steps: int) -> dict[str, Any] | None:
        self.now += 1.0
        self.text = f'vllm:num_requests_running{{engine="0"}} {requests}\nvllm:iteration_tokens_total_count {steps}\n'
        self.reader.read()
        return self.reader.take()


def test_an_engine_that_makes_nothing_of_its_requests_is_told_within_two_looks(tmp_path: Path) -> None:
    head = Head(tmp_path)
    found = [head.read(2, 7), head.read(2, 8), head.read(2, 8), head.read(2, 8), head.read(2, 8)]
    # The readings of the interval stay as they were: the first, and the one three seconds later.
    assert [each and each.get("still_s") for each in found] == [None, None, None, 2.0, 3.0]
    assert found[0] is not None and found[1] is found[2] is None
    assert head.reader.is_stalled.is_set()


@pytest.mark.parametrize(("requests", "grows"), [(0, 0), (2, 1)], ids=["idle", "works"])
def test_an_engine_that_is_idle_or_works_is_no_news(tmp_path: Path, requests: int, grows: int) -> None:
    head = Head(tmp_path)
    found = [head.read(requests, grows * number) for number in range(10)]
    assert not any(each and "still_s" in each for each in found)
    assert not head.reader.is_stalled.is_set()
    assert len([each for each in found if each]) == 4, "as often as before"
