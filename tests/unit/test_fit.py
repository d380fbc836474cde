"""Memory, traffic and arithmetic against numbers worked out by hand."""

from types import ModuleType

import pytest

from bottleneck.performance import fit
from bottleneck.profile import Deployment, Quantization, Server, Shape
from tests.by_file import load
from tests.models import MISTRAL_SMALL

TINY = Shape(
    layers=8,
    hidden_size=1024,
    intermediate_size=2816,
    attention_heads=16,
    key_value_heads=4,
    head_dim=64,
    vocabulary_size=8192,
    context_length=2048,
)
SYMMETRIC = Quantization(bits=4, group_size=128)
WITH_ZERO_POINTS = Quantization(bits=4, group_size=128, symmetric=False)


def test_parameters_of_mistral_small() -> None:
    counted = fit.parameters(MISTRAL_SMALL)
    assert fit.linear_parameters_per_layer(MISTRAL_SMALL) == 2 * 6144 * 6144 + 2 * 6144 * 1024 + 3 * 6144 * 16384
    assert counted.linear == 21_843_935_232
    assert counted.total == 22_247_282_688


def test_bytes_of_mistral_small_with_zero_points_are_the_reference_arithmetic() -> None:
    # 4 bit + (16 bit scale + 4 bit zero point) / 128 = 4.15625 bit a weight.
    assert fit.weight_bytes(MISTRAL_SMALL, WITH_ZERO_POINTS) == pytest.approx(12.15e9, rel=5e-4)
    assert fit.bytes_read_per_token(MISTRAL_SMALL, WITH_ZERO_POINTS) == pytest.approx(11.75e9, rel=5e-4)
    # The ceiling of one A770 at 560 GB/s.
    assert 560e9 / fit.bytes_read_per_token(MISTRAL_SMALL, WITH_ZERO_POINTS) == pytest.approx(47.7, abs=0.1)
    assert 256e9 / fit.bytes_read_per_token(MISTRAL_SMALL, WITH_ZERO_POINTS) == pytest.approx(21.8, abs=0.1)


def test_bytes_of_mistral_small_symmetric_are_exact() -> None:
    linear = 21_843_935_232 // 2 + 21_843_935_232 // 128 * 2
    norms, table = 113 * 6144 * 2, 32768 * 6144 * 2
    assert fit.weight_bytes(MISTRAL_SMALL, SYMMETRIC) == linear + norms + 2 * table == 12_069_974_016
    assert fit.bytes_read_per_token(MISTRAL_SMALL, SYMMETRIC) == linear + norms + table


def test_unquantized_weights_have_no_scales() -> None:
    plain = Quantization(bits=16)
    assert fit.weight_bytes(TINY, plain) == 2 * fit.parameters(TINY).total


def test_kv_cache_of_mistral_small_is_224_kib_a_token() -> None:
    assert fit.kv_bytes_per_token(MISTRAL_SMALL) == 224 * 1024
    assert fit.kv_bytes_per_token(MISTRAL_SMALL, tensor_parallel=2) == 112 * 1024
    assert fit.kv_bytes_per_token(MISTRAL_SMALL, pipeline_parallel=2, stage=1) == 112 * 1024


def test_tensor_parallel_halves_everything_but_the_norms() -> None:
    norms = 113 * 6144 * 2
    whole, half = fit.weight_bytes(MISTRAL_SMALL, SYMMETRIC), fit.weight_bytes(MISTRAL_SMALL, SYMMETRIC, 2)
    assert 2 * (half - norms) == whole - norms


@pytest.mark.parametrize("pipeline", [1, 2, 3, 4, 7])
def test_stages_together_hold_the_whole_model(pipeline: int) -> None:
    stages = range(pipeline)
    weights = [fit.weight_bytes(MISTRAL_SMALL, SYMMETRIC, 1, pipeline, stage) for stage in stages]
    assert sum(weights) == fit.weight_bytes(MISTRAL_SMALL, SYMMETRIC)
    read = [fit.bytes_read_per_token(MISTRAL_SMALL, SYMMETRIC, 1, pipeline, stage) for stage in stages]
    assert sum(read) == fit.bytes_read_per_token(MISTRAL_SMALL, SYMMETRIC, 1, pipeline)
    flops = [fit.flops_per_token(MISTRAL_SMALL, 1, pipeline, stage) for stage in stages]
    assert sum(flops) == fit.flops_per_token(MISTRAL_SMALL)


def test_layers_that_do_not_divide_go_before_the_last_stage() -> None:
    assert fit.stage_layers(MISTRAL_SMALL, 3) == [19, 19, 18]
    assert fit.stage_layers(TINY, 3) == [3, 3, 2]
    assert fit.stage_layers(TINY, 5) == [1, 2, 2, 2, 1]


def test_messages() -> None:
    assert tuple(fit.allreduce_messages(MISTRAL_SMALL, 1, 2)) == (113, 12 * 1024)
    assert tuple(fit.allreduce_messages(TINY, 512, 2)) == (17, 2**20)
    assert tuple(fit.allreduce_messages(TINY, 512, 1)) == (0, 0)
    assert tuple(fit.pipeline_messages(TINY, 1, 2)) == (1, 4096)
    assert tuple(fit.pipeline_messages(TINY, 3, 4)) == (3, 3 * 4096)
    assert tuple(fit.pipeline_messages(TINY, 3, 1)) == (0, 0)


def test_flops_are_two_for_every_weight() -> None:
    counted = fit.parameters(TINY)
    assert fit.flops_per_token(TINY) == 2 * (counted.linear + counted.output_head)
    assert fit.flops_per_token(TINY, output_head=False) == 2 * counted.linear
    assert fit.flops_per_token(TINY, tensor_parallel=2) == counted.linear + counted.output_head


def _maker() -> ModuleType:
    return load("salt/model/files/make_model.py")


def test_the_model_maker_makes_the_linear_layers_that_are_counted() -> None:
    made = list(_maker().linear_layers(TINY.model_dump()))
    assert sum(rows * columns for _, rows, columns in made) == fit.parameters(TINY).linear
    assert {(name.rsplit(".", 1)[1], rows, columns) for name, rows, columns in made} == set(fit.linear_shapes(TINY))


def _memory(server: dict[str, object], **sizes: int) -> fit.RankMemory:
    deployment = Deployment(nodes=["a", "b"], link="x", server=Server.model_validate(server), **sizes)
    return fit.rank_memory(TINY, SYMMETRIC, deployment, stage=0, runtime_bytes=1000, block_tokens=128)


def test_rank_memory_adds_up() -> None:
    memory = _memory(
        {"kv_cache_memory": "256 MiB", "max_num_batched_tokens": 2048, "max_num_seqs": 16}, tensor_parallel=2
    )
    assert memory.weights_bytes == fit.weight_bytes(TINY, SYMMETRIC, 2)
    assert memory.kv_cache_bytes == 256 * 2**20
    assert memory.kv_cache_tokens == 65536
    assert memory.activations_bytes == 2048 * (4 * 1024 + 3 * 1408) * 2 + 16 * 8192 * 4
    parts = memory.weights_bytes + memory.kv_cache_bytes + memory.activations_bytes + 1000
    assert memory.total_bytes == parts
    assert memory.arithmetic().count("+") == 3


def test_kv_cache_in_blocks() -> None:
    assert _memory({"num_gpu_blocks_override": 20}).kv_cache_tokens == 2560
    assert _memory({}).kv_cache_tokens == 2048
    assert _memory({"max_model_len": 300}).kv_cache_tokens == 384
