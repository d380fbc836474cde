"""A model's own config.json: what is counted of it against published figures and transformers' own count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bottleneck.performance.config_form import ConfigError
from bottleneck.performance.formats import BF16, FORMATS, GGUF_TYPES, mixture
from bottleneck.performance.memory import sequence_cache
from bottleneck.performance.model import (
    Split,
    attention_kinds,
    flops_per_token,
    kv_bytes_per_token,
    parameters,
    read_bytes,
    resident_bytes,
)
from bottleneck.performance.model_config import ModelConfig, read_model_config
from bottleneck.performance.model_families import FAMILIES, WRAPPERS
from bottleneck.performance.server_limits import Limits

DATA = Path(__file__).resolve().parents[1] / "data"
CONFIGS = DATA / "model_configs"
CONFIG_NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))
KINDS: dict[str, Any] = json.loads((DATA / "model_kinds.json").read_text(encoding="utf-8"))
GIB = 2**30


def document(name: str) -> dict[str, Any]:
    found = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def read(name: str, quantization: str | None = None, **changes: Any) -> ModelConfig:
    return read_model_config({**document(name), **changes}, quantization, f"{name}.json")


@pytest.mark.parametrize(
    ("name", "counted", "tolerance"),
    [
        ("deepseek-coder-v2-lite-awq", 15_706_484_224, 1e-6),
        ("deepseek-v3", 671_026_404_352, 1e-6),
        ("glm-4.5-air", 106_852_245_504, 1e-6),
        ("llama-3.1-8b", 8_030_261_248, 0),
        ("mixtral-8x7b", 46_702_792_704, 0),
        ("qwen2.5-0.5b", 494_032_768, 0),
        ("qwen3-30b-a3b", 30_532_122_624, 0),
        ("qwen3-next-80b-a3b", 79_674_391_296, 1e-5),
        ("deepseek-v3.2", 671_877_929_216, 1e-6),
        ("glm-4.7-flash", 29_943_390_976, 0),
        ("granite-4.0-h-small", 32_207_337_984, 0),
        ("nemotron-nano-9b-v2", 8_888_227_328, 0),
        ("llama-4-scout", 108_641_793_536, 1e-5),
        # The tower by itself, and the language model: a wrapper of it alone was counted.
        ("gemma-4-26b-a4b", 25_233_141_760 + 572_792_112, 1e-5),
        ("qwen2-vl-7b", 8_291_375_616, 1e-4),
        # Experts' biases are left out, and of towers the biases.
        ("gpt-oss-120b", 116_829_156_672, 4e-4),
        ("gemma-3-27b", 27_432_406_640, 1e-4),
        ("qwen2.5-vl-7b", 8_292_166_656, 1e-4),
        ("qwen3.6-35b-a3b", 35_107_181_936, 1e-4),
    ],
)
def test_parameters_are_those_that_transformers_counts(name: str, counted: int, tolerance: float) -> None:
    assert parameters(read(name).shape).total == pytest.approx(counted, rel=tolerance, abs=0)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_of_model_is_counted_as_transformers_counts_it(name: str) -> None:
    """Of a small configuration of each kind, made by transformers' own classes; counted as those above."""
    counted, config = KINDS[name]["parameters"], KINDS[name]["config"]
    # Some biases and norms of heads are left out, which weigh more in a small model.
    assert parameters(read_model_config(config).shape).total == pytest.approx(counted, rel=3e-3)


def test_every_kind_that_is_understood_is_counted() -> None:
    named = {each["config"]["model_type"] for each in KINDS.values()}
    named |= {found.get("text_config", found)["model_type"] for found in map(document, CONFIG_NAMES)}
    # Of these transformers has no class that can be counted: their code comes with the checkpoint, or not alone.
    foreign = {"baichuan", "internlm2", "internlm3", "mimo", "kimi_k2", "dots1"}
    assert set(FAMILIES) - named - set(WRAPPERS.values()) == foreign - named


