"""Memory, traffic and arithmetic of a model against numbers worked out by hand."""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from bottleneck.performance.collectives import Link
from bottleneck.performance.memory import RankMemory, rank_memory
from bottleneck.performance.messages import allreduces, latency_seconds, sends, sent_bytes_per_token
from bottleneck.performance.model import (
    BF16,
    Matrix,
    Split,
    flops_per_token,
    kv_bytes_per_token,
    parameters,
    read_bytes,
    resident_bytes,
)
from bottleneck.performance.server_limits import server_defaults
from bottleneck.profile import Deployment, Quantization, Server, Shape
from bottleneck.profile.types import Accelerator
from tests.by_file import load
from tests.models import MISTRAL_SMALL

GIB = 2**30
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
SMALL, LARGE = TINY.model_shape(), MISTRAL_SMALL.model_shape()
SYMMETRIC = Quantization(bits=4, group_size=128).weight_format()
WITH_ZERO_POINTS = Quantization(bits=4, group_size=128, symmetric=False).weight_format()


def test_parameters_of_mistral_small() -> None:
    counted = parameters(LARGE)
    assert counted.linear == 56 * (2 * 6144 * 6144 + 2 * 6144 * 1024 + 3 * 6144 * 16384) == 21_843_935_232
    assert counted.total == 22_247_282_688


def test_bytes_of_mistral_small_with_zero_points_are_the_reference_arithmetic() -> None:
    # 4 bit + (16 bit scale + 4 bit zero point) / 128 = 4.15625 bit a weight.
    assert resident_bytes(LARGE, WITH_ZERO_POINTS) == pytest.approx(12.15e9, rel=5e-4)
    assert read_bytes(LARGE, WITH_ZERO_POINTS) == pytest.approx(11.75e9, rel=5e-4)
    # The ceiling of one A770 at 560 GB/s.
    assert 560e9 / read_bytes(LARGE, WITH_ZERO_POINTS) == pytest.approx(47.7, abs=0.1)
    assert 256e9 / read_bytes(LARGE, WITH_ZERO_POINTS) == pytest.approx(21.8, abs=0.1)


def test_bytes_of_mistral_small_symmetric_are_exact() -> None:
    linear = 21_843_935_232 // 2 + 21_843_935_232 // 128 * 2
    norms, table = 113 * 6144 * 2, 32768 * 6144 * 2
    assert resident_bytes(LARGE, SYMMETRIC) == linear + norms + 2 * table == 12_069_974_016
    assert read_bytes(LARGE, SYMMETRIC) == linear + norms + table


def test_unquantized_weights_have_no_scales() -> None:
    assert resident_bytes(SMALL, BF16) == 2 * parameters(SMALL).total


def test_kv_cache_of_mistral_small_is_224_kib_a_token() -> None:
    assert kv_bytes_per_token(LARGE) == 224 * 1024
    assert kv_bytes_per_token(LARGE, Split(2)) == 112 * 1024
    assert kv_bytes_per_token(LARGE, Split(1, 2), stage=1) == 112 * 1024
    assert kv_bytes_per_token(LARGE, value_bytes=1) == 112 * 1024


def test_tensor_parallel_halves_everything_but_the_norms() -> None:
    norms = 113 * 6144 * 2
    whole, half = resident_bytes(LARGE, SYMMETRIC), resident_bytes(LARGE, SYMMETRIC, Split(2))
    assert 2 * (half - norms) == whole - norms


@pytest.mark.parametrize("pipeline", [1, 2, 3, 4, 7])
def test_stages_together_hold_the_whole_model(pipeline: int) -> None:
    split, stages = Split(1, pipeline), range(pipeline)
    assert sum(resident_bytes(LARGE, SYMMETRIC, split, stage) for stage in stages) == resident_bytes(LARGE, SYMMETRIC)
    assert sum(read_bytes(LARGE, SYMMETRIC, split, stage) for stage in stages) == read_bytes(LARGE, SYMMETRIC, split)
    assert sum(flops_per_token(LARGE, split, stage) for stage in stages) == flops_per_token(LARGE)
    assert sum(allreduces(LARGE, Split(2, pipeline), stage).count for stage in stages) == 113


def test_layers_that_do_not_divide_go_before_the_last_stage() -> None:
    assert Split(1, 3).stage_layers(56) == (19, 19, 18)
    assert Split(1, 3).stage_layers(8) == (3, 3, 2)
    assert Split(1, 5).stage_layers(8) == (1, 2, 2, 2, 1)


def test_a_partition_of_layers_is_taken_as_it_is_given() -> None:
    uneven = Split(1, 2, partition=(6, 2))
    assert [len(uneven.layers_of(SMALL, stage)) for stage in (0, 1)] == [6, 2]
    assert kv_bytes_per_token(SMALL, uneven, 0) == 3 * kv_bytes_per_token(SMALL, uneven, 1)
    trouble = Split(1, 2, partition=(6, 3)).problem(SMALL)
    assert trouble is not None and "expected 2 stages of 8 layers together" in trouble


