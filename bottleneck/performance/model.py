"""A model in numbers: its matrices, what a token leaves in the cache, how its weights are stored and split over ranks.

Everything here is counted, not measured: parameters from the model's dimensions, bytes from how they are stored. How
the work is split (vLLM 0.32, read in its source): a layer's query, key, value, gate and up projections by output, its
output and down projections by input; the embedding and the output head by vocabulary entries, padded to a multiple of
64; norms are on every rank. Pipeline stages hold consecutive layers, the first also the embedding, the last also the
final norm and the output head.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bottleneck.performance.collectives import Link

if TYPE_CHECKING:
    from bottleneck.performance.collectives import Quantity

VALUE_BYTES = 2
"""Bytes of a value that is not quantized: bfloat16."""
_VOCABULARY_PADDING = 64


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored and at which rate they are multiplied.

    Attributes
    ----------
    name : str
        What it is called.
    bits : float
        Bits of a stored weight.
    group_size : int or None
        Weights that share a scale; None is one scale for each output of a matrix.
    scale_bits, zero_point_bits : float
        Bits of a group's scale and of its zero point; 0 where it has none.
    arithmetic_gain : float
        Rate of the matrix units over their bfloat16 rate: 2 where both operands have 8 bits.
    """

    name: str
    bits: float
    group_size: int | None = None
    scale_bits: float = 0.0
    zero_point_bits: float = 0.0
    arithmetic_gain: float = 1.0

    def bytes_of(self, weights: int, outputs: int) -> int:
        """Return the bytes of a matrix of some weights and outputs, with its scales and zero points."""
        groups = weights // self.group_size if self.group_size else outputs
        return math.ceil((weights * self.bits + groups * (self.scale_bits + self.zero_point_bits)) / 8)


BF16 = WeightFormat("bf16", 16)
FORMATS: dict[str, WeightFormat] = {
    each.name: each
    for each in (
        BF16,
        WeightFormat("w4a16", 4, 128, 16),
        WeightFormat("w8a16", 8, 128, 16),
        WeightFormat("fp8", 8, None, 16, arithmetic_gain=2.0),
        WeightFormat("w8a8", 8, None, 16, arithmetic_gain=2.0),
    )
}


@dataclass(frozen=True)
class Matrix:
    """Weights of one projection of a layer.

    Attributes
    ----------
    pieces : int or None
        Into how many equal parts ranks can cut it at most: 1 is whole on every rank, None as many as there are.
    copies, active : int
        Experts, and how many of them a token is multiplied with; both 1 for a projection that every token takes.
    stored : WeightFormat or None
        How it is stored where that is not the model's format, such as a router that stays in 16 bit.
    """

    name: str
    outputs: int
    inputs: int
    pieces: int | None = None
    copies: int = 1
    active: int = 1
    stored: WeightFormat | None = None

    @property
    def parameters(self) -> int:
        """Weights of all copies."""
        return self.copies * self.outputs * self.inputs

    def share(self, ranks: int) -> int:
        """Return into how many parts some ranks cut it."""
        return ranks if self.pieces is None else min(ranks, self.pieces)


