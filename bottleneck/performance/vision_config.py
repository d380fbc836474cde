"""Weights of a model's vision tower, by its `vision_config`: kept on the first stage, and read for images alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from bottleneck.performance.config_form import WITHOUT_BYTES, ConfigError, Form, read_form
from bottleneck.performance.shape import Matrix
from bottleneck.units import shown

# Towers whose feed-forward blocks are gated: three projections; the others have two.
_GATED = {"pixtral", "qwen2_5_vl", "gemma4"}
_LLAMA4 = "llama4_vision_model"
_TOWERS = {
    *("pixtral", "siglip_vision_model", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    *("gemma4", _LLAMA4),
}


class _Vision(Form):
    without_bytes: ClassVar[re.Pattern[str]] = re.compile(
        WITHOUT_BYTES.pattern
        + "|tokens_per_second|window_size|fullatt_block_indexes|vision_use_head|projection_dim|spatial_patch_size"
        + "|in_chans|pixel_shuffle_ratio|projector_dropout|vision_feature_select_strategy|multi_modal_projector_bias"
        + "|pooling_kernel_size|standardize|num_key_value_heads|attention_bias"
        + "|default_output_length",
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
    heads: object = Field(default=None, validation_alias=AliasChoices("num_heads", "num_attention_heads"))
    head_dim: object = None
    projector_input_dim: int = 0
    projector_output_dim: int = 0
    vision_output_dim: int = 0
    position_embedding_size: int = 0
    use_clipped_linears: Literal[False] = False


def tower(document: Mapping[str, Any], hidden_size: int, where: str) -> tuple[Matrix, ...]:
    """Return the matrices of a tower and of what maps its patches onto the language model's hidden state.

    Parameters
    ----------
    document
        The tower's own mapping of a config.json.
    hidden_size
        Width of the language model's hidden state.
    where
        The file and the key that it stands under.

    Raises
    ------
    ConfigError
        For a tower or a field of it that is not understood.
    """
    where = f"{where}vision_config."
    kind = re.sub("_vision$", "", str(document.get("model_type", "")))
    if kind not in _TOWERS:
        raise ConfigError(f"{where}model_type: {shown(kind)}; expected one of {', '.join(sorted(_TOWERS))}")
    vision = read_form(_Vision, _own_width(document), where)
    width, merged = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    outputs = vision.out_hidden_size or hidden_size
    positions = vision.num_position_embeddings
    if kind in ("siglip_vision_model", _LLAMA4) and vision.image_size:
        positions = (vision.image_size // vision.patch_size) ** 2
    layers = vision.layers
    inner = (3 if kind in _GATED else 2) * vision.intermediate_size
    mergers = 1 + len(vision.deepstack_visual_indexes)
    merging: tuple[Matrix, ...] = (
        Matrix("merger", mergers * merged, merged),
        Matrix("projector", mergers * outputs, merged),
    )
    if kind == "gemma4":
        # Positions across and down; what is pooled needs no weights.
        positions = 2 * vision.position_embedding_size
        merging = (Matrix("projector", hidden_size, width),)
    if kind == _LLAMA4:
        merger_outputs, projector_outputs = vision.projector_input_dim, vision.projector_output_dim
        merging = (
            Matrix("merger", merger_outputs, vision.intermediate_size),
            Matrix("merger", projector_outputs, projector_outputs),
            Matrix("projector", hidden_size, vision.vision_output_dim),
        )
    return (
        Matrix("patches", width, vision.channels * vision.temporal_patch_size * vision.patch_size**2, 1),
        Matrix("positions", positions, width, 1),
        Matrix("attention", 4 * layers * width, width),
        Matrix("feed_forward", layers * inner, width),
        *merging,
    )


def _own_width(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return Qwen2-VL's fields under the names of the later ones: there `hidden_size` is what the tower gives."""
    if "embed_dim" not in document:
        return document
    width, ratio = document["embed_dim"], document.get("mlp_ratio", 4)
    rest = {key: value for key, value in document.items() if key not in ("embed_dim", "mlp_ratio")}
    inner = ratio * width if isinstance(width, int) and isinstance(ratio, int) else None
    return {**rest, "hidden_size": width, "intermediate_size": inner, "out_hidden_size": document.get("hidden_size")}