def test_messages() -> None:
    assert allreduces(LARGE, Split(2)).count == 113 and allreduces(LARGE, Split(2)).bytes_per_token == 12 * 1024
    assert (allreduces(SMALL, Split(2)).count, allreduces(SMALL, Split(2)).bytes_per_token) == (17, 2048)
    assert allreduces(SMALL, Split()).count == 0
    assert (sends(SMALL, Split(1, 4)).count, sends(SMALL, Split(1, 4)).bytes_per_token) == (3, 4096)
    assert sends(SMALL, Split(1, 4), 3).count == 0 and sends(SMALL, Split(1, 4), 2).count == 1
    assert sends(SMALL, Split()).count == 0


def test_a_rank_sends_its_part_of_every_message() -> None:
    assert sent_bytes_per_token(SMALL, Split(2)) == 17 * 2048
    assert sent_bytes_per_token(SMALL, Split(4)) == 17 * 2048 * 1.5
    assert sent_bytes_per_token(SMALL, Split(1, 2)) == 4096
    # Five all-reduces of the first of four stages, and half of what it passes on.
    assert sent_bytes_per_token(SMALL, Split(2, 4), 0) == 5 * 2048 + 2048
    assert sent_bytes_per_token(SMALL, Split(2, 4)) == 17 * 2048 + 3 * 2048


def test_what_a_step_waits_for_the_link_without_bytes() -> None:
    link = Link(1e-3, 1e9, "gloo")
    assert latency_seconds(SMALL, Split(2, 1, link)) == pytest.approx(17 * 4e-3)
    assert latency_seconds(SMALL, Split(1, 4, link)) == pytest.approx(3 * 8e-3)
    assert latency_seconds(SMALL, Split(1, 4, replace(link, backend="nccl")), 0) == pytest.approx(6e-3)
    assert latency_seconds(SMALL, Split(1, 4)) == 0.0


def test_flops_are_two_for_every_weight() -> None:
    counted = parameters(SMALL)
    assert flops_per_token(SMALL) == 2 * (counted.linear + counted.output_head)
    assert flops_per_token(SMALL, output_head=False) == 2 * counted.linear
    assert flops_per_token(SMALL, Split(2)) == counted.linear + counted.output_head


def test_keys_and_values_are_repeated_where_ranks_are_more_than_their_heads() -> None:
    assert Matrix("k_proj", 256, 1024, 4).share(8) == 4
    assert kv_bytes_per_token(SMALL, Split(8)) == kv_bytes_per_token(SMALL, Split(4))


def _maker() -> ModuleType:
    return load("salt/model/files/make_model.py")


def test_the_model_maker_makes_the_linear_layers_that_are_counted() -> None:
    made = list(_maker().linear_layers(TINY.model_dump()))
    assert sum(rows * columns for _, rows, columns in made) == parameters(SMALL).linear
    counted = {(matrix.name, matrix.outputs, matrix.inputs) for matrix in SMALL.layers[0].matrices}
    assert {(name.rsplit(".", 1)[1], rows, columns) for name, rows, columns in made} == counted


def _memory(server: dict[str, object], **sizes: Any) -> RankMemory:
    deployment = Deployment(nodes=["a", "b"], link="x", server=Server.model_validate(server), **sizes)
    accelerator = Accelerator.model_validate({"kind": "cpu", "memory": "4 GiB"})
    limits = deployment.limits(TINY, accelerator, on_cpu=True)
    return rank_memory(SMALL, SYMMETRIC, limits, deployment.split, 0, runtime_bytes=1000, block_tokens=128)


def test_rank_memory_adds_up() -> None:
    memory = _memory(
        {"kv_cache_memory": "256 MiB", "max_num_batched_tokens": 2048, "max_num_seqs": 16}, tensor_parallel=2
    )
    assert memory.weights_bytes == resident_bytes(SMALL, SYMMETRIC, Split(2))
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


@pytest.mark.parametrize(
    ("memory", "name", "on_cpu", "expected"),
    [
        (0, "", False, (2048, 256)),
        (16 * GIB, "Arc A770", False, (2048, 256)),
        (80 * GIB, "NVIDIA H100", False, (8192, 1024)),
        (80 * GIB, "NVIDIA A100", False, (2048, 256)),
        (180 * GIB, "NVIDIA B200", False, (16384, 1024)),
        (5 * GIB, "", True, (4096, 256)),
    ],
)
def test_what_a_server_takes_depends_on_the_machine(
    memory: int, name: str, on_cpu: bool, expected: tuple[int, int]
) -> None:
    found = server_defaults(memory, name, on_cpu=on_cpu, ranks=2)
    assert (found.batched_tokens, found.sequences) == expected