@dataclass(frozen=True)
class Attention:
    """How a layer looks back.

    Attributes
    ----------
    cached_values : int
        Values that it keeps of one token.
    pieces : int
        Into how many equal parts ranks can cut them at most: the heads of keys and values; 1 for a latent vector.
    pair_operations : int
        Floating point operations for one pair of a token and a token that it attends to, over all heads.
    window : int or None
        Most tokens that it looks back; None is all of them.
    state_bytes : int
        What it keeps of a sequence whatever its length.
    """

    cached_values: int
    pieces: int
    pair_operations: int
    window: int | None = None
    state_bytes: int = 0


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes
    ----------
    vectors : int
        Parameters of norms and biases, in bfloat16 on every rank.
    moved_values, moved_values_split : int
        Values of one token's activations that its kernels move through memory: on every rank, and divided over ranks.
    buffer_values_split : int
        Values of one token's widest feed-forward buffers, divided over ranks.
    """

    matrices: tuple[Matrix, ...]
    attention: Attention
    vectors: int
    moved_values: int
    moved_values_split: int
    buffer_values_split: int


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a model.

    Attributes
    ----------
    attention_heads, key_value_heads : int
        What tensor parallelism has to divide.
    context_length : int
        Most tokens of one sequence.
    tied_embeddings : bool
        Whether the output head is the embedding's table: then it is held once.
    """

    layers: tuple[Layer, ...]
    hidden_size: int
    attention_heads: int
    key_value_heads: int
    vocabulary_size: int
    context_length: int
    tied_embeddings: bool = False
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        """Work the hash out once: shapes are keys of caches, and a deep one takes a while."""
        fields = (self.layers, self.hidden_size, self.vocabulary_size, self.context_length, self.tied_embeddings)
        object.__setattr__(self, "_hash", hash(fields))

    def __hash__(self) -> int:
        """Return the hash of its dimensions."""
        return self._hash

    @property
    def table_parameters(self) -> int:
        """Weights of the embedding, and of the output head."""
        return self.vocabulary_size * self.hidden_size

    def to_json(self) -> dict[str, Any]:
        """Return its main dimensions."""
        names = ("hidden_size", "attention_heads", "key_value_heads", "vocabulary_size", "context_length")
        return {"layers": len(self.layers), **{name: getattr(self, name) for name in names}}


def grouped_attention(hidden_size: int, heads: int, key_value_heads: int, head_dim: int) -> tuple[Matrix, ...]:
    """Return the projections of attention whose query heads share keys and values in groups."""
    queries, keys = heads * head_dim, key_value_heads * head_dim
    return (
        Matrix("q_proj", queries, hidden_size),
        Matrix("k_proj", keys, hidden_size, key_value_heads),
        Matrix("v_proj", keys, hidden_size, key_value_heads),
        Matrix("o_proj", hidden_size, queries),
    )


def gated_feed_forward(hidden_size: int, inner: int, copies: int = 1, active: int = 1) -> tuple[Matrix, ...]:
    """Return the projections of a gated feed-forward block, or of so many experts."""
    return (
        Matrix("gate_proj", inner, hidden_size, None, copies, active),
        Matrix("up_proj", inner, hidden_size, None, copies, active),
        Matrix("down_proj", hidden_size, inner, None, copies, active),
    )


def dense_shape(
    *,
    layers: int,
    hidden_size: int,
    intermediate_size: int,
    attention_heads: int,
    key_value_heads: int,
    head_dim: int,
    vocabulary_size: int,
    context_length: int,
    tied_embeddings: bool = False,
) -> ModelShape:
    """Return the shape of a model whose layers are all alike: grouped attention and one gated feed-forward block.

    Activations are counted from the kernels of a layer: two norms with their residuals (8 hidden), the projections'
    inputs and outputs (4 hidden, 2 queries, keys and values), the gated product (4 intermediate).
    """
    layer = Layer(
        matrices=(
            *grouped_attention(hidden_size, attention_heads, key_value_heads, head_dim),
            *gated_feed_forward(hidden_size, intermediate_size),
        ),
        attention=Attention(2 * key_value_heads * head_dim, key_value_heads, 4 * attention_heads * head_dim),
        vectors=2 * hidden_size,
        moved_values=12 * hidden_size,
        moved_values_split=(2 * attention_heads + 4 * key_value_heads) * head_dim + 4 * intermediate_size,
        buffer_values_split=3 * intermediate_size,
    )
    return ModelShape(
        (layer,) * layers,
        hidden_size,
        attention_heads,
        key_value_heads,
        vocabulary_size,
        context_length,
        tied_embeddings,
    )