@pytest.mark.parametrize(
    ("name", "ranks", "gib", "source"),
    [
        ("qwen3-30b-a3b", 4, 14.25, "vllm issue 17469"),
        ("gpt-oss-120b", 1, 65.9651, "vllm issue 23278: Marlin kernels on an H100"),
        ("gpt-oss-120b", 1, 64.38, "vllm issue 33155: Triton kernels, which pad less"),
        ("deepseek-coder-v2-lite-awq", 1, 10.45, "vllm issue 13109"),
        ("llama-3.1-8b", 1, 14.99, "vllm issue 10517"),
    ],
)
def test_weights_are_within_three_percent_of_what_was_published(name: str, ranks: int, gib: float, source: str) -> None:
    model = read(name)
    assert resident_bytes(model.shape, model.weights, Split(ranks)) / GIB == pytest.approx(gib, rel=0.03), source


def bytes_of_sequence(model: ModelConfig, tokens: int, value_bytes: int = 2) -> int:
    return sequence_cache(model.shape, Limits(tokens, 256, 8192), Split(), 0, 16, value_bytes).total_bytes


@pytest.mark.parametrize(
    ("name", "tokens", "value_bytes", "per_token", "source"),
    [
        ("deepseek-coder-v2-lite-awq", 131072, 2, 34560, "vllm issue 13109"),
        ("llama-3.1-8b", 131072, 2, 131072, "vllm issue 10517"),
        ("qwen3-coder-30b", 262144, 2, 24.0 * GIB / 262144, "vllm issue 34076: 24.0 GiB"),
        # 5.98 GiB held 567,978 tokens, in sequences of 131,072.
        ("qwen3.6-35b-a3b", 131072, 1, 11305, "club-3090 issue 612"),
    ],
)
def test_a_token_of_the_cache_is_within_three_percent_of_what_was_published(
    name: str, tokens: int, value_bytes: int, per_token: float, source: str
) -> None:
    found = bytes_of_sequence(read(name), tokens, value_bytes) / tokens
    assert found == pytest.approx(per_token, rel=0.03), source


def test_latent_attention_that_is_not_awq_is_counted_as_it_is_now() -> None:
    plain = document("deepseek-coder-v2-lite-awq")
    del plain["quantization_config"]
    model = read_model_config(plain)
    # vllm issue 15871: 0.95 GiB for 32,768 tokens.
    assert bytes_of_sequence(model, 32768) / GIB == pytest.approx(0.95, abs=0.005)
    assert kv_bytes_per_token(model.shape) == (512 + 64) * 27 * 2
    # One latent vector is whole on every rank.
    assert kv_bytes_per_token(model.shape, Split(4)) == kv_bytes_per_token(model.shape)
    assert not model.notes and read("deepseek-coder-v2-lite-awq").notes


