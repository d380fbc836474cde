"""The sampler's share of the engine's metrics: all that the analysis reads, and no more."""

import json
import re
import sys
from pathlib import Path

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