@dataclass(frozen=True)
class Split:
    """How a model is split over ranks.

    Attributes
    ----------
    tensor_parallel : int
        Ranks that share every layer.
    pipeline_parallel : int
        Stages that take turns on the layers.
    partition : tuple of int
        Layers of each stage, as VLLM_PP_LAYER_PARTITION says; empty is vLLM's own choice.
    link : Link or None
        What carries their messages; None for one rank, or where only bytes are asked for.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    link: Link | None = None
    partition: tuple[int, ...] = ()

    @property
    def ranks(self) -> int:
        """Ranks of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    def problem(self, shape: ModelShape) -> str | None:
        """Return why a model cannot be split like this, or None."""
        tensor = self.tensor_parallel
        if shape.attention_heads % tensor or shape.key_value_heads % tensor:
            return (
                f"tensor parallel {tensor}; expected a divisor of {shape.attention_heads} attention heads "
                f"and {shape.key_value_heads} key and value heads"
            )
        layers = len(shape.layers)
        if self.pipeline_parallel > layers:
            return f"pipeline parallel {self.pipeline_parallel}; expected at most one stage a layer, {layers}"
        if self.partition and (len(self.partition) != self.pipeline_parallel or sum(self.partition) != layers):
            return (
                f"layers {', '.join(map(str, self.partition))}; expected {self.pipeline_parallel} stages of "
                f"{layers} layers together"
            )
        return None

    def stage_layers(self, layers: int) -> tuple[int, ...]:
        """Return how many layers each stage has.

        vLLM gives what does not divide to the stages before the last, one each, from the second last backwards; the
        last one has the output head already (`vllm/distributed/utils.py`, get_pp_indices, 0.32).
        """
        if self.partition:
            return self.partition
        counts = [layers // self.pipeline_parallel] * self.pipeline_parallel
        for extra in range(layers % self.pipeline_parallel):
            counts[-2 - extra] += 1
        return tuple(counts)

    def layers_of(self, shape: ModelShape, stage: int | None) -> tuple[Layer, ...]:
        """Return the layers of a stage; all of them for None."""
        if stage is None:
            return shape.layers
        counts = self.stage_layers(len(shape.layers))
        first = sum(counts[:stage])
        return shape.layers[first : first + counts[stage]]

    def has_first(self, stage: int | None) -> bool:
        """Whether a stage has the embedding; None is all stages."""
        return stage in (None, 0)

    def has_last(self, stage: int | None) -> bool:
        """Whether a stage has the output head; None is all stages."""
        return stage in (None, self.pipeline_parallel - 1)


WHOLE = Split()


@dataclass(frozen=True)
class Parameters:
    """Parameters of a whole model, by what they are: the quantized projections, and the rest."""

    linear: int
    embedding: int
    output_head: int
    norms: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.embedding + self.output_head + self.norms


def parameters(shape: ModelShape) -> Parameters:
    """Return the parameters of a model; a tied output head has none of its own."""
    return Parameters(
        linear=sum(matrix.parameters for layer in shape.layers for matrix in layer.matrices),
        embedding=shape.table_parameters,
        output_head=0 if shape.tied_embeddings else shape.table_parameters,
        norms=sum(layer.vectors for layer in shape.layers) + shape.hidden_size,
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
    """Return the routed weights of one rank, those of all layers that are routed alike together."""
    sums: dict[tuple[int, int], int] = {}
    for layer in split.layers_of(shape, stage):
        for matrix in layer.matrices:
            if matrix.copies > 1:
                key = matrix.copies, matrix.active
                sums[key] = sums.get(key, 0) + _rank_bytes(matrix, weights, split.tensor_parallel) // matrix.copies
    return tuple(Experts(copy_bytes, *key) for key, copy_bytes in sums.items())


@lru_cache(maxsize=1024)
def shared_weight_bytes(
    shape: ModelShape, weights: WeightFormat, split: Split = WHOLE, stage: int | None = None
) -> int:
    """Return the bytes of weights that one rank reads in every step, whatever is in it.

    Every weight once, but for the embedding table, of which a step reads a few rows, and for `experts`.

    Parameters
    ----------
    stage : int or None
        Pipeline stage of the rank; None sums over the stages, which take turns.
    """
    layers = split.layers_of(shape, stage)
    once = (matrix for layer in layers for matrix in layer.matrices if matrix.copies == 1)
    linear = sum(_rank_bytes(matrix, weights, split.tensor_parallel) for matrix in once)
    vectors = sum(layer.vectors for layer in layers)
    if not split.has_last(stage):
        return linear + vectors * VALUE_BYTES
    return linear + (vectors + shape.hidden_size) * VALUE_BYTES + _table_bytes(shape, split)


def read_bytes(
    shape: ModelShape, weights: WeightFormat, split: Split = WHOLE, stage: int | None = None, tokens: int = 1
) -> float:
    """Return the bytes of weights that one rank reads in a step of some tokens; `stage` as in `shared_weight_bytes`."""
    routed = (each.copy_bytes * read_copies(each, tokens) for each in experts(shape, weights, split, stage))
    return shared_weight_bytes(shape, weights, split, stage) + math.fsum(routed)


def read_copies(each: Experts, tokens: Quantity) -> Quantity:
    """Return how many experts some tokens are routed to, on average, each choosing evenly among all of them."""
    kept: Quantity = (1.0 - each.active / each.copies) ** tokens
    return each.copies * (1.0 - kept)


def held_bytes(shape: ModelShape, weights: WeightFormat, split: Split = WHOLE, stage: int | None = None) -> int:
    """Return the bytes of the weights that one rank holds; over all stages when `stage` is None."""
    routed = sum(each.copy_bytes * each.copies for each in experts(shape, weights, split, stage))
    held = shared_weight_bytes(shape, weights, split, stage) + routed
    # A tied head is the embedding itself, unless stages keep them apart.
    tied = shape.tied_embeddings and (stage is None or split.pipeline_parallel == 1)
    return held + (_table_bytes(shape, split) if split.has_first(stage) and not tied else 0)


def kv_bytes_per_token(
    shape: ModelShape, split: Split = WHOLE, stage: int | None = None, value_bytes: int = VALUE_BYTES
) -> int:
    """Return the bytes that one token takes in one rank's KV cache; over all stages when `stage` is None."""
    kinds = attention_kinds(shape, split, stage)
    return sum(count * layer_kv_bytes(kind, split, value_bytes) for kind, count in kinds)


def layer_kv_bytes(attention: Attention, split: Split, value_bytes: int) -> int:
    """Return the bytes that one token takes in one rank's cache of one layer."""
    return attention.cached_values * value_bytes // min(split.tensor_parallel, attention.pieces)


@lru_cache(maxsize=1024)
def flops_per_token(shape: ModelShape, split: Split = WHOLE, stage: int | None = None, output_head: bool = True) -> int:
    """Return the floating point operations of one rank for one token: two for every weight that it is multiplied with.

    Attention over the context is not among them (`Attention.pair_operations`).

    Parameters
    ----------
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
    )
    if output_head and split.has_last(stage):
        used += shape.table_parameters // tensor
    return 2 * used


@lru_cache(maxsize=1024)
def activation_bytes_per_token(shape: ModelShape, split: Split = WHOLE, stage: int | None = None) -> float:
    """Return the bytes of activations that one token moves through one rank's memory in one forward pass."""
    layers = split.layers_of(shape, stage)
    return VALUE_BYTES * sum(each.moved_values + each.moved_values_split / split.tensor_parallel for each in layers)


@lru_cache(maxsize=1024)
def attention_kinds(
    shape: ModelShape, split: Split = WHOLE, stage: int | None = None
) -> tuple[tuple[Attention, int], ...]:
    """Return each way in which layers look back, and how many layers do."""
    return tuple(Counter(layer.attention for layer in split.layers_of(shape, stage)).items())


def _rank_bytes(matrix: Matrix, weights: WeightFormat, ranks: int) -> int:
    stored = matrix.stored or weights
    return matrix.copies * (stored.bytes_of(matrix.outputs * matrix.inputs, matrix.outputs) // matrix.share(ranks))


def _table_bytes(shape: ModelShape, split: Split) -> int:
    """Return one rank's share of an embedding table or output head."""
    padded = -(-shape.vocabulary_size // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    return -(-padded // split.tensor_parallel) * shape.hidden_size * VALUE_BYTES