def test_every_other_layer_of_gpt_oss_keeps_a_window() -> None:
    shape = read("gpt-oss-120b").shape
    assert {(kind.window, count) for kind, count in attention_kinds(shape)} == {(128, 18), (None, 18)}
    assert kv_bytes_per_token(shape) == 73728 and kv_bytes_per_token(shape, unlimited=True) == 36864
    half, whole = (sequence_cache(shape, Limits(tokens, 1, 8192), Split(), 0, 16) for tokens in (65536, 131072))
    assert half.windowed_bytes == whole.windowed_bytes and 2 * half.growing_bytes == whole.growing_bytes
    # Blocks of the window and of a step, and one for the edge.
    assert whole.windowed_bytes == 18 * (-(-(127 + 8192) // 16) + 1) * 16 * 2 * 8 * 64 * 2


def test_layers_that_are_one_block_keep_what_that_block_keeps() -> None:
    """Of Nemotron's 56 layers 27 keep a state, 4 a cache, and the feed-forward blocks nothing."""
    shape = read("nemotron-nano-9b-v2").shape
    kinds = {(kind.cached_values, kind.state_bytes): count for kind, count in attention_kinds(shape)}
    # 128 heads of 80 x 128 states in 32 bit; 10,240 + 2 x 8 x 128 inputs of the convolution, three of each.
    state = 128 * 80 * 128 * 4 + (128 * 80 + 2 * 8 * 128) * 3 * 2
    assert kinds == {(0, state): 27, (2 * 8 * 128, 0): 4, (0, 0): 25}
    cache = sequence_cache(shape, Limits(8192, 1, 2048, None, None), Split(), 0, 16)
    assert cache.growing_bytes and cache.state_bytes and not cache.windowed_bytes


def test_an_indexer_keeps_its_own_key_beside_the_latent_vector() -> None:
    """576 values in 16 bit, and 128 in 8 bit with a 32-bit scale, in each of 61 layers."""
    assert kv_bytes_per_token(read("deepseek-v3.2").shape) == 61 * (576 * 2 + 128 + 4)


def test_layers_that_keep_less_of_a_token_have_more_tokens_in_a_block() -> None:
    """Gemma 4: 25 layers keep a window of 8 heads of 256, 5 keep all tokens in 2 heads of 512: half as much."""
    shape = read("gemma-4-26b-a4b").shape
    kinds = {(kind.window, kind.cached_values): count for kind, count in attention_kinds(shape)}
    assert kinds == {(1024, 2 * 8 * 256): 25, (None, 2 * 2 * 512): 5}
    long, longer = (sequence_cache(shape, Limits(n, 1, 2048, None, None), Split(), 0, 16) for n in (65536, 131072))
    assert longer.growing_bytes - long.growing_bytes == 65536 * 5 * 2 * 2 * 512 * 2
    assert longer.windowed_bytes == long.windowed_bytes


def test_three_of_four_layers_of_llama_4_keep_a_chunk() -> None:
    kinds = {kind.window: count for kind, count in attention_kinds(read("llama-4-scout").shape)}
    assert kinds == {8192: 36, None: 12}


def test_linear_layers_keep_a_state_and_no_token() -> None:
    shape = read("qwen3.6-35b-a3b").shape
    assert kv_bytes_per_token(shape, value_bytes=1) == 10 * 2 * 2 * 256
    state = 32 * 128 * 128 * 4 + 8192 * 3 * 2
    assert {kind.state_bytes for kind, _ in attention_kinds(shape)} == {0, state}
    found = sequence_cache(shape, Limits(1000, 1, 8192), Split(), 0, 16, 1)
    # Three groups of ten layers with two blocks each, a block as large as a state: 2096 tokens of 1 KiB.
    assert found.state_bytes == 3 * 2 * 10 * 2096 * 1024 and found.growing_bytes == 10 * 2096 * 1024


def test_a_step_reads_the_experts_that_its_tokens_choose() -> None:
    model = read("qwen3-30b-a3b")
    experts = 48 * 128 * 3 * 768 * 2048 * 2
    rest = resident_bytes(model.shape, BF16) - experts - 151936 * 2048 * 2
    assert read_bytes(model.shape, BF16) == pytest.approx(rest + experts * 8 / 128)
    assert read_bytes(model.shape, BF16, tokens=2) == pytest.approx(rest + experts * (1 - (1 - 8 / 128) ** 2))
    assert read_bytes(model.shape, BF16, tokens=4096) == pytest.approx(rest + experts, rel=1e-3)
    # About 3.3 B parameters are active, as its name says.
    active = flops_per_token(model.shape) / 2 + model.shape.table_parameters
    assert active == pytest.approx(3.35e9, rel=0.01)


def test_shared_experts_and_dense_first_layers_are_read_by_every_token() -> None:
    shape = read("deepseek-v3").shape
    names = [{matrix.name: matrix for matrix in layer.matrices if matrix.copies > 1} for layer in shape.layers]
    assert [bool(each) for each in names[:4]] == [False, False, False, True]
    assert names[3]["down_proj"].copies == 256 and names[3]["down_proj"].active == 8
    # 37 B of 671 B are active (DeepSeek-V3's own model card).
    assert flops_per_token(shape) / 2 + shape.table_parameters == pytest.approx(37.6e9, rel=0.02)


def test_a_tied_head_is_held_once_unless_stages_keep_it_apart() -> None:
    shape, table = read("qwen2.5-0.5b").shape, 151936 * 896 * 2
    assert resident_bytes(shape, BF16) == 494_032_768 * 2
    stages = [resident_bytes(shape, BF16, Split(1, 2), stage) for stage in (0, 1)]
    assert sum(stages) == resident_bytes(shape, BF16) + table


@pytest.mark.parametrize(
    ("name", "quantization", "gigabytes", "source"),
    [
        ("llama-3.1-8b", "Q4_K_M", 4.92, "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF, size of the file"),
        ("llama-3.1-8b", "Q8_0", 8.54, "the same"),
        ("llama-3.1-8b", "Q6_K", 6.60, "the same"),
        ("llama-3.1-8b", "Q5_K_M", 5.73, "the same"),
        ("llama-3.1-8b", "Q3_K_M", 4.02, "the same"),
    ],
)
def test_gguf_types_are_as_large_as_their_files(name: str, quantization: str, gigabytes: float, source: str) -> None:
    model = read(name, quantization)
    assert resident_bytes(model.shape, model.weights) / 1e9 == pytest.approx(gigabytes, rel=0.03), source


def test_every_format_that_is_offered_is_known() -> None:
    for name in (*FORMATS, *GGUF_TYPES):
        found = mixture(name)
        assert found is not None and 2 < found.linear.bits <= 16
        smaller = resident_bytes(read("llama-3.1-8b", name).shape, found.linear)
        assert smaller <= resident_bytes(read("llama-3.1-8b").shape, BF16)


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, 4.15625),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}, 4.15625),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}, 8 + 32 / 16384),
        ({"quant_method": "fp8", "activation_scheme": "static"}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4.127),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": True},
                    }
                },
                "ignore": ["lm_head"],
            },
            4.125,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
                        "input_activations": {"num_bits": 4},
                    }
                },
            },
            4.5,
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}, 4.5),
    ],
)
def test_quantization_configs(method: dict[str, Any], bits: float) -> None:
    model = read("llama-3.1-8b", quantization_config=method)
    linear = parameters(model.shape).linear
    rest = parameters(model.shape).total - linear
    assert (resident_bytes(model.shape, model.weights) - 2 * rest) * 8 / linear == pytest.approx(bits, rel=2e-3)


