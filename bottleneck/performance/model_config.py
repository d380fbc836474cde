"""Read a model's own config.json: its shape, how its weights are stored, what a token leaves in the cache.

Understood are dense models, mixtures of experts (routed and shared, dense first layers), multi-head latent attention
(with an indexer that chooses tokens, too), sliding windows and chunks, linear attention, Mamba and short convolutions
in some of the layers or beside attention, layers that are one block alone, tied embeddings and vision towers. The names
of the fields and their defaults are those of transformers' configuration classes; how an engine lays the weights out is
vLLM 0.32's (`vllm/model_executor/models`, read).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bottleneck.performance.config_fields import Fields, LayerKind, one_name
from bottleneck.performance.config_form import ConfigError, read_form
from bottleneck.performance.formats import BF16, FORMATS, GGUF_TYPES, VALUE_BYTES, WeightFormat, mixture
from bottleneck.performance.layers import feed_forward, grouped_attention
from bottleneck.performance.model_families import FAMILIES, WRAPPERS, Family
from bottleneck.performance.quantization_config import Storage, read_storage
from bottleneck.performance.shape import Attention, Layer, Matrix, ModelShape
from bottleneck.performance.state_layers import Part, delta_net, mamba, mamba1, short_convolution
from bottleneck.performance.vision_config import tower
from bottleneck.units import shown

# Of a layer that does not look back.
_NOTHING = Attention(0, 1, 0)
_INDEX_SCALE_BYTES = 4


@dataclass(frozen=True)
class ModelConfig:
    """Contents of a config.json.

    Attributes
    ----------
    model_type : str
        The kind of model.
    weights : WeightFormat
        Of the linear layers that have no format of their own.
    kv_value_bytes : int
        Bytes of a value of the KV cache.
    notes : tuple of str
        What was taken for granted.
    """

    model_type: str
    shape: ModelShape
    weights: WeightFormat
    kv_value_bytes: int = VALUE_BYTES
    notes: tuple[str, ...] = ()


def read_model_config(
    document: Mapping[str, Any], quantization: str | None = None, where: str = "config.json"
) -> ModelConfig:
    """Return the content of a config.json, read and checked.

    Parameters
    ----------
    document : Mapping[str, Any]
        The file's content, as JSON gives it.
    quantization : str or None
        A format of `FORMATS` or a GGUF type in which the weights are stored instead.
    where : str
        The file, for messages.

    Raises
    ------
    ConfigError
        For a field, a value or a kind of model that is not understood: what is passed over may take memory.
    """
    where = f"{where}: "
    text, vision = _parts(document, where)
    kind = str(text.get("model_type", ""))
    family = FAMILIES.get(kind)
    if family is None:
        raise ConfigError(f"{where}model_type: {shown(kind)}; expected one of {', '.join(sorted(FAMILIES))}")
    config = read_form(Fields, {**family.defaults, **one_name(text, where)}, where)
    _refuse_unused(config, family, where)
    storage = read_storage(config.quantization_config, where)
    mixed = None
    if quantization is not None:
        mixed = mixture(quantization)
        if mixed is None:
            expected = ", ".join((*FORMATS, *GGUF_TYPES))
            raise ConfigError(f"--quantization {quantization}; expected one of {expected}")
        only = mixed.linear == FORMATS["mxfp4"]
        others = tuple(((name,), stored) for name, stored in mixed.others.items())
        storage = Storage(mixed.linear, (), others, mixed.head, only, storage.kv_value_bytes)
    reader = _Reader(config, family, storage, where)
    layers = tuple(reader.layer(index) for index in range(config.num_hidden_layers))
    shape = ModelShape(
        layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_attention_heads if config.kv_lora_rank else config.key_value_heads,
        config.vocab_size,
        config.max_position_embeddings,
        family.tied if config.tie_word_embeddings is None else config.tie_word_embeddings,
        mixed.embedding if mixed else BF16,
        storage.head,
        tower(vision, config.hidden_size, where) if vision else (),
    )
    return ModelConfig(kind, shape, storage.linear, storage.kv_value_bytes, reader.notes)


def _refuse_unused(config: Fields, family: Family, where: str) -> None:
    """Raise for fields of a part that this model has not: they mean something that is not understood."""
    for name in ("index_n_heads", "index_head_dim", "index_topk"):
        value = getattr(config, name)
        if value is not None and config.kv_lora_rank is None:
            text = f"{value}; it is not understood and may take memory; expected it beside kv_lora_rank only"
            raise ConfigError(f"{where}{name}: {text}")
    if (
        config.mamba_heads
        and not family.states_beside
        and config.attn_layer_indices is None
        and "linear_attention" not in (config.layer_types or ())
    ):
        text = (
            f"{config.mamba_heads}; it is not understood and may take memory; expected layers that are Mamba's beside"
        )
        raise ConfigError(f"{where}mamba_heads: {text}")


def _parts(document: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the language model's fields, and the tower's if there is one."""
    outer, vision = dict(document), document.get("vision_config")
    outer.pop("vision_config", None)
    if vision is not None and not isinstance(vision, Mapping):
        raise ConfigError(f"{where}vision_config: {shown(vision)}; expected the tower's own fields")
    inner = outer.pop("text_config", None)
    # An old tower has no name of its own: it is the whole model's.
    tower_fields = {"model_type": outer.get("model_type"), **vision} if vision else None
    if inner is None:
        return outer, tower_fields
    wrapper = str(outer.pop("model_type", ""))
    if wrapper not in WRAPPERS or not isinstance(inner, Mapping):
        raise ConfigError(f"{where}model_type: {shown(wrapper)}; expected one of {', '.join(sorted(WRAPPERS))}")
    # What stands outside holds for the text too, unless it says otherwise itself; but the head is the whole model's.
    tied = {key: outer[key] for key in ("tie_word_embeddings",) if outer.get(key) is not None}
    text = {"model_type": WRAPPERS[wrapper], **outer, **inner, **tied}
    return text, tower_fields


