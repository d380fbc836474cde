"""The server's settings in force: of a deployment, of a scenario's arguments, by the engine's own account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bottleneck.plan.nodes import deployment_record, server_settings
from bottleneck.plan.server_arguments import format_of_config, read_arguments
from bottleneck.plan.workers import WEIGHT_FORMATS, DeploymentRecord, ServerSettings
from bottleneck.profile import find_profile, load_profile
from bottleneck.runs.run import as_the_engine_says
from bottleneck.runs.scenario import load_scenario, scenario_run
from bottleneck.runs.topology import find_topology
from bottleneck.telemetry.prometheus_text import MetricsText

DATA = Path(__file__).parents[1] / "data"
PROFILE = load_profile(find_profile("embedded"))


# -- a deployment


def test_what_was_changed_is_what_is_in_force() -> None:
    changed = {"max_num_seqs": 1, "max_num_batched_tokens": 64, "kv_cache_memory": "64 MiB", "link": "ethernet"}
    record = DeploymentRecord.model_validate(deployment_record(PROFILE, "tp2", changed))
    found = record.settings
    assert (found.max_num_seqs, found.max_num_batched_tokens, found.kv_cache_memory_bytes) == (1, 64, 64 * 2**20)
    assert (found.tensor_parallel, found.nodes, found.replicas, found.ranks) == (2, 2, 1, 2)
    assert (found.max_model_len, found.quantization, found.prefix_caching) == (2048, "w4a16", False)
    assert record.overrides == changed and {worker.link for worker in record.workers} == {"ethernet"}


@pytest.mark.parametrize(
    ("deployment", "changed", "graphs"),
    [
        ("tp2", {}, False),
        ("tp2", {"enforce_eager": False}, None),
        ("pp2", {}, None),
        ("pp2", {"enforce_eager": True}, False),
        ("pp2", {"extra_arguments": ["--enforce-eager"]}, False),
        ("pp2", {"extra_arguments": ["-O0"]}, False),
    ],
)
def test_whether_graphs_are_captured_is_known_when_they_are_not(
    deployment: str, changed: dict[str, Any], graphs: bool | None
) -> None:
    assert server_settings(PROFILE, deployment, changed).captured_graphs is graphs


def test_further_arguments_of_a_profile_count_last_as_they_do_for_the_engine() -> None:
    further = {"max_num_seqs": 4, "extra_arguments": ["--max-num-seqs=2", "--kv-cache-dtype", "fp8", "--seed", "7"]}
    found = server_settings(PROFILE, "single", further)
    assert (found.max_num_seqs, found.kv_cache_dtype) == (2, "fp8")


def test_a_record_is_frozen_and_of_its_types() -> None:
    record = DeploymentRecord.model_validate(deployment_record(PROFILE, "replicas"))
    assert [worker.name for worker in record.heads] == ["replicas-0", "replicas-1"]
    with pytest.raises(ValidationError, match="frozen"):
        record.settings.max_num_seqs = 3  # type: ignore[misc]
    for broken in ({"max_num_seqs": 0}, {"max_num_seqs": "3"}, {"captured_graphs": 1}, {"quantization": "fp3"}):
        with pytest.raises(ValidationError):
            ServerSettings.model_validate(broken)


# -- arguments


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--max-num-seqs 4", {"max_num_seqs": 4}),
        ("--max_num_seqs=4", {"max_num_seqs": 4}),
        ("--max-num-seqs 8 --max-num-seqs 4", {"max_num_seqs": 4}),
        ("--max-num-batched-tokens 8k --max-model-len 16K", {"max_num_batched_tokens": 8000, "max_model_len": 16384}),
        ("--max-model-len auto", {"max_model_len": None}),
        ("-tp 2 -pp 4 -n 2", {"tensor_parallel": 2, "pipeline_parallel": 4, "nodes": 2}),
        ("--tensor-parallel-size 8 --data-parallel-size 2", {"tensor_parallel": 8, "replicas": 2}),
        ("--gpu-memory-utilization .9 --block-size 32", {"gpu_memory_utilization": 0.9, "kv_block_tokens": 32}),
        ("--no-enable-prefix-caching --enforce-eager", {"prefix_caching": False, "captured_graphs": False}),
        ("--enforce-eager --no-enforce-eager", {"captured_graphs": True}),
        ("-O0", {"captured_graphs": False}),
        ("-O 0", {"captured_graphs": False}),
        ("-O3", {}),
        ("--optimization-level=0", {"captured_graphs": False}),
        ("-cc.cudagraph_mode=NONE", {"captured_graphs": False}),
        ("--compilation-config.cudagraph_mode none", {"captured_graphs": False}),
        ('--compilation-config {"cudagraph_mode":"NONE"}', {"captured_graphs": False}),
        ('-O{"cudagraph_mode":"NONE"}', {"captured_graphs": False}),
        ('-cc {"cudagraph_mode":"FULL_DECODE_ONLY","mode":3}', {"captured_graphs": True}),
        ("-q awq_marlin --dtype half", {"quantization": "awq", "dtype": "half"}),
        ("--quantization compressed-tensors", {"quantization": None}),
        ("--kv-cache-dtype fp8_e4m3 --seed 4 --port 8000 --model m", {"kv_cache_dtype": "fp8_e4m3"}),
        ("--max-num-seqs", {}),
    ],
)
def test_arguments_are_read_as_the_engine_reads_them(words: str, expected: dict[str, Any]) -> None:
    whole = ServerSettings(captured_graphs=True)
    assert read_arguments(words.split(" "), whole).settings == whole.model_copy(update=expected)


def test_arguments_that_are_none_are_named() -> None:
    found = read_arguments(["--max-num-seqs", "many", 3, "--block-size", "-1", "--nnodes", "0", "-cc", "{"])
    assert found.settings == ServerSettings()
    assert len(found.problems) == 5 and "--max-num-seqs 'many'" in found.problems[1] and "3: a int" in found.problems[0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 8}, None),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
            "w4a16",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {"num_bits": 8}}
                },
            },
            "w8a8",
        ),
        ({"quant_method": "compressed-tensors"}, None),
        ("fp8", None),
    ],
)
def test_a_models_own_configuration_tells_how_its_weights_are_stored(config: Any, expected: str | None) -> None:
    assert format_of_config(config) == expected


def test_every_format_has_a_width_and_eight_bits_multiply_faster() -> None:
    found = {name: ServerSettings(quantization=name).weights for name in WEIGHT_FORMATS}
    assert {name: weights.bits for name, weights in found.items() if weights} == {
        **dict.fromkeys(("bf16", "fp16"), 16),
        **dict.fromkeys(("fp8", "w8a8", "w8a16"), 8),
        **dict.fromkeys(("w4a16", "awq", "gptq", "mxfp4", "nvfp4", "bitsandbytes"), 4),
    }
    assert [name for name, weights in found.items() if weights and weights.arithmetic_gain > 1] == ["fp8", "w8a8"]
    assert ServerSettings().weights is None


# -- a scenario


def scenario(**keys: Any) -> Any:
    return scenario_run({"metrics_after": "vllm:num_requests_running 1\n", "seconds": 1.0, **keys})


def test_of_a_scenario_the_field_counts_before_the_configuration_before_the_arguments() -> None:
    config, words = {"quant_method": "fp8"}, ["--quantization", "awq"]
    every = {"quantization": "w8a8", "quantization_config": config, "server_args": words}
    assert scenario(**every).settings.quantization == "w8a8"
    assert scenario(**{**every, "quantization": None}).settings.quantization == "fp8"
    assert scenario(server_args=words).settings.quantization == "awq"
    assert scenario(engine="w4a16", model="x-fp8", weights="int4").settings.quantization is None
    wrong = scenario(quantization="4bit")
    assert wrong.settings.quantization is None and any(
        "'4bit'; expected one of bf16" in each for each in wrong.problems
    )


@pytest.mark.parametrize(
    ("words", "graphs"), [([], True), (None, None), ("--enforce-eager", None), (["--enforce-eager"], False)]
)
def test_graphs_are_taken_for_granted_only_where_all_arguments_are_known(words: Any, graphs: bool | None) -> None:
    run = scenario(server_args=words)
    assert run.settings.captured_graphs is graphs
    assert any("server_args: a str; expected a list" in each for each in run.problems) == isinstance(words, str)


def test_ranks_on_another_host_talk_over_a_link_that_nobody_watched() -> None:
    run = load_scenario(DATA / "h200_pair" / "tp_veth_eight.json.xz")
    topology = find_topology(run)
    assert (run.settings.nodes, run.settings.ranks, topology.link, topology.world) == (2, 2, None, 1)
    assert topology.unwatched_link and topology.tensor_parallel == 2
    assert (run.workers[0].world, run.workers[0].rank, run.workers[0].head) == (2, 0, True)
    one = find_topology(scenario(server_args=["--tensor-parallel-size", "2"]))
    assert one.tensor_parallel == 2 and not one.unwatched_link
    apart = scenario(server_args=["-n", "2", "-r", "1", "-pp", "2"])
    assert (apart.workers[0].rank, find_topology(apart).unwatched_link) == (1, True)


def test_the_accelerator_of_other_ceilings_is_named_by_fields_alone() -> None:
    path, known = DATA / "h200" / "scenario_decode_bw.json.xz", DATA / "h200" / "ceilings.json"
    assert load_scenario(path, known).foreign_ceilings == ""
    from bottleneck.runs.scenario import add_ceilings, read_document

    document, found = read_document(path), {**read_document(known), "name": "NVIDIA T4"}
    reported = add_ceilings(scenario_run(document), found).foreign_ceilings
    assert reported == "the ceilings are of NVIDIA T4, the scenario's accelerator is NVIDIA H200"
    assert add_ceilings(scenario_run({**document, "accelerator": None, "hardware": "T5"}), found).foreign_ceilings == ""
    assert add_ceilings(scenario_run({**document, "accelerator": "nvidia  t4"}), found).foreign_ceilings == ""


def test_the_engines_own_account_of_its_cache_is_what_is_in_force() -> None:
    labels = (
        'block_size="32",num_gpu_blocks="100",cache_dtype="fp8",enable_prefix_caching="True",'
        'gpu_memory_utilization="0.5",kv_cache_memory_bytes="None",num_gpu_blocks_override="x"'
    )
    reading = MetricsText.parse(f"vllm:cache_config_info{{{labels}}} 1.0\n")
    written = ServerSettings(kv_block_tokens=16, kv_cache_memory_bytes=7, prefix_caching=False, max_num_seqs=3)
    found = as_the_engine_says(written, reading)
    assert (found.kv_block_tokens, found.kv_cache_blocks, found.kv_cache_dtype) == (32, 100, "fp8")
    assert (found.prefix_caching, found.gpu_memory_utilization, found.num_gpu_blocks_override) == (True, 0.5, None)
    assert (found.kv_cache_memory_bytes, found.max_num_seqs) == (7, 3)
    assert as_the_engine_says(written, MetricsText()) == written
