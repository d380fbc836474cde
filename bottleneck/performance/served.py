"""A model as an engine serves it, the accelerator that it runs on, and one measured point of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bottleneck.performance.model import VALUE_BYTES, ModelShape, WeightFormat


@dataclass(frozen=True)
class Accelerator:
    """An accelerator's abilities, as probes measured them.

    Attributes
    ----------
    memory_bytes_per_second : float
        Rate of reading its memory.
    flops_per_second : float
        Rate of large bfloat16 matrix products.
    launch_seconds : float
        Start of one kernel.
    """

    name: str
    memory_bytes_per_second: float
    flops_per_second: float
    launch_seconds: float


@dataclass(frozen=True)
class Served:
    """A model as an engine serves it: what the arithmetic of a step depends on, besides the requests.

    Attributes
    ----------
    weights : WeightFormat
        How the weights of its linear layers are stored.
    max_num_batched_tokens : int
        Tokens of one forward pass at most.
    weight_scale : float
        Bytes of weights that an engine said it loaded, over those counted.
    kv_value_bytes : int
        Bytes of one value of the KV cache.
    """

    shape: ModelShape
    weights: WeightFormat
    max_num_batched_tokens: int
    weight_scale: float = 1.0
    kv_value_bytes: int = VALUE_BYTES

    def to_json(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            "shape": self.shape.to_json(),
            "weights": self.weights.name,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "kv_value_bytes": self.kv_value_bytes,
        }


@dataclass(frozen=True)
class Point:
    """One measured point: a batch of equal prompts.

    Attributes
    ----------
    prefill_seconds : float
        Until the first token of all of them.
    decode_step_seconds : float
        From there to the last token of all, by output token after the first.
    """

    batch: int
    prompt: int
    prefill_seconds: float
    decode_step_seconds: float
