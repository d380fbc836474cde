"""An engine's metrics under other names, several engines in one text, and plain texts as scenarios."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bottleneck.profile.loading import load_interfaces
from bottleneck.profile.paths import ENGINE_INTERFACES, repository_directory
from bottleneck.runs.metrics_texts import pair_document, why_not
from bottleneck.runs.scenario import ScenarioError
from bottleneck.telemetry.engine_names import DIALECTS, present_name
from bottleneck.telemetry.prometheus_text import MetricsText, delta, histogram_delta
from cli.main import app
from tests.fake_genai import running

SCENARIOS = Path(__file__).parents[1] / "data" / "field-cases" / "scenarios"


def verdict(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["bottleneck", *words, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


# What the field cases' own README asks of each.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cache-full-from-log-lines", "kv_cache_capacity"),
        ("scheduler-stuck", "engine_stalled"),
        ("old-gauge-no-preemption", "kv_cache_capacity"),
        ("new-gauge-no-preemption", "kv_cache_capacity"),
        ("two-engines-roomy", "prefill_compute"),
        ("one-engine-roomy", "prefill_compute"),
    ],
)
def test_scenarios_of_public_threads(name: str, expected: str) -> None:
    assert verdict("--from", str(SCENARIOS / f"{name}.json"))["class"] == expected


def test_old_and_new_names_get_the_same_verdict() -> None:
    old, new = (verdict("--from", str(SCENARIOS / f"{age}-gauge-no-preemption.json")) for age in ("old", "new"))
    assert (old["confidence"], old["ceilings"]) == (new["confidence"], new["ceilings"])


def test_two_engines_have_twice_the_room_for_sequences_and_caches_of_their_own() -> None:
    uses = {use["resource"]: use for use in verdict("--from", str(SCENARIOS / "two-engines-roomy.json"))["ceilings"]}
    assert uses["KV cache"]["peak"] == pytest.approx(0.45)
    assert (uses["sequences"]["peak"], uses["sequences"]["ceiling"]) == (10, 128)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm:kv_cache_usage_perc", "vllm:kv_cache_usage_perc"),
        ("vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
        ("vllm:time_per_output_token_seconds_bucket", "vllm:inter_token_latency_seconds_bucket"),
        ("vllm:request_time_per_output_token_seconds_sum", "vllm:request_time_per_output_token_seconds_sum"),
        ("vllm:gpu_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
        ("ray_vllm_num_requests_running", "vllm:num_requests_running"),
        ("ray_vllm:num_requests_running", "vllm:num_requests_running"),
        ("ray_vllm_generation_tokens_total", "vllm:generation_tokens_total"),
        ("ray_vllm_generation_tokens", "vllm:generation_tokens_total"),
        ("ray_vllm_iteration_tokens_total_count", "vllm:iteration_tokens_total_count"),
        ("ray_vllm_e2e_request_latency_seconds_bucket", "vllm:e2e_request_latency_seconds_bucket"),
        ("ray_vllm_gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
        ("vllm_num_preemptions_total", "vllm:num_preemptions_total"),
        ("vllm:estimated_flops_per_gpu_total", "vllm:estimated_flops_per_gpu_total"),
        ("ray_node_cpu_utilization", "ray_node_cpu_utilization"),
        ("process_cpu_seconds_total", "process_cpu_seconds_total"),
        ("vllm:something_new_total", "vllm:something_new_total"),
    ],
)
def test_what_a_metric_is_called_here(name: str, expected: str) -> None:
    assert present_name(name) == expected


def test_a_family_under_both_names_counts_once() -> None:
    text = MetricsText.parse(
        'vllm:gpu_cache_usage_perc{engine="0"} 0.5\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.4\n'
        'vllm:time_per_output_token_seconds_count{engine="0"} 10\n'
        'vllm:inter_token_latency_seconds_count{engine="0"} 12\n'
        'vllm:inter_token_latency_seconds_sum{engine="0"} 1.2\n'
    )
    assert text.value("vllm:kv_cache_usage_perc") == 0.4
    assert text.value("vllm:inter_token_latency_seconds_count") == 12
    assert (text.repeated, text.unusable) == (2, 0)


def test_of_several_engines_counts_are_summed_and_the_fullest_share_counts() -> None:
    before, after = (
        MetricsText.parse(
            "".join(
                f'vllm:num_requests_running{{engine="{engine}"}} {2 + engine}\n'
                f'vllm:kv_cache_usage_perc{{engine="{engine}"}} {0.3 + 0.1 * engine}\n'
                f'vllm:e2e_request_latency_seconds_count{{engine="{engine}"}} {count}\n'
                f'vllm:e2e_request_latency_seconds_sum{{engine="{engine}"}} {2 * count}\n'
                for engine in range(3)
            )
        )
        for count in (1, 11)
    )
    assert after.engines == 3
    assert after.value("vllm:num_requests_running") == 9
    assert after.value("vllm:kv_cache_usage_perc") == pytest.approx(0.5)
    grown = histogram_delta(before, after, "vllm:e2e_request_latency_seconds")
    assert grown is not None and (grown.count, grown.total) == (30, 60)


def test_metrics_of_ray_get_the_same_verdict(tmp_path: Path) -> None:
    """Ray's exporter writes `_` for `:` behind a prefix of its own, and labels of its own."""
    text = (SCENARIOS / "new-gauge-no-preemption.json").read_text()
    file = tmp_path / "ray.json"
    file.write_text(
        text.replace("vllm:", "ray_vllm_").replace('model_name=\\"m\\"', 'model_name=\\"m\\",WorkerId=\\"1\\"')
    )
    assert verdict("--from", str(file))["class"] == "kv_cache_capacity"


