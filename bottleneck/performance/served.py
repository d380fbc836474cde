"""A model as an engine serves it, the accelerator that it runs on, and one measured point of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bottleneck.performance.fit import ACTIVATION_BYTES

if TYPE_CHECKING:
    from bottleneck.profile.types import Quantization, Shape

DEFAULT_BATCHED_TOKENS = 8192
"""Tokens of a forward pass when a sweep does not say: vLLM's default of a server on a data-centre GPU."""


@dataclass(frozen=True)
class Precision:
    """How weights are stored and at which rate they are multiplied.

    Attributes
    ----------
    name : str
        What it is called.
    bits : int
        Bits of a stored weight.
    group_size : int or None
        Weights that share a scale; None is one scale for each output channel.
    arithmetic : float
        Rate of the matrix units over their bfloat16 rate: 2 where both operands have 8 bits.
    """

    name: str
    bits: int
    group_size: int | None = 128
    arithmetic: float = 1.0

    def quantization(self, shape: Shape) -> Quantization:
        """Return it the way a profile writes it."""
        from bottleneck.profile.types import Quantization

        return Quantization.model_validate({"bits": self.bits, "group_size": self.group_size or shape.hidden_size})


PRECISIONS: dict[str, Precision] = {
    "bf16": Precision("bf16", 16),
    "w4a16": Precision("w4a16", 4),
    "w8a16": Precision("w8a16", 8),
    "fp8": Precision("fp8", 8, None, 2.0),
    "w8a8": Precision("w8a8", 8, None, 2.0),
}


@dataclass(frozen=True)
class Accelerator:
    """What an accelerator can do, as probes measured it.

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
    weight_read_bytes : float
        Bytes of weights that a whole model reads in one step, embedding table not among them.
    kv_value_bytes : int
        Bytes of one value of the KV cache.
    max_num_batched_tokens : int
        Tokens of one forward pass at most.
    """

    shape: Shape
    precision: Precision
    weight_read_bytes: float
    kv_value_bytes: int = ACTIVATION_BYTES
    max_num_batched_tokens: int = DEFAULT_BATCHED_TOKENS


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
