"""Families of models: what they differ in beside their fields, and which of them are understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """What differs between kinds of models beside their fields.

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
        two), `pattern` (all but each `sliding_window_pattern`th), `asked` (only where `use_sliding_window` says so).
    gated_queries : bool
        Whether attention's queries come with a gate as large as them.
    defaults : dict
        Fields that such a configuration may leave out.
    """

    tied: bool = False
    norms: int = 2
    head_norms: bool = False
    biases: bool = False
    windows: Literal["all", "alternate", "pattern", "asked"] = "all"
    gated_queries: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA3 = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
}
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
}
# Wrappers of a language model and a tower, and what their text is where it does not say.
WRAPPERS = {
    "mistral3": "mistral",
    "gemma3": "gemma3_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
