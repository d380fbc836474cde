"""Families of models: what they differ in beside their fields, and which of them are understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Family:
    """A family of models: what sets it apart beside the fields of its configuration.

    Attributes
    ----------
    tied : bool
        Whether the output head is the embedding where the configuration does not say.
    norms : int
        Norms of a layer as wide as the hidden state.
    head_norms : bool
        Whether queries and keys are normed by head.
    biases : bool
        Whether queries, keys and values have biases where the configuration does not say.
    windows : str
        Which layers have the sliding window where `layer_types` does not say: `all`, `alternate` (the first of every
        two), `pattern` (all but each `sliding_window_pattern`th), `asked` (only where `use_sliding_window` says so),
        `chunks` (all but each fourth).
    gated_queries : bool
        Whether attention's queries come with a gate as large as them.
    gated : bool
        Whether a feed-forward block has a gate: three projections, not two.
    blocks_alone : bool
        Whether a layer is one block: attention, a state, or a feed-forward block.
    states_beside : bool
        Whether every layer keeps a state beside its attention.
    defaults : dict
        Fields that such a configuration may leave out.
    """

    tied: bool = False
    norms: int = 2
    head_norms: bool = False
    biases: bool = False
    windows: Literal["all", "alternate", "pattern", "asked", "chunks"] = "all"
    gated_queries: bool = False
    gated: bool = True
    blocks_alone: bool = False
    states_beside: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)


_GEMMA3 = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
}
_GEMMA4 = {"vocab_size": 262144, "sliding_window_pattern": 6, "global_head_dim": 512}
_QWEN = Family(windows="asked", biases=True)
_QWEN3 = Family(windows="asked", head_norms=True)
_QWEN3_NEXT = Family(windows="asked", head_norms=True, gated_queries=True, defaults={"full_attention_interval": 4})
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "ministral3": Family(),
    "mixtral": Family(),
    "phi3": Family(),
    "granite": Family(),
    "seed_oss": Family(biases=True),
    "smollm3": Family(tied=True, windows="asked"),
    "olmoe": Family(),
    "qwen2": _QWEN,
    "qwen2_moe": _QWEN,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen2_5_vl_text": _QWEN,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3,
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "gemma2": Family(tied=True, norms=4, windows="alternate"),
    "gemma3_text": Family(tied=True, norms=4, head_norms=True, windows="pattern", defaults=_GEMMA3),
    "gemma4_text": Family(tied=True, norms=4, head_norms=True, windows="pattern", defaults=_GEMMA4),
    "cohere2": Family(tied=True, norms=1, windows="pattern", defaults={"sliding_window_pattern": 4}),
    "glm4": Family(norms=4),
    "dots1": Family(head_norms=True),
    "olmo2": Family(),
    "olmo3": Family(windows="pattern", defaults={"sliding_window_pattern": 4}),
    "exaone4": Family(head_norms=True, windows="pattern"),
    "gpt_oss": Family(biases=True, windows="alternate"),
    "deepseek_v2": Family(),
    "deepseek_v3": Family(),
    "kimi_k2": Family(),
    "glm4_moe": Family(),
    "minimax_m2": Family(),
    "gemma": Family(tied=True),
    "cohere": Family(tied=True, norms=1),
    "glm": Family(biases=True),
    "arcee": Family(gated=False),
    "apertus": Family(gated=False, head_norms=True),
    "nemotron": Family(gated=False, norms=4),
    "starcoder2": Family(gated=False, norms=4, biases=True),
    "stablelm": Family(norms=4),
    "olmo": Family(norms=0),
    "mimo": Family(biases=True),
    "internlm2": Family(),
    "internlm3": Family(),
    "baichuan": Family(),
    "ernie4_5": Family(tied=True),
    "hunyuan_v1_dense": Family(head_norms=True),
    "ernie4_5_moe": Family(tied=True),
    "exaone_moe": Family(head_norms=True, windows="pattern"),
    "flex_olmo": Family(),
    "granitemoe": Family(tied=True),
    "granitemoeshared": Family(tied=True),
    "phimoe": Family(norms=4, biases=True),
    "solar_open": Family(),
    "llama4_text": Family(windows="chunks", defaults={"shared_experts": 1}),
    "phi": Family(gated=False, biases=True),
    "gpt_neox": Family(gated=False, norms=4, biases=True),
    # Latent attention, in newer ones with an indexer.
    "deepseek_v32": Family(),
    "glm4_moe_lite": Family(),
    "glm_moe_dsa": Family(),
    "mistral4": Family(),
    # Mamba 2 in most of the layers.
    "bamba": Family(defaults={"attn_layer_indices": ()}),
    "granitemoehybrid": Family(tied=True),
    "falcon_h1": Family(states_beside=True),
    "jamba": Family(
        defaults={
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "mamba_expand": 2,
        }
    ),
    # Short convolutions in most of the layers.
    "lfm2": Family(tied=True, head_norms=True, defaults={"block_auto_adjust_ff_dim": True, "block_multiple_of": 256}),
    "lfm2_moe": Family(tied=True, head_norms=True),
    "nemotron_h": Family(norms=1, gated=False, blocks_alone=True, defaults={"mamba_ssm_cache_dtype": "float32"}),
}
# Wrappers of a language model and a tower, and what their text is where it does not say.
WRAPPERS = {
    "mistral3": "mistral",
    "llama4": "llama4_text",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