def texts(folder: Path) -> tuple[Path, Path]:
    document = json.loads((SCENARIOS / "one-engine-roomy.json").read_text())
    before, after = folder / "before.prom", folder / "after.prom"
    before.write_text(document["metrics_before"])
    after.write_text(document["metrics_after"])
    return before, after


def test_a_pair_of_texts_is_judged(tmp_path: Path) -> None:
    before, after = texts(tmp_path)
    found = verdict("--from", str(before), "--from", str(after), "--seconds", "60")
    document = {"metrics_before": before.read_text(), "metrics_after": after.read_text(), "seconds": 60}
    (tmp_path / "same.json").write_text(json.dumps(document))
    same = verdict("--from", str(tmp_path / "same.json"))
    assert (found["class"], found["confidence"]) == (same["class"], same["confidence"])
    assert found["verdict"]["ledger"] == same["verdict"]["ledger"] and found["verdict"]["ledger"]["total"] > 0
    assert found["scenario"] == "before.prom to after.prom"
    assert any("metrics_during: no reading" in note for note in found["notes"])


def test_the_time_between_two_texts_is_from_when_they_were_written(tmp_path: Path) -> None:
    before, after = texts(tmp_path)
    os.utime(before, (1000, 1000))
    os.utime(after, (1060, 1060))
    assert pair_document(before, after, None)["seconds"] == 60
    with pytest.raises(ScenarioError, match="expected --seconds"):
        pair_document(after, before, None)


def test_one_text_alone_is_asked_for_its_pair(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bottleneck", "--from", str(texts(tmp_path)[1])])
    assert result.exit_code == 2
    assert "expected two, from before and after a load" in result.output
    assert "cluster bottleneck --from BEFORE --from AFTER --seconds" in result.output


def test_texts_that_are_none_are_refused(tmp_path: Path) -> None:
    before, after = texts(tmp_path)
    after.write_text("# nothing\n")
    with pytest.raises(ScenarioError, match=r"after\.prom: 1 lines and not one metric"):
        pair_document(before, after, 1.0)
    after.write_text("tgi_request_count 1\n")
    with pytest.raises(ScenarioError, match=r"metrics of Text Generation Inference, which are not read"):
        pair_document(before, after, 1.0)
    with pytest.raises(ScenarioError, match="cannot be read"):
        pair_document(before, tmp_path / "none", 1.0)
    assert "such as go_goroutines" in why_not("go_goroutines 3\n")


LLAMACPP = """# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total {prompt}
llamacpp:prompt_seconds_total {prefill}
llamacpp:tokens_predicted_total {generated}
llamacpp:tokens_predicted_seconds_total {decode}
llamacpp:n_decode_total {steps}
llamacpp:n_busy_slots_per_decode 1.5
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
"""


def test_the_dialect_of_llamacpp_is_read_as_the_present_names() -> None:
    first = LLAMACPP.format(prompt=100, prefill=0.5, generated=10, decode=0.2, steps=11)
    before = MetricsText.parse(first)
    after = MetricsText.parse(LLAMACPP.format(prompt=612, prefill=2.5, generated=42, decode=0.84, steps=47))
    grown = {
        "vllm:prompt_tokens_total": 512,
        "vllm:request_prefill_time_seconds_sum": 2.0,
        "vllm:generation_tokens_total": 32,
        "vllm:request_decode_time_seconds_sum": 0.64,
        "vllm:iteration_tokens_total_count": 36,
    }
    for name, expected in grown.items():
        found = delta(before, after, name)
        assert found is not None and found.value == pytest.approx(expected), name
    assert (after.value("vllm:num_requests_running"), after.value("vllm:num_requests_waiting")) == (2, 1)
    # What it lacks is missing, not zero.
    assert after.value("vllm:kv_cache_usage_perc") is None
    assert delta(before, after, "vllm:request_success_total") is None
    assert why_not(first) == ""


def test_the_dialect_of_genai_is_read_as_the_present_names() -> None:
    """Texts of the very server, over a pipeline that is a fake."""
    with running(max_num_seqs=4) as server:
        before = MetricsText.parse(server.ask("GET", "/metrics")[1])
        assert server.complete(prompt=[[7, 8], [9, 9]], max_tokens=5, ignore_eos=True)[0] == 200
        text = server.ask("GET", "/metrics")[1]
    after = MetricsText.parse(text)
    grown = {
        "vllm:prompt_tokens_total": 4,
        "vllm:generation_tokens_total": 10,
        "vllm:request_success_total": 2,
        "vllm:e2e_request_latency_seconds_count": 2,
        "vllm:request_generation_tokens_sum": 10,
    }
    for name, expected in grown.items():
        found = delta(before, after, name)
        assert found is not None and found.value == expected, name
    steps = delta(before, after, "vllm:iteration_tokens_total_count")
    # One more where the second prompt came while the first was computed.
    assert steps is not None and 5 <= steps.value <= 10
    gaps = histogram_delta(before, after, "vllm:inter_token_latency_seconds")
    assert gaps is not None and gaps.count == 8 and gaps.quantile(0.5) is not None
    assert (after.value("vllm:num_requests_running"), after.value("vllm:num_requests_waiting")) == (0, 0)
    assert after.info("vllm:cache_config_info", "block_size") == "32"
    # Preemptions it does not know: missing, not zero.
    assert delta(before, after, "vllm:num_preemptions_total") is None
    assert delta(before, after, "process_cpu_seconds_total") is not None
    assert why_not(text) == ""


def test_every_engine_speaks_a_dialect_that_is_known() -> None:
    interfaces = load_interfaces(repository_directory() / "profiles" / ENGINE_INTERFACES)
    assert {interface.metrics.dialect for interface in interfaces.values()} <= set(DIALECTS)
