"""Messages between ranks in one forward pass: how many, and how large."""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck.performance.collectives import moved_bytes
from bottleneck.performance.model import VALUE_BYTES, ModelShape, Split

STAGE_TRIPS = 8
"""One-way trips that follow each other whenever a step passes on to the next stage.

Sizes, metadata and tensors one by one, and the token's way back to the head. The slope of a step's time over the link's
latency in the recorded two-stage runs with a delay of 3 and 10 ms (tests/data/verdicts, pp2-links).
"""


@dataclass(frozen=True)
class Messages:
    """Messages of one forward pass: how many, and the payload of each in bytes for every token of the pass."""

    count: int = 0
    bytes_per_token: int = 0


def allreduces(shape: ModelShape, split: Split, stage: int | None = None) -> Messages:
    """Return the all-reduces of one forward pass over a stage's layers, over all layers when `stage` is None.

    Two in each layer and one for the embedding, each of the hidden states. The gather of the logits at the end is not
    among them.
    """
    if split.tensor_parallel == 1:
        return Messages()
    count = 2 * len(split.layers_of(shape, stage)) + (1 if split.has_first(stage) else 0)
    return Messages(count, shape.hidden_size * VALUE_BYTES)


def sends(shape: ModelShape, split: Split, stage: int | None = None) -> Messages:
    """Return the transfers from a stage to the next, of all stages when `stage` is None.

    Hidden states and residual together.
    """
    if split.pipeline_parallel == 1 or (stage is not None and split.has_last(stage)):
        return Messages()
    return Messages(split.pipeline_parallel - 1 if stage is None else 1, 2 * shape.hidden_size * VALUE_BYTES)


def sent_bytes_per_token(shape: ModelShape, split: Split) -> float:
    """Return the bytes that the busiest rank sends for one token: its all-reduces, and what it passes on.

    Ranks that share layers each pass on their part of the hidden states (vLLM gathers them behind the link).
    """

    def of_stage(stage: int) -> float:
        reduced, passed = allreduces(shape, split, stage), sends(shape, split, stage)
        own = reduced.count * moved_bytes(float(reduced.bytes_per_token), split.tensor_parallel)
        return own + passed.count * passed.bytes_per_token / split.tensor_parallel

    return max(of_stage(stage) for stage in range(split.pipeline_parallel))
