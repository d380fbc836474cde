"""Formats of stored weights: bits, scales and zero points of every format that engines load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

VALUE_BYTES = 2
"""Bytes of a value that is not quantized: bfloat16."""


@dataclass(frozen=True)
class WeightFormat:
    """Storage of weights and the rate at which they are multiplied.

    Attributes
    ----------
    name : str
        What it is called.
    bits : float
        Bits of a stored weight.
    group_size : int or None
        Weights of an output that share a scale; None is one scale for each output of a matrix.
    group_outputs : int
        Outputs that share it too: more than one in blocks of two dimensions.
    scale_bits, zero_point_bits : float
        Bits of a group's scale and of its zero point; 0 where it has none.
    arithmetic_gain : float
        Rate of the matrix units over their bfloat16 rate: 2 where both operands have 8 bits.
    measured_as : str
        Format whose efficiencies it is taken to have, where that is another: those were measured.
    """

    name: str
    bits: float
    group_size: int | None = None
    scale_bits: float = 0.0
    zero_point_bits: float = 0.0
    arithmetic_gain: float = 1.0
    measured_as: str = ""
    group_outputs: int = 1

    @property
    def kernels(self) -> str:
        """The format that its efficiencies are taken from (`efficiencies.TABLE`)."""
        return self.measured_as or self.name

    def bytes_of(self, weights: int, outputs: int) -> int:
        """Return the bytes of a matrix of some weights and outputs, with its scales and zero points.

        Parameters
        ----------
        weights : int
            Number of weights of the matrix.
        outputs : int
            Its outputs: without groups each has one scale.
        """
        groups = weights // (self.group_size * self.group_outputs) if self.group_size else outputs
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
        WeightFormat("fp16", 16, measured_as="bf16"),
        WeightFormat("awq", 4, 128, 16, 4, measured_as="w4a16"),
        WeightFormat("gptq", 4, 128, 16, 4, measured_as="w4a16"),
        WeightFormat("mxfp4", 4, 32, 8, measured_as="w4a16"),
        # Scales of a group in 8-bit floats, one more of a whole matrix.
        WeightFormat("nvfp4", 4, 16, 8, measured_as="w4a16"),
        # NF4 with a 32-bit scale for 64 weights (bitsandbytes, bnb_4bit_use_double_quant false).
        WeightFormat("bitsandbytes", 4, 64, 32, measured_as="w4a16"),
    )
}
"""The formats of vLLM's checkpoints, by name."""


@dataclass(frozen=True)
class Mixture:
    """Storage of a model's parts: a GGUF file has several types in it.

    Attributes
    ----------
    linear, embedding, head : WeightFormat
        Of linear layers, the embedding and the output head.
    others : mapping
        Name of a projection -> its format, where that is another.
    """

    linear: WeightFormat
    embedding: WeightFormat = BF16
    head: WeightFormat = BF16
    others: Mapping[str, WeightFormat] = field(default_factory=dict)


# Bits of a weight, scales included: bytes of a block over its weights (ggml-common.h, read).
_GGUF_BITS = {
    "F16": 16.0, "BF16": 16.0, "Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5,
    "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "IQ4_NL": 4.5, "IQ4_XS": 4.25,
}  # fmt: skip
# What llama-quantize makes of the projections where a file's name stands for a mixture; two types where each is used in
# half of the layers. The output head is Q6_K in all of them (llama-quant.cpp, read).
_GGUF_MIXTURES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "Q2_K": ("Q2_K", {"v_proj": ("Q4_K",), "o_proj": ("Q3_K",), "down_proj": ("Q3_K",)}),
    "Q3_K_S": ("Q3_K", {}),
    "Q3_K_M": ("Q3_K", {"v_proj": ("Q4_K",), "o_proj": ("Q4_K",), "down_proj": ("Q4_K",)}),
    "Q3_K_L": ("Q3_K", {"v_proj": ("Q5_K",), "o_proj": ("Q5_K",), "down_proj": ("Q5_K",)}),
    "Q4_K_S": ("Q4_K", {}),
    "Q4_K_M": ("Q4_K", {"v_proj": ("Q4_K", "Q6_K"), "down_proj": ("Q4_K", "Q6_K")}),
    "Q5_K_S": ("Q5_K", {}),
    "Q5_K_M": ("Q5_K", {"v_proj": ("Q5_K", "Q6_K"), "down_proj": ("Q5_K", "Q6_K")}),
    "Q6_K": ("Q6_K", {}),
    "IQ4_XS": ("IQ4_XS", {}),
    "IQ4_NL": ("IQ4_NL", {}),
    "Q4_0": ("Q4_0", {}),
    "Q4_1": ("Q4_1", {}),
    "Q5_0": ("Q5_0", {}),
    "Q5_1": ("Q5_1", {}),
}  # fmt: skip
_GGUF_PLAIN = ("Q8_0", "F16", "BF16")
GGUF_TYPES = (*_GGUF_MIXTURES, *_GGUF_PLAIN)


def _gguf(*types: str) -> WeightFormat:
    bits = math.fsum(_GGUF_BITS[each] for each in types) / len(types)
    return WeightFormat("+".join(types), bits, measured_as="w4a16" if bits < 7 else "w8a16" if bits < 16 else "bf16")


def mixture(name: str) -> Mixture | None:
    """Return how a model is stored under a format's name: one of `FORMATS`, or a GGUF type; None for another.

    Parameters
    ----------
    name : str
        Name of a format, or of a GGUF file's type in either case, such as "Q4_K_M".
    """
    if name in FORMATS:
        return Mixture(FORMATS[name])
    gguf = name.upper()
    if gguf in _GGUF_PLAIN:
        return Mixture(_gguf(gguf), _gguf(gguf), _gguf(gguf))
    if gguf not in _GGUF_MIXTURES:
        return None
    base, others = _GGUF_MIXTURES[gguf]
    found = {projection: _gguf(*types) for projection, types in others.items()}
    return Mixture(_gguf(base), _gguf(base), _gguf("Q6_K"), found)
