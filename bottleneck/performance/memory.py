"""Memory of one rank: weights, KV cache, activations and the engine itself.

What a sequence takes of the cache is counted as vLLM lays it out (0.32, `v1/core/kv_cache_utils.py` and
`v1/kv_cache_interface.py`, read): layers that look back in one way are cut into groups of equal size, and a block holds
so many tokens of one layer of each; a window keeps the blocks of its tokens and of those of a step, one more for its
edge; a linear layer keeps two blocks, each large enough for its state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bottleneck.performance.model import (
    VALUE_BYTES,
    ModelShape,
    Split,
    WeightFormat,
    attention_kinds,
    layer_kv_bytes,
    resident_bytes,
)
from bottleneck.performance.server_limits import Limits
from bottleneck.units import size_text

# More layers than so many times the fewest of a kind are cut into groups; fewer are padded to one.
_PADDED_GROUPS = 1.5
# Of a state, with prefix caching: the one in use and the one before.
_STATE_BLOCKS = 2


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank, in bytes.

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
    sequence_bytes
        What one sequence of full length takes of the KV cache.
    kv_cache_tokens
        Tokens that the KV cache holds, in sequences of full length.
    """

    stage: int
    layers: int
    weights_bytes: int
    kv_cache_bytes: int
    sequence_bytes: int
    activations_bytes: int
    runtime_bytes: int
    kv_cache_tokens: int

    @property
    def total_bytes(self) -> int:
        """All bytes that the rank needs."""
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
    kv_value_bytes: float = VALUE_BYTES,
) -> RankMemory:
    """Return what a rank of a pipeline stage holds.

    Parameters
    ----------
    shape : ModelShape
        Shape of the model.
    weights : WeightFormat
        Format of its linear layers' weights.
    limits : Limits
        Sequences, tokens of a step and length of a sequence that the server allows.
    split : Split
        Split of the model over ranks.
    stage : int
        Number of the pipeline stage from 0.
    runtime_bytes, block_tokens : int
        Of the engine: what it takes itself, and tokens of one KV cache block.
    kv_value_bytes : float
        Bytes of one value in the KV cache: 2, or 1 for a cache in 8 bit.
    """
    sequence = sequence_cache(shape, limits, split, stage, block_tokens, kv_value_bytes)
    if limits.cache_blocks:
        cache = limits.cache_blocks * sequence.block_bytes
    else:
        cache = (limits.cache_bytes or sequence.total_bytes) // sequence.block_bytes * sequence.block_bytes
    return RankMemory(
        stage=stage,
        layers=len(split.layers_of(shape, stage)),
        weights_bytes=resident_bytes(shape, weights, split, stage),
        kv_cache_bytes=cache,
        sequence_bytes=sequence.total_bytes,
        activations_bytes=activation_buffer_bytes(shape, limits, split, stage),
        runtime_bytes=runtime_bytes,
        kv_cache_tokens=sequence.tokens_in(cache),
    )


@dataclass(frozen=True)
class SequenceCache:
    """Bytes of a rank's KV cache that one sequence of full length takes.

    Attributes
    ----------
    tokens : int
        Of the sequence, up to whole blocks.
    block_bytes : int
        Of one block of tokens, over the layers of one group.
    growing_bytes : int
        Of the layers that look back on all tokens.
    windowed_bytes : int
        Of those with a window: longer sequences take no more.
    state_bytes : int
        Of those that keep a state.
    """

    tokens: int
    block_bytes: int
    growing_bytes: int
    windowed_bytes: int
    state_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.growing_bytes + self.windowed_bytes + self.state_bytes

    def tokens_in(self, cache_bytes: int) -> int:
        """Return how many tokens a cache holds, in sequences of full length.

        Parameters
        ----------
        cache_bytes : int
            Bytes of the rank's cache.
        """
        return cache_bytes * self.tokens // self.total_bytes


def sequence_cache(
    shape: ModelShape, limits: Limits, split: Split, stage: int, block_tokens: int, kv_value_bytes: float = VALUE_BYTES
) -> SequenceCache:
    """Return what one sequence of full length takes of a rank's KV cache.

    Parameters
    ----------
    shape
        Of the whole model.
    limits
        The server's limits: length, sequences and tokens of a step.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0.
    block_tokens
        Tokens of one block of the cache.
    kv_value_bytes
        Bytes of one value of the cache.
    """
    counts: dict[tuple[int | None, bool, int], int] = {}
    token_bytes = state_bytes = 0
    for kind, count in attention_kinds(shape, split, stage):
        # Whole bytes of a token: scales of a block are shared by its tokens.
        own_bytes = math.ceil(layer_kv_bytes(kind, split, 1) * kv_value_bytes)
        # A layer may keep tokens, a state, both (in blocks of their own), or nothing.
        kept_in = [(kind.window, False, own_bytes)] if kind.cached_values else []
        kept_in += [(None, True, 0)] if kind.state_bytes else []
        for key in kept_in:
            counts[key] = counts.get(key, 0) + count
        token_bytes = max(token_bytes, own_bytes)
        state_bytes = max(state_bytes, kind.state_bytes // split.tensor_parallel)
    # A block of every layer has one size: that of tokens grows until a state fits.
    if token_bytes and state_bytes:
        block_tokens = block_tokens * max(1, -(-state_bytes // (block_tokens * token_bytes)))
    if not counts:
        return SequenceCache(limits.sequence_tokens, 1, 1, 0, 0)
    layers = min(counts.values())
    if max(counts.values()) < _PADDED_GROUPS * layers:
        layers = max(counts.values())
    page = (block_tokens * token_bytes or state_bytes) * layers
    length = -(-limits.sequence_tokens // block_tokens)
    found = {"growing": 0, "windowed": 0, "state": 0}
    for (window, state, own_bytes), count in counts.items():
        # Where a layer keeps less of a token, as many more tokens are in a block of the one size.
        tokens = block_tokens * max(1, token_bytes // max(1, own_bytes))
        groups = -(-count // layers)
        if state:
            found["state"] += groups * page * _STATE_BLOCKS
        elif window is None:
            found["growing"] += groups * page * -(-limits.sequence_tokens // tokens)
        else:
            kept = min(window - 1 + limits.batched_tokens, limits.sequence_tokens)
            found["windowed"] += groups * page * (-(-kept // tokens) + 1)
    return SequenceCache(length * block_tokens, page, *found.values())


def activation_buffer_bytes(shape: ModelShape, limits: Limits, split: Split, stage: int) -> int:
    """Return the buffers of the largest forward pass: an estimate.

    Two hidden states, the residual and attention's output; gate, up and their product; logits, sampled in 32 bit.

    Parameters
    ----------
    shape
        Of the whole model.
    limits
        The server's limits: length, sequences and tokens of a step.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0.
    """
    inner = max(layer.buffer_values_split for layer in split.layers_of(shape, stage))
    width = 4 * shape.hidden_size + inner // split.tensor_parallel
    logits = limits.sequences * shape.vocabulary_size * 4 if split.has_last(stage) else 0
    return limits.batched_tokens * width * VALUE_BYTES + logits
