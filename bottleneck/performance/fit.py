"""Memory, traffic and arithmetic of a Mistral-architecture model under a deployment.

Everything here is counted, not measured: parameters from the model's dimensions, bytes
from how they are stored, messages from how vLLM splits the work. Two entries of
`RankMemory` are estimates and say so.

How the work is split (vLLM 0.32, read in its source): every layer's query, key, value,
gate and up projections by output, its output and down projections by input, so each
layer ends its two halves with an all-reduce; the embedding and the output head by
vocabulary entries, padded to a multiple of 64; norms are on every rank. Pipeline stages
hold consecutive layers, the first also the embedding, the last also the final norm and
the output head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bottleneck.units import size_text

if TYPE_CHECKING:
    from bottleneck.profile.types import Deployment, Quantization, Server, Shape

ACTIVATION_BYTES = 2
"""Bytes of a value that is not quantized: bfloat16."""
_VOCABULARY_PADDING = 64
# What vLLM takes when a server setting is left out (0.32, API server on a small machine).
DEFAULT_NUM_SEQS = 128
DEFAULT_BATCHED_TOKENS = 2048


@dataclass(frozen=True)
class Messages:
    """Messages of one forward pass: how many, and the payload of each in bytes.

    Unpacks as ``count, message_bytes``.
    """

    count: int
    message_bytes: int

    def __iter__(self) -> Iterator[int]:
        """Yield `count` and `message_bytes`."""
        yield self.count
        yield self.message_bytes


@dataclass(frozen=True)
class Parameters:
    """Parameters of a whole model, by what they are.

    Attributes
    ----------
    linear
        Projections of attention and feed-forward blocks; the quantized ones.
    embedding, output_head, norms
        The rest, in bfloat16.
    """

    linear: int
    embedding: int
    output_head: int
    norms: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.embedding + self.output_head + self.norms


@dataclass(frozen=True)
class RankMemory:
    """What one rank holds, in bytes.

    Attributes
    ----------
    weights_bytes
        Weights, scales and zero points; exact.
    kv_cache_bytes
        As the server settings say; without any, what one sequence of full length needs.
    activations_bytes
        Buffers of the largest forward pass and its logits; an estimate.
    runtime_bytes
        The engine itself; an estimate of the engine map.
    kv_cache_tokens
        Tokens that the KV cache holds.
    """

    stage: int
    layers: int
    weights_bytes: int
    kv_cache_bytes: int
    activations_bytes: int
    runtime_bytes: int
    kv_cache_tokens: int

    @property
    def total_bytes(self) -> int:
        """What the rank needs in all."""
        return self.weights_bytes + self.kv_cache_bytes + self.activations_bytes + self.runtime_bytes

    def arithmetic(self) -> str:
        """Return the sum as a person reads it."""
        return (
            f"{size_text(self.total_bytes)} = weights {size_text(self.weights_bytes)}"
            f" + KV cache {size_text(self.kv_cache_bytes)} + activations {size_text(self.activations_bytes)}"
            f" + engine {size_text(self.runtime_bytes)}"
        )


def linear_shapes(shape: Shape) -> list[tuple[str, int, int]]:
    """Return (name, outputs, inputs) of the linear projections of one layer."""
    queries = shape.attention_heads * shape.head_dim
    keys = shape.key_value_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    return [
        ("q_proj", queries, hidden),
        ("k_proj", keys, hidden),
        ("v_proj", keys, hidden),
        ("o_proj", hidden, queries),
        ("gate_proj", inner, hidden),
        ("up_proj", inner, hidden),
        ("down_proj", hidden, inner),
    ]


def linear_parameters_per_layer(shape: Shape) -> int:
    """Return the parameters of one layer's linear projections."""
    return sum(outputs * inputs for _, outputs, inputs in linear_shapes(shape))


def parameters(shape: Shape) -> Parameters:
    """Return the parameters of a model whose output head is not tied to its embedding."""
    table = shape.vocabulary_size * shape.hidden_size
    return Parameters(
        linear=shape.layers * linear_parameters_per_layer(shape),
        embedding=table,
        output_head=table,
        norms=(2 * shape.layers + 1) * shape.hidden_size,
    )


def quantized_bytes(count: int, quantization: Quantization) -> int:
    """Return the bytes of `count` weights with their scales and zero points."""
    bits = count * quantization.bits
    if quantization.bits < 16:
        groups = count // quantization.group_size
        bits += groups * (16 if quantization.symmetric else 16 + quantization.bits)
    return (bits + 7) // 8


