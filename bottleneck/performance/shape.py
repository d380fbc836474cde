"""Dimensions of a model: the matrices of its layers, how they look back, and how all of that is split over ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bottleneck.performance.collectives import Link
from bottleneck.performance.formats import BF16, WeightFormat


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
    by_inputs : bool
        Whether ranks cut it by its inputs, not by its outputs.
    multiples : tuple of int
        What a rank's part of the cut dimension, and the whole of the other one, are padded to a multiple of.
    derived : bool
        Whether an engine makes it of other weights when it loads them, and holds both.
    """

    name: str
    outputs: int
    inputs: int
    pieces: int | None = None
    copies: int = 1
    active: int = 1
    stored: WeightFormat | None = None
    by_inputs: bool = False
    multiples: tuple[int, int] = (1, 1)
    derived: bool = False

    @property
    def parameters(self) -> int:
        """Weights of all copies."""
        return self.copies * self.outputs * self.inputs

    def share(self, ranks: int) -> int:
        """Return into how many parts some ranks cut it.

        Parameters
        ----------
        ranks : int
            Tensor parallel ranks, at least 1.

        Returns
        -------
        int
            Number of parts; fewer than ranks where the matrix has fewer pieces, which some ranks have a copy of then.
        """
        return ranks if self.pieces is None else min(ranks, self.pieces)

    def rank_bytes(self, weights: WeightFormat, ranks: int) -> int:
        """Return the bytes of one rank's part of one copy, in the model's format if it has none of its own.

        Parameters
        ----------
        weights : WeightFormat
            Format of the model's linear layers.
        ranks : int
            Tensor parallel ranks, at least 1.
        """
        cut, whole = (self.inputs, self.outputs) if self.by_inputs else (self.outputs, self.inputs)
        cut = _padded(-(-cut // self.share(ranks)), self.multiples[0])
        whole = _padded(whole, self.multiples[1])
        return (self.stored or weights).bytes_of(cut * whole, whole if self.by_inputs else cut)


@dataclass(frozen=True)
class Attention:
    """Attention of a layer: its heads, and how far back they look.

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
        Whether the output head is the embedding's table: then it is kept once.
    embedding, head : WeightFormat
        How they are stored.
    tower : tuple of Matrix
        Weights for images and sound, which no text reads.
    """

    layers: tuple[Layer, ...]
    hidden_size: int
    attention_heads: int
    key_value_heads: int
    vocabulary_size: int
    context_length: int
    tied_embeddings: bool = False
    embedding: WeightFormat = BF16
    head: WeightFormat = BF16
    tower: tuple[Matrix, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        """Work the hash out once: shapes are keys of caches, and a deep one takes a while."""
        fields = (self.layers, self.hidden_size, self.vocabulary_size, self.tied_embeddings, self.head)
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


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class Split:
    """Split of a model over ranks.

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
    overlapping : bool
        Stages work on parts of a batch side by side; False where all wait for the one that has the whole batch.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    link: Link | None = None
    partition: tuple[int, ...] = ()
    overlapping: bool = True

    @property
    def busy_stages(self) -> int:
        """Stages that work at the same time."""
        return self.pipeline_parallel if self.overlapping else 1

    @property
    def ranks(self) -> int:
        """Ranks of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    def problem(self, shape: ModelShape) -> str | None:
        """Return why a model cannot be split like this, or None.

        Parameters
        ----------
        shape : ModelShape
            Shape of the model.

        Returns
        -------
        str or None
            What was seen and what is expected, such as "tensor parallel 3; expected a divisor of 48 attention heads".
        """
        tensor, keys = self.tensor_parallel, shape.key_value_heads
        # More ranks than heads of keys and values have copies of them.
        if shape.attention_heads % tensor or max(keys, tensor) % min(keys, tensor):
            return (
                f"tensor parallel {tensor}; expected a divisor of {shape.attention_heads} attention heads, and a "
                f"divisor or a multiple of {keys} key and value heads"
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

        Parameters
        ----------
        layers : int
            Layers of the model, at least one for each stage.

        Returns
        -------
        tuple[int, ...]
            One number for every stage, from the first; they add up to `layers`.
        """
        if self.partition:
            return self.partition
        counts = [layers // self.pipeline_parallel] * self.pipeline_parallel
        for extra in range(layers % self.pipeline_parallel):
            counts[-2 - extra] += 1
        return tuple(counts)

    def layers_of(self, shape: ModelShape, stage: int | None) -> tuple[Layer, ...]:
        """Return the layers of a stage; all of them for None.

        Parameters
        ----------
        shape : ModelShape
            Shape of the model, which can be split like this.
        stage : int or None
            Number of the stage from 0.
        """
        if stage is None:
            return shape.layers
        counts = self.stage_layers(len(shape.layers))
        first = sum(counts[:stage])
        return shape.layers[first : first + counts[stage]]

    def has_first(self, stage: int | None) -> bool:
        """Return whether a stage has the embedding; None is all stages.

        Parameters
        ----------
        stage : int or None
            Number of the stage from 0.
        """
        return stage in (None, 0)

    def has_last(self, stage: int | None) -> bool:
        """Return whether a stage has the output head; None is all stages.

        Parameters
        ----------
        stage : int or None
            Number of the stage from 0.
        """
        return stage in (None, self.pipeline_parallel - 1)


WHOLE = Split()
