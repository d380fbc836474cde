"""Memory of one rank: weights, KV cache, activations and the engine itself."""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck.performance.model import VALUE_BYTES, ModelShape, Split, WeightFormat, held_bytes, kv_bytes_per_token
from bottleneck.performance.server_limits import Limits
from bottleneck.units import size_text


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


def rank_memory(
    shape: ModelShape,
    weights: WeightFormat,
    limits: Limits,
    split: Split,
    stage: int,
    *,
    runtime_bytes: int,
    block_tokens: int,
) -> RankMemory:
    """Return what a rank of a pipeline stage holds.

    Parameters
    ----------
    runtime_bytes, block_tokens
        Of the engine: what it takes itself, and tokens of one KV cache block.
    """
    block_bytes = block_tokens * kv_bytes_per_token(shape, split, stage)
    blocks = _cache_blocks(limits, block_bytes, block_tokens)
    return RankMemory(
        stage=stage,
        layers=len(split.layers_of(shape, stage)),
        weights_bytes=held_bytes(shape, weights, split, stage),
        kv_cache_bytes=blocks * block_bytes,
        activations_bytes=activation_buffer_bytes(shape, limits, split, stage),
        runtime_bytes=runtime_bytes,
        kv_cache_tokens=blocks * block_tokens,
    )


def activation_buffer_bytes(shape: ModelShape, limits: Limits, split: Split, stage: int) -> int:
    """Return the buffers of the largest forward pass: an estimate.

    Two hidden states, the residual and attention's output; gate, up and their product; logits, sampled in 32 bit.
    """
    inner = max(layer.buffer_values_split for layer in split.layers_of(shape, stage))
    width = 4 * shape.hidden_size + inner // split.tensor_parallel
    logits = limits.sequences * shape.vocabulary_size * 4 if split.has_last(stage) else 0
    return limits.batched_tokens * width * VALUE_BYTES + logits


def _cache_blocks(limits: Limits, block_bytes: int, block_tokens: int) -> int:
    """Return the blocks of a rank's KV cache; without a setting, those of one sequence of full length."""
    if limits.cache_blocks:
        return limits.cache_blocks
    if limits.cache_bytes:
        return limits.cache_bytes // block_bytes
    return -(-limits.sequence_tokens // block_tokens)
