"""Name the fields of a language model's config.json: what is understood, and under which other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from bottleneck.performance.config_form import ConfigError, Form
from bottleneck.units import shown

LayerKind = Literal["full_attention", "sliding_attention", "linear_attention", "convolution", "mlp", "moe"]
# Other words for a kind of layer. A chunk is a window that moves on by its own length.
_KINDS = {
    "attention": "full_attention",
    "indexed_attention": "full_attention",
    "chunked_attention": "sliding_attention",
    "conv": "convolution",
    "mamba": "linear_attention",
    "mamba2": "linear_attention",
    "M": "linear_attention",
    "*": "full_attention",
    "-": "mlp",
    "E": "moe",
}

# Other names of the same field.
_NAMES = {
    "qkv_bias": "attention_bias",
    "num_experts": "experts",
    "num_local_experts": "experts",
    "n_routed_experts": "experts",
    "num_experts_per_tok": "experts_per_token",
    "n_shared_experts": "shared_experts",
    "_sliding_window_pattern": "sliding_window_pattern",
    "attention_chunk_size": "sliding_window",
    "num_shared_experts": "shared_experts",
    "moe_shared_expert_intermediate_size": "shared_expert_intermediate_size",
    "top_k_experts": "experts_per_token",
    "interleave_moe_layer_step": "decoder_sparse_step",
    "layers_block_type": "layer_types",
    "hybrid_override_pattern": "layer_types",
    # Ernie 4.5.
    "moe_num_experts": "experts",
    "moe_k": "experts_per_token",
    "moe_num_shared_experts": "shared_experts",
    "moe_layer_start_index": "first_k_dense_replace",
    "moe_layer_interval": "decoder_sparse_step",
    "attention_head_dim": "head_dim",
    "use_bias": "attention_bias",
    "use_qkv_bias": "attention_bias",
    # Mamba 2, by Nemotron's names and by those of Granite and Bamba.
    "mamba_num_heads": "mamba_heads",
    "mamba_n_heads": "mamba_heads",
    "mamba_head_dim": "mamba_width",
    "mamba_d_head": "mamba_width",
    "n_groups": "mamba_groups",
    "mamba_n_groups": "mamba_groups",
    "ssm_state_size": "mamba_states",
    "mamba_d_state": "mamba_states",
    "conv_kernel": "mamba_kernel",
    "mamba_d_conv": "mamba_kernel",
    # LFM2.
    "conv_L_cache": "convolution_kernel",
    "num_heads": "num_attention_heads",
    "num_dense_layers": "first_k_dense_replace",
    "block_ff_dim": "intermediate_size",
}


class Fields(Form):
    """The fields of a language model, each under one name; None where it is not there."""

    model_type: str
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    intermediate_size: int | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    attention_out_bias: bool | None = None
    mlp_bias: bool = False
    quantization_config: dict[str, object] | None = None
    # Sliding windows and mixed layers.
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    sliding_window_pattern: int | None = None
    layer_types: tuple[LayerKind, ...] | None = None
    attn_type_list: tuple[Literal[1], ...] | None = None
    full_attention_interval: int | None = None
    # Gemma 4: layers without a window have heads of their own width and number, whose values are their keys.
    global_head_dim: int | None = None
    num_global_key_value_heads: int | None = None
    attention_k_eq_v: bool = False
    enable_moe_block: bool = False
    use_double_wide_mlp: Literal[False] = False
    num_kv_shared_layers: Literal[0] | None = None
    hidden_size_per_layer_input: Literal[0] | None = None
    vocab_size_per_layer_input: int | None = None
    # Experts.
    experts: int | None = None
    experts_per_token: int | None = None
    moe_intermediate_size: int | None = None
    shared_experts: int | None = None
    shared_expert_intermediate_size: int | None = None
    shared_intermediate_size: int | None = None
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] | None = None
    # Multi-head latent attention.
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    # Linear attention (gated delta net).
    linear_conv_kernel_dim: int | None = None
    linear_key_head_dim: int | None = None
    linear_value_head_dim: int | None = None
    linear_num_key_heads: int | None = None
    linear_num_value_heads: int | None = None
    # Mamba 2; what its inner width is besides heads of a width says the same again.
    mamba_heads: int | None = None
    mamba_width: int | None = None
    mamba_groups: int | None = None
    mamba_states: int | None = None
    mamba_kernel: int | None = None
    mamba_ssm_cache_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    mamba_proj_bias: Literal[False] = False
    projectors_bias: Literal[False] = False
    # Mamba 1, and which of Jamba's layers look back on tokens or have experts.
    mamba_dt_rank: int | None = None
    mamba_expand: int | None = None
    attn_layer_period: int | None = None
    attn_layer_offset: int = 0
    expert_layer_period: int | None = None
    expert_layer_offset: int = 0
    # LFM2's convolutions; its feed-forward blocks are two thirds of what is written, up to a multiple.
    convolution_kernel: int | None = None
    conv_bias: Literal[False] = False
    full_attn_idxs: tuple[int, ...] | None = None
    block_auto_adjust_ff_dim: bool = False
    block_ffn_dim_multiplier: float | None = None
    block_multiple_of: int = 1
    attn_layer_indices: tuple[int, ...] | None = None
    # Layers with experts by name, and the width of those without.
    mlp_layer_types: tuple[Literal["dense", "sparse"], ...] | None = None
    moe_layers: tuple[int, ...] | None = None
    moe_layer_end_index: int | None = None
    intermediate_size_mlp: int | None = None
    # An indexer that chooses the tokens to attend to.
    index_n_heads: int | None = None
    index_head_dim: int | None = None
    index_topk: int | None = None

    @field_validator("layer_types", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        return tuple(_KINDS.get(each, each) for each in value) if isinstance(value, str | list | tuple) else value

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values: as many as of queries where nothing else is said."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def dense_width(self) -> int | None:
        """Width of a feed-forward block without experts, as the code that runs the model works it out."""
        width = self.intermediate_size
        if width is None or not self.block_auto_adjust_ff_dim:
            return width
        width = int((self.block_ffn_dim_multiplier or 1.0) * int(2 * width / 3))
        return -(-width // self.block_multiple_of) * self.block_multiple_of

    def need(self, name: str, where: str) -> int:
        """Return a field that has to be there; ConfigError where it is not.

        Parameters
        ----------
        name : str
            Field of this class, as the configuration calls it.
        where : str
            File and key that an error begins with.

        Raises
        ------
        ConfigError
            When the configuration has no such field.
        """
        value = getattr(self, name)
        if value is None:
            raise ConfigError(f"{where}{name}: missing; expected it beside {self.model_type}'s other fields")
        return int(value)


def one_name(text: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields, each under one name; ConfigError where two names of one say different things.

    Parameters
    ----------
    text : Mapping[str, Any]
        Configuration as it is in the file, under any of the names that models use.
    where : str
        File and key that an error begins with.

    Raises
    ------
    ConfigError
        When two names of one field have different values.
    """
    found: dict[str, Any] = {}
    for key, value in text.items():
        name = _NAMES.get(key, key)
        if found.get(name, value) != value:
            raise ConfigError(f"{where}{key}: {shown(value)}; expected {shown(found[name])}, as in another field of it")
        found[name] = value
    kinds = found.get("layer_types")
    if isinstance(kinds, str | list | tuple):
        found.setdefault("num_hidden_layers", len(kinds))
    return found
