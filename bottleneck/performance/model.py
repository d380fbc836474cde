"""Parameters, bytes and operations of a model or of one rank's part of it: counted, not measured.

How the work is split (vLLM 0.32, read in its source): a layer's query, key, value, gate and up projections by output,
its output and down projections by input; the embedding and the output head by vocabulary entries, padded to a multiple
of 64; norms are on every rank. Pipeline stages hold consecutive layers, the first also the embedding, the last also the
final norm and the output head.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from bottleneck.performance.formats import BF16, FORMATS, VALUE_BYTES, WeightFormat
from bottleneck.performance.layers import dense_shape
from bottleneck.performance.shape import WHOLE, Attention, Layer, Matrix, ModelShape, Split

if TYPE_CHECKING:
    from bottleneck.performance.collectives import Quantity

__all__ = [
    "BF16",
    "FORMATS",
    "VALUE_BYTES",
    "WHOLE",
    "Attention",
    "Layer",
    "Matrix",
    "ModelShape",
    "Split",
    "WeightFormat",
    "dense_shape",
]

_VOCABULARY_PADDING = 64


@dataclass(frozen=True)
class Parameters:
    """Parameters of a whole model, by what they are; `tower` is what serves images and sound."""

    linear: int
    embedding: int
    output_head: int
    norms: int
    tower: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.embedding + self.output_head + self.norms + self.tower


def parameters(shape: ModelShape) -> Parameters:
    """Return the parameters of a model; a tied output head has none of its own.

    Parameters
    ----------
    shape : ModelShape
        Shape of the model.

    Returns
    -------
    Parameters
        Counts of weights. Matrices that are made of others when the model is loaded do not count.
    """
    return Parameters(
        linear=sum(each.parameters for layer in shape.layers for each in layer.matrices if not each.derived),
        embedding=shape.table_parameters,
        output_head=0 if shape.tied_embeddings else shape.table_parameters,
        norms=sum(layer.vectors for layer in shape.layers) + shape.hidden_size,
        tower=sum(matrix.parameters for matrix in shape.tower),
    )


@dataclass(frozen=True)
class Experts:
    """Weights of which a step reads only those that its tokens are routed to.

    Attributes
    ----------
    copy_bytes : int
        One rank's bytes of one expert.
    """

    copy_bytes: int
    copies: int
    active: int


@lru_cache(maxsize=1024)
def experts(
    shape: ModelShape, weights: WeightFormat, split: Split = WHOLE, stage: int | None = None
) -> tuple[Experts, ...]:
    """Return the routed weights of one rank, those of all layers that are routed alike together.

    Parameters
    ----------
    shape
        Of the whole model.
    weights
        How the weights are stored.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0; None is all of them.
    """
    sums: dict[tuple[int, int], int] = {}
    for layer in split.layers_of(shape, stage):
        for matrix in layer.matrices:
            if matrix.copies > 1:
                key = matrix.copies, matrix.active
                sums[key] = sums.get(key, 0) + matrix.rank_bytes(weights, split.tensor_parallel)
    return tuple(Experts(copy_bytes, *key) for key, copy_bytes in sums.items())


@lru_cache(maxsize=1024)
def shared_weight_bytes(
    shape: ModelShape, weights: WeightFormat, split: Split = WHOLE, stage: int | None = None
) -> int:
    """Return the bytes of weights that one rank reads in every step, whatever is in it.

    Every weight once, but for the embedding table, of which a step reads a few rows, and for `experts`.

    Parameters
    ----------
    shape : ModelShape
        Shape of the model.
    weights : WeightFormat
        Format of its linear layers' weights.
    split : Split
        Split of the model over ranks.
    stage : int or None
        Pipeline stage of the rank; None sums over the stages, which take turns.
    """
    layers = split.layers_of(shape, stage)
    once = (each for layer in layers for each in layer.matrices if each.copies == 1 and not each.derived)
    linear = sum(matrix.rank_bytes(weights, split.tensor_parallel) for matrix in once)
    vectors = sum(layer.vectors for layer in layers)
    if not split.has_last(stage):
        return linear + vectors * VALUE_BYTES
    return linear + (vectors + shape.hidden_size) * VALUE_BYTES + _table_bytes(shape, split, shape.head)


def read_bytes(
    shape: ModelShape, weights: WeightFormat, split: Split = WHOLE, stage: int | None = None, tokens: int = 1
) -> float:
    """Return the bytes of weights that one rank reads in a step of some tokens; `stage` as in `shared_weight_bytes`.

    Parameters
    ----------
    shape
        Of the whole model.
    weights
        How the weights are stored.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0; None is all of them.
    tokens
        Of the step: they decide how many of the experts are read.
    """
    routed = (each.copy_bytes * read_copies(each, tokens) for each in experts(shape, weights, split, stage))
    return shared_weight_bytes(shape, weights, split, stage) + math.fsum(routed)


def read_copies(each: Experts, tokens: Quantity) -> Quantity:
    """Return how many experts some tokens are routed to, on average, each choosing evenly among all of them.

    Parameters
    ----------
    each : Experts
        The experts of some layers: copies in all, and active ones of a token.
    tokens : Quantity
        Tokens of a step: one number, or an array of any shape.

    Returns
    -------
    Quantity
        Expected number of different experts, n (1 - (1 - k/n)^tokens) for k of n, of the shape of `tokens`: the coupon
        collector's expectation with k drawn at a time.
    """
    kept: Quantity = (1.0 - each.active / each.copies) ** tokens
    return each.copies * (1.0 - kept)


def resident_bytes(shape: ModelShape, weights: WeightFormat, split: Split = WHOLE, stage: int | None = None) -> int:
    """Return the bytes of the weights that one rank holds; over all stages when `stage` is None.

    Parameters
    ----------
    shape
        Of the whole model.
    weights
        How the weights are stored.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0; None is all of them.
    """
    routed = sum(each.copy_bytes * each.copies for each in experts(shape, weights, split, stage))
    made = (each for layer in split.layers_of(shape, stage) for each in layer.matrices if each.derived)
    derived = sum(matrix.rank_bytes(weights, split.tensor_parallel) for matrix in made)
    resident = shared_weight_bytes(shape, weights, split, stage) + routed + derived
    if not split.has_first(stage):
        return resident
    resident += sum(matrix.rank_bytes(BF16, split.tensor_parallel) for matrix in shape.tower)
    # A tied head is the embedding itself, unless stages keep them apart.
    tied = shape.tied_embeddings and split.pipeline_parallel == 1
    return resident if tied else resident + _table_bytes(shape, split, shape.embedding)


def kv_bytes_per_token(
    shape: ModelShape,
    split: Split = WHOLE,
    stage: int | None = None,
    value_bytes: int = VALUE_BYTES,
    unlimited: bool = False,
) -> int:
    """Return the bytes that one token takes in one rank's KV cache; over all stages when `stage` is None.

    Parameters
    ----------
    shape : ModelShape
        Shape of the model.
    split : Split
        Split of the model over ranks.
    stage : int or None
        Pipeline stage of the rank; None sums over the stages.
    value_bytes : int
        Bytes of one value in the cache: 2, or 1 for a cache in 8 bit.
    unlimited : bool
        Leave out layers with a window: of a long sequence they keep no more.
    """
    kinds = attention_kinds(shape, split, stage)
    return sum(
        count * layer_kv_bytes(kind, split, value_bytes)
        for kind, count in kinds
        if not (unlimited and kind.window is not None)
    )


def layer_kv_bytes(attention: Attention, split: Split, value_bytes: int) -> int:
    """Return the bytes that one token takes in one rank's cache of one layer.

    Parameters
    ----------
    attention
        The layer's.
    split
        How the model is cut into ranks and stages, and the link between them.
    value_bytes
        Bytes of one value of the cache.
    """
    return attention.cached_values * value_bytes // min(split.tensor_parallel, attention.pieces)


@lru_cache(maxsize=1024)
def flops_per_token(shape: ModelShape, split: Split = WHOLE, stage: int | None = None, output_head: bool = True) -> int:
    """Return the floating point operations of one rank for one token: two for every weight that it is multiplied with.

    Attention over the context is not among them (`Attention.pair_operations`).

    Parameters
    ----------
    shape : ModelShape
        Shape of the model.
    split : Split
        Split of the model over ranks.
    stage : int or None
        Pipeline stage of the rank; None sums over the stages.
    output_head : bool
        Whether logits are wanted of this token: every decoded one, but only the last of a prompt.
    """
    tensor = split.tensor_parallel
    used = sum(
        matrix.active * matrix.outputs * matrix.inputs // matrix.share(tensor)
        for layer in split.layers_of(shape, stage)
        for matrix in layer.matrices
        if not matrix.derived
    )
    if output_head and split.has_last(stage):
        used += shape.table_parameters // tensor
    return 2 * used


@lru_cache(maxsize=1024)
def activation_bytes_per_token(shape: ModelShape, split: Split = WHOLE, stage: int | None = None) -> float:
    """Return the bytes of activations that one token moves through one rank's memory in one forward pass.

    Parameters
    ----------
    shape
        Of the whole model.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0; None is all of them.
    """
    layers = split.layers_of(shape, stage)
    return VALUE_BYTES * sum(each.moved_values + each.moved_values_split / split.tensor_parallel for each in layers)


@lru_cache(maxsize=1024)
def attention_kinds(
    shape: ModelShape, split: Split = WHOLE, stage: int | None = None
) -> tuple[tuple[Attention, int], ...]:
    """Return each way in which layers look back, and how many layers do.

    Parameters
    ----------
    shape
        Of the whole model.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0; None is all of them.
    """
    return tuple(Counter(layer.attention for layer in split.layers_of(shape, stage)).items())


def _table_bytes(shape: ModelShape, split: Split, stored: WeightFormat) -> int:
    """Return one rank's share of an embedding table or output head."""
    padded = -(-shape.vocabulary_size // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    entries = -(-padded // split.tensor_parallel)
    return stored.bytes_of(entries * shape.hidden_size, entries)
