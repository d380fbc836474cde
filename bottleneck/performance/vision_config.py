"""Weights of a model's vision tower, by its `vision_config`: held on the first stage, and read for images alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import AliasChoices, Field

from bottleneck.performance.config_form import WITHOUT_BYTES, ConfigError, Form, read_form
from bottleneck.performance.shape import Matrix
from bottleneck.units import shown

# Towers whose feed-forward blocks are gated: three projections; the others have two.
_GATED = {"pixtral", "qwen2_5_vl"}
_TOWERS = {"pixtral", "siglip_vision_model", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"}


class _Vision(Form):
    without_bytes: ClassVar[re.Pattern[str]] = re.compile(
        WITHOUT_BYTES.pattern
        + "|tokens_per_second|window_size|fullatt_block_indexes|vision_use_head|projection_dim|spatial_patch_size"
        + "|in_chans",
        re.VERBOSE,
    )

    model_type: str
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    layers: int = Field(gt=0, validation_alias=AliasChoices("depth", "num_hidden_layers"))
    channels: int = Field(default=3, validation_alias=AliasChoices("in_channels", "num_channels"))
    patch_size: int = Field(gt=0)
    temporal_patch_size: int = 1
    spatial_merge_size: int = 1
    out_hidden_size: int | None = None
    num_position_embeddings: int = 0
    image_size: int | None = None
    deepstack_visual_indexes: tuple[int, ...] = ()
    heads: Any = Field(default=None, validation_alias=AliasChoices("num_heads", "num_attention_heads"))
    head_dim: Any = None


def tower(document: Mapping[str, Any], hidden_size: int, where: str) -> tuple[Matrix, ...]:
    """Return the matrices of a tower and of what maps its patches onto the language model's hidden state.

    Raises
    ------
    ConfigError
        For a tower or a field of it that is not understood.
    """
    where = f"{where}vision_config."
    kind = re.sub("_vision$", "", str(document.get("model_type", "")))
    if kind not in _TOWERS:
        raise ConfigError(f"{where}model_type: {shown(kind)}; expected one of {', '.join(sorted(_TOWERS))}")
    vision = read_form(_Vision, document, where)
    width, merged = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    outputs = vision.out_hidden_size or hidden_size
    positions = vision.num_position_embeddings
    if kind == "siglip_vision_model" and vision.image_size:
        positions = (vision.image_size // vision.patch_size) ** 2
    layers = vision.layers
    inner = (3 if kind in _GATED else 2) * vision.intermediate_size
    mergers = 1 + len(vision.deepstack_visual_indexes)
    return (
        Matrix("patches", width, vision.channels * vision.temporal_patch_size * vision.patch_size**2, 1),
        Matrix("positions", positions, width, 1),
        Matrix("attention", 4 * layers * width, width),
        Matrix("feed_forward", layers * inner, width),
        Matrix("merger", mergers * merged, merged),
        Matrix("projector", mergers * outputs, merged),
    )