@dataclass(frozen=True)
class _Reader:
    config: Fields
    family: Family
    storage: Storage
    where: str

    @property
    def notes(self) -> tuple[str, ...]:
        if not self._absorbed:
            return ()
        return (
            "latent attention of an AWQ checkpoint is counted as vLLM 0.7 laid it out (query and output projections "
            "multiplied out in 16 bit, cache entries padded to 256 bytes), the one that figures were published of; "
            "newer versions take less",
        )

    @property
    def _absorbed(self) -> bool:
        method = (self.config.quantization_config or {}).get("quant_method")
        return bool(self.config.kv_lora_rank) and method == "awq"

    def layer(self, index: int) -> Layer:
        """Return a layer."""
        config, hidden = self.config, self.config.hidden_size
        kind = self._kind(index)
        if config.kv_lora_rank:
            matrices, attention, vectors = self._latent()
            path, split = "self_attn", config.num_attention_heads * (config.qk_nope_head_dim or 0)
        elif kind in ("linear_attention", "convolution"):
            matrices, attention, vectors = self._linear(kind)
            path, split = self._state_path(kind), matrices[0].outputs
        elif kind in ("mlp", "moe"):
            matrices, attention, vectors, path, split = (), _NOTHING, 0, "", 0
        else:
            matrices, attention, vectors = self._grouped(kind)
            path, split = "self_attn", 2 * matrices[0].outputs + 4 * matrices[1].outputs
        parts = [(path, each) for each in matrices]
        if self.family.states_beside:
            beside, kept, more = self._linear("linear_attention")
            parts += [("mamba", each) for each in beside]
            attention, vectors = replace(attention, state_bytes=kept.state_bytes), vectors + more
            split += beside[0].outputs
        alone = self.family.blocks_alone and kind not in ("mlp", "moe")
        inner, blocks = (0, []) if alone else self._feed_forward(index, kind)
        stored = (*(self._stored(index, f"{where}.{each.name}", each) for where, each in [*parts, *blocks]),)
        return Layer(
            tuple(replace(each, name=each.name.rsplit(".", 1)[-1]) for each in stored),
            attention,
            vectors + (self.family.norms + 4 * config.enable_moe_block) * hidden,
            12 * hidden,
            split + 4 * inner,
            3 * inner,
        )

    def _stored(self, index: int, path: str, matrix: Matrix) -> Matrix:
        if matrix.stored is not None:
            return matrix
        routed = matrix.copies > 1
        roots = ("model.layers", "model.language_model.layers", "language_model.model.layers", "backbone.layers")
        names = tuple(f"{root}.{index}.{path}" for root in roots)
        found = BF16 if self.storage.experts_only and not routed else self.storage.of(*names)
        if found == FORMATS["mxfp4"] and routed:
            # Marlin's kernels: a rank's inner width in 128s, the hidden size in 256s (oracle/mxfp4.py, vLLM 0.32).
            matrix = replace(matrix, multiples=(128, 256))
        return matrix if found == self.storage.linear else replace(matrix, stored=found)

    def _kind(self, index: int) -> LayerKind:
        """Return how a layer looks back."""
        config, windows = self.config, self.family.windows
        if config.layer_types is not None:
            if len(config.layer_types) != config.num_hidden_layers:
                raise ConfigError(
                    f"{self.where}layer_types: {len(config.layer_types)} of them; expected one for each of "
                    f"num_hidden_layers {config.num_hidden_layers}"
                )
            return config.layer_types[index]
        if config.attn_layer_indices is not None:
            return "full_attention" if index in config.attn_layer_indices else "linear_attention"
        if config.attn_layer_period:
            looks_back = index % config.attn_layer_period == config.attn_layer_offset
            return "full_attention" if looks_back else "linear_attention"
        if config.full_attn_idxs is not None:
            return "full_attention" if index in config.full_attn_idxs else "convolution"
        if config.linear_num_value_heads and (index + 1) % (config.full_attention_interval or 4):
            return "linear_attention"
        if config.sliding_window is None:
            return "full_attention"
        slides = {
            "all": True,
            "alternate": index % 2 == 0,
            "pattern": bool((index + 1) % (config.sliding_window_pattern or 1)),
            "asked": bool(config.use_sliding_window) and index >= (config.max_window_layers or 0),
            # Every fourth layer of Llama 4 knows no positions and attends to everything.
            "chunks": bool((index + 1) % 4),
        }[windows]
        return "sliding_attention" if slides else "full_attention"

    def _grouped(self, kind: LayerKind) -> tuple[tuple[Matrix, ...], Attention, int]:
        config, heads, keys = self.config, self.config.num_attention_heads, self.config.key_value_heads
        whole = kind == "full_attention" and config.global_head_dim is not None
        shared = whole and config.attention_k_eq_v
        if shared:
            keys = config.num_global_key_value_heads or keys
        if config.head_dim is None and config.hidden_size % heads:
            raise ConfigError(
                f"{self.where}hidden_size: {config.hidden_size} is no multiple of num_attention_heads {heads}; "
                "expected head_dim to be given then"
            )
        width = config.global_head_dim if whole and config.global_head_dim else config.head_dim
        width = width or config.hidden_size // heads
        query, key, value, output = grouped_attention(config.hidden_size, heads, keys, width)
        if self.family.gated_queries:
            query = replace(query, outputs=2 * query.outputs)
        biases = self.family.biases if config.attention_bias is None else config.attention_bias
        vectors = (query.outputs + 2 * key.outputs) * biases + 2 * width * self.family.head_norms
        window = None
        if kind == "sliding_attention":
            window = config.need("sliding_window", self.where)
        attention = Attention(2 * keys * width, keys, 4 * heads * width, window)
        # An engine loads such keys twice, as values too (`models/gemma4.py`).
        return (query, key, replace(value, derived=shared), output), attention, vectors

    def _latent(self) -> tuple[tuple[Matrix, ...], Attention, int]:
        """Return multi-head latent attention: one vector of a token is cached, whole on every rank."""
        config, hidden, heads = self.config, self.config.hidden_size, self.config.num_attention_heads
        latent, rope = config.need("kv_lora_rank", self.where), config.need("qk_rope_head_dim", self.where)
        key, value = config.need("qk_nope_head_dim", self.where), config.need("v_head_dim", self.where)
        source = config.q_lora_rank or hidden
        down = () if config.q_lora_rank is None else (Matrix("q_a_proj", config.q_lora_rank, hidden, 1),)
        matrices = (
            *down,
            Matrix("q_b_proj" if down else "q_proj", heads * (key + rope), source),
            Matrix("kv_a_proj_with_mqa", latent + rope, hidden, 1),
            Matrix("kv_b_proj", heads * (key + value), latent),
            Matrix("o_proj", hidden, heads * value, by_inputs=True),
            # What decoding multiplies with instead of kv_b_proj, kept in 16 bit beside it.
            Matrix("kv_b_unpacked", heads * (key + value), latent, stored=BF16, derived=True),
        )
        cached = latent + rope
        if config.index_n_heads:
            width = config.need("index_head_dim", self.where)
            matrices += (
                Matrix("indexer.wq_b", config.index_n_heads * width, source, 1),
                Matrix("indexer.wk", width, hidden, 1),
                Matrix("indexer.weights_proj", config.index_n_heads, hidden, 1, stored=BF16),
            )
            # Its key of a token in 8 bit, with a scale.
            cached += (width + _INDEX_SCALE_BYTES) // VALUE_BYTES
        if self._absorbed:
            matrices += (
                Matrix("q_absorbed", heads * (latent + rope), source, stored=BF16, derived=True),
                Matrix("o_absorbed", hidden, heads * latent, stored=BF16, by_inputs=True, derived=True),
            )
            cached = -(-cached // 128) * 128
        return matrices, Attention(cached, 1, 2 * heads * (key + rope + value)), latent + (config.q_lora_rank or 0)

    def _state_path(self, kind: LayerKind) -> str:
        """Return the module of a layer that keeps a state."""
        if kind == "convolution":
            return "conv"
        if self.config.mamba_dt_rank:
            return "mamba"
        return "mixer" if self.config.mamba_heads else "linear_attn"

    def _linear(self, kind: LayerKind) -> Part:
        """Return a layer that keeps a state, of the kind whose fields are there."""
        config, hidden = self.config, self.config.hidden_size
        if kind == "convolution":
            return short_convolution(hidden, config.need("convolution_kernel", self.where))
        state_bytes = 4 if config.mamba_ssm_cache_dtype == "float32" else VALUE_BYTES
        if config.mamba_heads:
            names = "heads", "width", "groups", "states", "kernel"
            sizes = (config.need(f"mamba_{name}", self.where) for name in names)
            return mamba(hidden, *sizes, state_bytes=state_bytes)
        if config.mamba_dt_rank:
            inner = config.need("mamba_expand", self.where) * hidden
            sizes = (config.need(f"mamba_{name}", self.where) for name in ("states", "kernel", "dt_rank"))
            return mamba1(hidden, inner, *sizes, state_bytes=state_bytes)
        names = "num_key_heads", "key_head_dim", "num_value_heads", "value_head_dim", "conv_kernel_dim"
        return delta_net(hidden, *(config.need(f"linear_{name}", self.where) for name in names))

    def _feed_forward(self, index: int, kind: LayerKind) -> tuple[int, list[tuple[str, Matrix]]]:
        """Return the width that a token computes, and the matrices with the module that they are in."""
        config, hidden, gated = self.config, self.config.hidden_size, self.family.gated
        if kind == "mlp" or (kind != "moe" and not self._sparse(index)):
            # Granite's hybrids without experts have the shared block alone.
            alone = config.shared_intermediate_size if not config.experts else None
            inner = config.intermediate_size_mlp or alone or config.dense_width
            inner = inner or config.need("intermediate_size", self.where)
            return inner, [("mlp", each) for each in feed_forward(hidden, inner, gated)]
        if config.enable_moe_block:
            # Beside the experts: a dense block, with norms of both.
            inner = config.need("intermediate_size", self.where)
            width, routed = self._experts()
            return inner + width, [*(("mlp", each) for each in feed_forward(hidden, inner, gated)), *routed]
        return self._experts()

    def _experts(self) -> tuple[int, list[tuple[str, Matrix]]]:
        """Return the width that a token computes in its experts, the shared ones too, and their matrices."""
        config, hidden, gated = self.config, self.config.hidden_size, self.family.gated
        experts = config.need("experts", self.where)
        active = config.need("experts_per_token", self.where)
        width = config.moe_intermediate_size or config.need("intermediate_size", self.where)
        router = Matrix("gate", experts, hidden, 1, stored=BF16)
        found = [("mlp", router)]
        found += [("mlp.experts.0", each) for each in feed_forward(hidden, width, gated, experts, active)]
        shared = config.shared_expert_intermediate_size or config.shared_intermediate_size
        shared = shared or (config.shared_experts or 0) * width
        if shared:
            module = "mlp.shared_expert" if config.shared_expert_intermediate_size else "mlp.shared_experts"
            found += [(module, each) for each in feed_forward(hidden, shared, gated)]
        return active * width + shared, found

    def _sparse(self, index: int) -> bool:
        """Return whether a layer has experts."""
        config = self.config
        if config.enable_moe_block:
            return True
        if config.mlp_layer_types is not None and config.experts:
            return index < len(config.mlp_layer_types) and config.mlp_layer_types[index] == "sparse"
        if config.moe_layers is not None:
            return index in config.moe_layers
        if config.expert_layer_period is not None:
            # One expert is a plain block.
            return (config.experts or 1) > 1 and index % config.expert_layer_period == config.expert_layer_offset
        if not config.experts or index < config.first_k_dense_replace or index in (config.mlp_only_layers or ()):
            return False
        if config.moe_layer_end_index is not None and 0 <= config.moe_layer_end_index < index:
            return False
        return index % config.moe_layer_freq == 0 and (index + 1) % config.decoder_sparse_step == 0
