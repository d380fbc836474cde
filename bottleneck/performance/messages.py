"""Messages between ranks in one forward pass: how many, and how large."""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck.performance.collectives import moved_bytes
from bottleneck.performance.model import VALUE_BYTES, ModelShape, Split


@dataclass(frozen=True)
class Messages:
    """Messages of one forward pass: how many, and the payload of each in bytes for every token of the pass."""

    count: int = 0
    bytes_per_token: int = 0


def allreduces(shape: ModelShape, split: Split, stage: int | None = None) -> Messages:
    """Return the all-reduces of one forward pass over a stage's layers, over all layers when `stage` is None.

    Two in each layer and one for the embedding, each of the hidden states. The gather of the logits at the end is not
    among them.

    Parameters
    ----------
    shape
        Of the whole model.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0; None is all of them.
    """
    if split.tensor_parallel == 1:
        return Messages()
    count = 2 * len(split.layers_of(shape, stage)) + (1 if split.has_first(stage) else 0)
    return Messages(count, shape.hidden_size * VALUE_BYTES)


def sends(shape: ModelShape, split: Split, stage: int | None = None) -> Messages:
    """Return the transfers from a stage to the next, of all stages when `stage` is None.

    Hidden states and residual together.

    Parameters
    ----------
    shape
        Of the whole model.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0; None is all of them.
    """
    if split.pipeline_parallel == 1 or (stage is not None and split.has_last(stage)):
        return Messages()
    return Messages(split.pipeline_parallel - 1 if stage is None else 1, 2 * shape.hidden_size * VALUE_BYTES)


def latency_seconds(shape: ModelShape, split: Split, stage: int | None = None) -> float:
    """Return the seconds of a forward pass's messages without bytes: they follow each other over the split's link.

    Parameters
    ----------
    shape
        Of the whole model.
    split
        How the model is cut into ranks and stages, and the link between them.
    stage
        Which stage, counted from 0; None is all of them.
    """
    if split.link is None:
        return 0.0
    reduced, passed = allreduces(shape, split, stage), sends(shape, split, stage)
    around = reduced.count * split.link.latency_of_allreduce(split.tensor_parallel)
    return around + passed.count * split.link.latency_of_passing()


def sent_bytes_per_token(shape: ModelShape, split: Split, stage: int | None = None) -> float:
    """Return the bytes that a rank sends for one token: its all-reduces, and what it passes on.

    Ranks that share layers each pass on their part of the hidden states (vLLM gathers them behind the link).

    Parameters
    ----------
    shape : ModelShape
        Shape of the model.
    split : Split
        Split of the model over ranks.
    stage : int or None
        Pipeline stage of the rank; None adds up a rank of every stage: they take turns.
    """
    reduced, passed = allreduces(shape, split, stage), sends(shape, split, stage)
    own = reduced.count * moved_bytes(float(reduced.bytes_per_token), split.tensor_parallel)
    return own + passed.count * passed.bytes_per_token / split.tensor_parallel