@pytest.mark.parametrize("pattern", ["self_attn", "re:.*self_attn.*", "model.layers.*.self_attn", "o_proj"])
def test_modules_that_stay_in_16_bit(pattern: str) -> None:
    method = {"quant_method": "awq", "bits": 4, "modules_to_not_convert": [pattern]}
    layer = read("llama-3.1-8b", quantization_config=method).shape.layers[7]
    stored = {matrix.name: matrix.stored for matrix in layer.matrices}
    assert stored["o_proj"] == BF16 and stored["gate_proj"] is None
    assert stored["q_proj"] == (None if pattern == "o_proj" else BF16)


def test_a_cache_in_8_bit_that_the_checkpoint_asks_for() -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}
    method = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }
    assert read("llama-3.1-8b", quantization_config=method).kv_value_bytes == 1
    assert read("llama-3.1-8b").kv_value_bytes == 2


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("llama-3.1-8b", {"model_type": "mamba2"}, "model_type: 'mamba2'; expected one of apertus, arcee"),
        ("llama-3.1-8b", {"index_topk": 2048}, "index_topk: 2048; it is not understood and may take memory"),
        ("llama-3.1-8b", {"num_hidden_layers": "many"}, "num_hidden_layers: 'many'; "),
        ("llama-3.1-8b", {"layer_types": ["full_attention"]}, "layer_types: 1 of them; expected one for each of"),
        ("gpt-oss-120b", {"layer_types": ["recurrent"] * 36}, "layer_types.0: 'recurrent'; "),
        ("gpt-oss-120b", {"sliding_window": None}, "sliding_window: missing; expected it beside gpt_oss's"),
        ("gpt-oss-120b", {"num_experts_per_tok": 8}, "num_experts_per_tok: 8; expected 4, as in another field"),
        ("qwen3-30b-a3b", {"num_experts_per_tok": None}, "experts_per_token: missing"),
        (
            "llama-3.1-8b",
            {"quantization_config": {"quant_method": "quip"}},
            "quant_method: 'quip'; expected one of awq",
        ),
        (
            "llama-3.1-8b",
            {"quantization_config": {"quant_method": "awq", "bits": 4, "outliers": 1}},
            "quantization_config.outliers: 1; it is not understood",
        ),
        (
            "llama-3.1-8b",
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*": {}}}},
            "quantization_config.dynamic: .*; expected one format",
        ),
        ("qwen2.5-vl-7b", {"vision_config": {"model_type": "eva"}}, "vision_config.model_type: 'eva'; expected one of"),
        ("gemma-3-27b", {"model_type": "flamingo"}, "model_type: 'flamingo'; expected one of gemma3"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_name(name: str, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}.json: .*{expected}"):
        read(name, **changes)
