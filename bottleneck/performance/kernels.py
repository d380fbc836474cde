"""Know the kernels that an engine picks by the size of a step."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from bottleneck.performance.model import ModelShape, WeightFormat
from bottleneck.performance.scheduler import Floats
from bottleneck.performance.served import Accelerator

_HOPPER = re.compile(r"\bG?H(100|200|800|20)\b")
_LARGEST = 256


# vLLM multiplies by some projections at once, as one matrix.
_MERGED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}


@lru_cache(maxsize=64)
def merged_linears(shape: ModelShape) -> tuple[tuple[int, int], ...]:
    """Return (outputs, inputs) of the products of a model's first layer as vLLM merges them.

    Parameters
    ----------
    shape : ModelShape
        Shape of the model, with at least one layer.

    Returns
    -------
    tuple[tuple[int, int], ...]
        One pair for every product, in the order in which the layer has them; numbers of weights, not bytes.
    """
    merged: dict[str, tuple[int, int]] = {}
    for matrix in shape.layers[0].matrices:
        name = _MERGED.get(matrix.name, matrix.name)
        outputs, _ = merged.get(name, (0, 0))
        merged[name] = outputs + matrix.outputs, matrix.inputs
    return tuple(merged.values())


def weight_passes(weights: WeightFormat, accelerator: Accelerator, shape: ModelShape, tokens: Floats) -> Floats:
    """Return how often a step of some tokens takes its weights through dequantisation, for small steps.

    vLLM's 4-bit kernels for Hopper (Machete) unpack the weights anew for every tile of tokens, and choose the tile by
    the product's size: for 33 to 64 tokens, small products get tiles of 16 tokens, for 129 to 256 tokens tiles of 64
    or 128; all else has one tile up to 256 tokens (csrc/quantization/machete/generate.py, read; tuned on an H100).
    Above that many tokens a product is bound by its arithmetic, whose efficiency is fitted.

    Parameters
    ----------
    weights
        How the weights are stored.
    accelerator
        Whose kernels are meant.
    shape
        Of the whole model.
    tokens
        Of each step, shape (steps,).
    """
    passes = np.ones_like(tokens)
    if weights.bits != 4 or not _HOPPER.search(accelerator.name):
        return passes
    linears = merged_linears(shape)
    whole = sum(outputs * inputs for outputs, inputs in linears)
    small = (tokens > 32) & (tokens <= 64)
    large = (tokens > 128) & (tokens <= _LARGEST)
    for outputs, inputs in linears:
        share = outputs * inputs / whole
        if outputs <= 6144 and inputs <= 6144:
            passes = passes + np.where(small, share * (np.ceil(tokens / 16) - 1), 0.0)
        if outputs <= 8192 and inputs <= 8192:
            tile = 64 if outputs <= 4096 and inputs <= 4096 else 128
            passes = passes + np.where(large, share * (np.ceil(tokens / tile) - 1), 0.0)
    return passes
