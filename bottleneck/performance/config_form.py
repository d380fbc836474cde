"""Read parts of a model's configuration: what is not understood is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bottleneck.units import shown

# What takes no memory: names of tokens, positions, training, routing, numerics, heads that guess further tokens.
WITHOUT_BYTES = re.compile(
    r"""_?(name_or_path|commit_hash)|architectures|auto_map|transformers_version|torch_dtype|dtype|use_cache|id2label
    |label2id|.*token_ids?|.*token_index|initializer_.*|.*dropout.*|.*_pdrop|.*_eps|hidden_act|hidden_activation|rope_.*
    |.*_rope_.*|partial_rotary_factor|rotary_.*|original_max_position_embeddings|pretraining_tp|output_.*|return_dict
    |problem_type|is_.*|chunk_size_.*|gradient_.*|seq_aux|aux_loss_alpha|.*router_.*|input_jitter_noise|norm_topk_prob|routed_scaling_factor
    |scoring_func|topk_method|topk_group|n_group|ep_size|num_nextn_predict_layers|num_mtp_.*|mtp_.*|use_mtp|swiglu_.*
    |initial_context_length|.*softcapping|query_pre_attn_scalar|.*_multipliers?|logits_scaling|logit_scale|clip_qkv
    |no_rope_.*|use_bidirectional_attention|cache_implementation|mm_tokens_per_image|projector_hidden_act
    |vision_feature_layer|multimodal_projector_bias|spatial_merge_size|use_qk_norm|qk_norm_type|use_routing_bias
    |layernorm_.*_beta|shared_moe_mode|mlp_intermediate_size|_?attn_implementation|model_max_length|mamba_ssm_dtype
    |attn_output_gate|tokenizer_class|full_attn_mod|embd_layer|qk_head_dim|prefix|finetuning_task|torchscript|.*num_beams
    |num_beam_groups|diversity_penalty|.*length_penalty|repetition_penalty|temperature|top_[kp]|typical_p|do_sample
    |early_stopping|max_length|min_length|.*no_repeat_ngram_size|num_return_sequences|.*suppress_tokens|bad_words_ids
    |remove_invalid_values|task_specific_params|pruned_heads|tie_encoder_decoder|tf_legacy_loss|use_bfloat16
    |add_cross_attention|cross_attention_hidden_size|_attn_implementation.*
    |time_step_.*|mamba_chunk_size|chunk_size|expand|mamba_conv_bias|use_conv_bias|mamba_hidden_act|mlp_hidden_act
    |use_mamba_kernels|num_logits_to_keep|z_loss_coefficient|residual_in_fp32|rescale_prenorm_residual|mtp_.*
    |moe_shared_expert_overlap|moe_norm_min|moe_use_aux_free|moe_capacity|indexer_types
    |indexer_rope_.*|attn_temperature_tuning|floor_scale|attn_scale|for_llm_compressor|no_rope_layer.*|norm_epsilon|layer_norm_epsilon
    |logits_to_keep|use_cache|attention_multiplier|position_embedding_type|normalization_function|norm_type
    |mamba_d_ssm|mamba_rms_norm|mamba_norm_before_gate|use_expert_bias|use_mambapy|use_associative_scan
    |block_dim|block_use_.*|block_norm_eps|block_mlp_init_scale|block_out_init_scale|block_use_swiglu|conv_dim.*|conv_use_.*
    |use_pos_enc|mamba_use_mlp|mlp_expansion_factor|theta|n_ctx|calc_logits_.*|mamba_inner_layernorms|parallel_residual|use_parallel_residual|residual_scale|mup_.*|scale_emb|scale_depth|dim_model_base|lm_head_bias|use_qk_norm|qk_layernorm""",
    re.VERBOSE,
)


class ConfigError(Exception):
    """A model's configuration that is not understood; the text names the file, the key and what was expected."""


class Form(BaseModel):
    """Keys that are understood; another is refused by its name, so that nothing that takes memory is passed over.

    Attributes
    ----------
    without_bytes
        Names of further keys that are understood to take no memory.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    without_bytes: ClassVar[re.Pattern[str]] = WITHOUT_BYTES

    @model_validator(mode="before")
    @classmethod
    def _with_bytes(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        kept = cls.model_fields
        return {key: value for key, value in data.items() if key in kept or not cls.without_bytes.fullmatch(key)}


_Form = TypeVar("_Form", bound=Form)


def read_form(form: type[_Form], document: Mapping[str, Any], where: str) -> _Form:
    """Return a mapping of a configuration as one of its forms.

    Parameters
    ----------
    form : type[_Form]
        The keys that are understood, and their types.
    document : Mapping[str, Any]
        The mapping as it was read.
    where : str
        The file and the key that it stands under.

    Raises
    ------
    ConfigError
        With the first key that is not understood, is missing or has a value that it cannot have.
    """
    try:
        return form.model_validate(dict(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            text = f"{shown(first['input'])}; it is not understood and may take memory; expected a field that is"
        elif first["type"] == "missing":
            text = "missing; expected it in the configuration of such a model"
        else:
            text = f"{shown(first['input'])}; {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise ConfigError(f"{where}{key}: {text}") from None