def stage_layers(shape: Shape, pipeline_parallel: int) -> list[int]:
    """Return the layers of each pipeline stage.

    vLLM gives what does not divide to the stages before the last, one each, from the
    second last backwards; the last one has the output head already.
    """
    layers = [shape.layers // pipeline_parallel] * pipeline_parallel
    for extra in range(shape.layers % pipeline_parallel):
        layers[-2 - extra] += 1
    return layers


def _table_bytes(shape: Shape, tensor_parallel: int) -> int:
    """Return one rank's share of an embedding table or output head."""
    padded = -(-shape.vocabulary_size // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    return -(-padded // tensor_parallel) * shape.hidden_size * ACTIVATION_BYTES


def bytes_read_per_token(
    shape: Shape,
    quantization: Quantization,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    stage: int | None = None,
) -> int:
    """Return the weight bytes that one rank reads to decode one token.

    Every weight once, apart from the embedding table, of which one row is used. The KV
    cache comes on top: context length times `kv_bytes_per_token`.

    Parameters
    ----------
    stage
        Pipeline stage of the rank; None sums over the stages, which take turns.
    """
    if stage is None:
        stages = range(pipeline_parallel)
        return sum(
            bytes_read_per_token(shape, quantization, tensor_parallel, pipeline_parallel, each) for each in stages
        )
    layers = stage_layers(shape, pipeline_parallel)[stage]
    linear = quantized_bytes(layers * linear_parameters_per_layer(shape) // tensor_parallel, quantization)
    norms = 2 * layers * shape.hidden_size * ACTIVATION_BYTES
    if stage == pipeline_parallel - 1:
        norms += shape.hidden_size * ACTIVATION_BYTES
        return linear + norms + _table_bytes(shape, tensor_parallel)
    return linear + norms


def weight_bytes(
    shape: Shape,
    quantization: Quantization,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    stage: int | None = None,
) -> int:
    """Return the bytes of the weights that one rank holds; `stage` as in `bytes_read_per_token`."""
    read = bytes_read_per_token(shape, quantization, tensor_parallel, pipeline_parallel, stage)
    return read + (_table_bytes(shape, tensor_parallel) if stage in (None, 0) else 0)


def kv_bytes_per_token(
    shape: Shape, tensor_parallel: int = 1, pipeline_parallel: int = 1, stage: int | None = None
) -> int:
    """Return the bytes that one token takes in one rank's KV cache; over all stages when `stage` is None."""
    layers = shape.layers if stage is None else stage_layers(shape, pipeline_parallel)[stage]
    return layers * 2 * shape.key_value_heads * shape.head_dim * ACTIVATION_BYTES // tensor_parallel


def allreduce_messages(shape: Shape, tokens: int, tensor_parallel: int) -> Messages:
    """Return the all-reduces of one forward pass over all layers.

    Two in each layer and one for the embedding, each of `tokens` hidden states. The
    gather of the logits at the end is not among them.
    """
    if tensor_parallel == 1:
        return Messages(0, 0)
    return Messages(2 * shape.layers + 1, tokens * shape.hidden_size * ACTIVATION_BYTES)


def pipeline_messages(shape: Shape, tokens: int, pipeline_parallel: int) -> Messages:
    """Return the transfers between pipeline stages of one forward pass: hidden states and residual together."""
    if pipeline_parallel == 1:
        return Messages(0, 0)
    return Messages(pipeline_parallel - 1, 2 * tokens * shape.hidden_size * ACTIVATION_BYTES)


def flops_per_token(
    shape: Shape,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    stage: int | None = None,
    output_head: bool = True,
) -> int:
    """Return the floating point operations of one rank for one token: two for every weight.

    Attention over the context is not among them; it is small next to the weights until
    the context is several times `hidden_size`.

    Parameters
    ----------
    stage
        Pipeline stage of the rank; None sums over the stages.
    output_head
        Whether logits are wanted of this token: every decoded one, but only the last of a
        prompt.
    """
    layers = shape.layers if stage is None else stage_layers(shape, pipeline_parallel)[stage]
    weights = layers * linear_parameters_per_layer(shape)
    if output_head and stage in (None, pipeline_parallel - 1):
        weights += shape.vocabulary_size * shape.hidden_size
    return 2 * weights // tensor_parallel


def rank_memory(
    shape: Shape,
    quantization: Quantization,
    deployment: Deployment,
    *,
    stage: int,
    runtime_bytes: int,
    block_tokens: int,
) -> RankMemory:
    """Return what a rank of a pipeline stage holds.

    Parameters
    ----------
    runtime_bytes, block_tokens
        Of the engine map: what the engine itself takes, and tokens of one KV cache block.
    """
    server = deployment.server
    tensor, pipeline = deployment.tensor_parallel, deployment.pipeline_parallel
    per_token = kv_bytes_per_token(shape, tensor, pipeline, stage)
    blocks = kv_blocks(shape, server, per_token, block_tokens)
    # Two hidden states, the residual and attention's output; gate, up and their product.
    width = 4 * shape.hidden_size + 3 * shape.intermediate_size // tensor
    activations = (server.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS) * width * ACTIVATION_BYTES
    if stage == pipeline - 1:
        # Logits are sampled in 32 bit.
        activations += (server.max_num_seqs or DEFAULT_NUM_SEQS) * shape.vocabulary_size * 4
    return RankMemory(
        stage=stage,
        layers=stage_layers(shape, pipeline)[stage],
        weights_bytes=weight_bytes(shape, quantization, tensor, pipeline, stage),
        kv_cache_bytes=blocks * block_tokens * per_token,
        activations_bytes=activations,
        runtime_bytes=runtime_bytes,
        kv_cache_tokens=blocks * block_tokens,
    )


def kv_blocks(shape: Shape, server: Server, kv_bytes_of_token: int, block_tokens: int) -> int:
    """Return the blocks of a rank's KV cache; without a setting, those of one sequence of full length."""
    if server.num_gpu_blocks_override:
        return server.num_gpu_blocks_override
    if server.kv_cache_memory_bytes:
        return server.kv_cache_memory_bytes // (block_tokens * kv_bytes_of_token)
    return -(-(server.max_model_len or shape.context_length) // block_tokens)
