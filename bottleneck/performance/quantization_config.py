"""Read how a checkpoint's `quantization_config` says that its weights are stored, module by module."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from bottleneck.performance.config_form import ConfigError, Form, read_form
from bottleneck.performance.formats import BF16, FORMATS, VALUE_BYTES, WeightFormat
from bottleneck.units import shown


@dataclass(frozen=True)
class Storage:
    """Storage of a checkpoint's modules.

    Attributes
    ----------
    linear : WeightFormat
        Of the linear layers that nothing else is said of.
    skipped : tuple of str
        Patterns of modules that stay in 16 bit.
    others : tuple of (tuple of str, WeightFormat)
        Patterns of modules with a format of their own.
    head : WeightFormat
        Of the output head.
    experts_only : bool
        Whether nothing but routed experts is stored so.
    kv_value_bytes : int
        Bytes of a value of the KV cache.
    """

    linear: WeightFormat = BF16
    skipped: tuple[str, ...] = ()
    others: tuple[tuple[tuple[str, ...], WeightFormat], ...] = ()
    head: WeightFormat = BF16
    experts_only: bool = False
    kv_value_bytes: int = VALUE_BYTES

    def of(self, *names: str) -> WeightFormat:
        """Return the format of a module, by any of its names.

        Parameters
        ----------
        *names : str
            Names of the module with dots, the checkpoint's and the engine's.

        Returns
        -------
        WeightFormat
            The first that fits: 16 bit for a module that is left out of the quantisation, a format of its own, or that
            of all others.
        """
        if any(_fits(pattern, name) for pattern in self.skipped for name in names):
            return BF16
        for patterns, stored in self.others:
            if any(_fits(pattern, name) for pattern in patterns for name in names):
                return stored
        return self.linear


def _fits(pattern: str, name: str) -> bool:
    """Return whether a pattern names a module or what it is in: a regular expression after `re:`, else dotted parts."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    if "*" in pattern:
        return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"{pattern}.*")
    return f".{pattern.strip('.')}." in f".{name}."


_Skipped = Field(
    default=(),
    validation_alias=AliasChoices(
        "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules", "exclude_modules", "ignore"
    ),
)
_Names = tuple[str, ...] | None


class _Quantized(Form):
    # How weights were quantized, in which order they lie, which kernels are asked for: nothing that changes a byte.
    without_bytes: ClassVar[re.Pattern[str]] = re.compile(
        r"""sym|desc_act|version|backend|checkpoint_format|damp_percent|true_sequential|static_groups|meta|packing_format
        |autoround_version|block_name_to_quantize|data_type|iters|batch_size|dataset|low_gpu_mem_usage|model_.*|pack_dtype
        |is_.*|activation_scheme|fmt|scale_fmt|bnb_4bit_(compute_dtype|quant_type|quant_storage)|actorder|observer.*
        |llm_int8_(enable_fp32_cpu_offload|has_fp16_weight|threshold)|dynamic|scale_dtype|zp_dtype|output_activations
        |quantization_status|global_compression_ratio|producer""",
        re.VERBOSE,
    )


class _Method(_Quantized):
    quant_method: str


class _Grouped(_Method):
    """AWQ, GPTQ and AutoRound: whole numbers with a scale, and mostly a zero point, for each group."""

    bits: Literal[2, 3, 4, 8] = Field(validation_alias=AliasChoices("bits", "w_bit"))
    group_size: int = Field(default=128, validation_alias=AliasChoices("group_size", "q_group_size"))
    zero_point: bool = True
    skipped: _Names = _Skipped
    lm_head: bool = False
    dynamic: dict[str, object] | None = None
    extra_config: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def storage(self, where: str) -> Storage:
        if self.dynamic:
            raise ConfigError(f"{where}dynamic: {shown(self.dynamic)}; expected one format for all modules")
        mixed = {name: each for name, each in self.extra_config.items() if each.get("bits", self.bits) != self.bits}
        for name, each in mixed.items():
            if each["bits"] < BF16.bits:
                raise ConfigError(f"{where}extra_config.{name}: {shown(each)}; expected bits {self.bits} or 16")
        group = self.group_size if self.group_size > 0 else None
        linear = replace(
            FORMATS["awq" if self.bits <= 4 else "w8a16"],
            name=f"{self.quant_method}-{self.bits}bit",
            bits=self.bits,
            group_size=group,
            zero_point_bits=self.bits if self.zero_point else 0,
            measured_as="w4a16" if self.bits <= 4 else "w8a16",
        )
        skipped = (*(self.skipped or ()), *mixed)
        return Storage(linear, skipped, head=linear if self.lm_head else BF16)


class _Fp8(_Method):
    weight_block_size: tuple[int, int] | None = None
    skipped: _Names = _Skipped

    def storage(self, where: str) -> Storage:  # noqa: ARG002 - as the others
        linear = FORMATS["fp8"]
        if self.weight_block_size:
            rows, columns = self.weight_block_size
            linear = replace(linear, group_size=columns, group_outputs=rows, scale_bits=32)
        return Storage(linear, self.skipped or ())


class _Mxfp4(_Method):
    skipped: _Names = _Skipped

    def storage(self, where: str) -> Storage:  # noqa: ARG002 - as the others
        return Storage(FORMATS["mxfp4"], self.skipped or (), experts_only=True)


class _BitsAndBytes(_Method):
    load_in_4bit: bool = Field(default=False, validation_alias=AliasChoices("load_in_4bit", "_load_in_4bit"))
    load_in_8bit: bool = Field(default=False, validation_alias=AliasChoices("load_in_8bit", "_load_in_8bit"))
    bnb_4bit_use_double_quant: bool = False
    skipped: _Names = _Skipped

    def storage(self, where: str) -> Storage:
        if self.load_in_4bit == self.load_in_8bit:
            raise ConfigError(f"{where}load_in_4bit: {self.load_in_4bit}; expected either it or load_in_8bit")
        linear = replace(FORMATS["w8a16"], group_size=None) if self.load_in_8bit else FORMATS["bitsandbytes"]
        if self.load_in_4bit and self.bnb_4bit_use_double_quant:
            # Scales are stored in 8 bit, with a 32-bit one of their own for 256 of them.
            linear = replace(linear, scale_bits=8 + 32 / 256)
        return Storage(linear, self.skipped or ())


class _Weights(_Quantized):
    num_bits: Literal[4, 8]
    type: Literal["int", "float"] = "int"
    strategy: str | None = None
    group_size: int | None = None
    block_structure: object = None
    symmetric: bool = True


class _Group(_Quantized):
    weights: _Weights
    input_activations: dict[str, object] | None = None
    targets: tuple[str, ...] = ("Linear",)
    format: str | None = None

    def weight_format(self, layout: str | None, where: str) -> WeightFormat:
        weights = self.weights
        layout = f"{self.format or layout or ''}".lower()
        if weights.num_bits == 4 and weights.type == "float":
            return FORMATS["mxfp4" if weights.group_size == 32 or "mxfp4" in layout else "nvfp4"]
        if weights.num_bits == 4:
            named = FORMATS["w4a16"]
        else:
            eight_bit = bool(self.input_activations)
            named = FORMATS["w8a16" if not eight_bit else "fp8" if weights.type == "float" else "w8a8"]
        group = weights.group_size if weights.strategy in ("group", "tensor_group", None) else None
        group, rows = (group if group and group > 0 else None), 1
        if weights.strategy == "block":
            rows, group = _block(weights.block_structure, where)
        zero_point = 0 if weights.symmetric else weights.num_bits
        return replace(named, group_size=group, group_outputs=rows, zero_point_bits=zero_point)


def _block(structure: object, where: str) -> tuple[int, int]:
    found = [int(each) for each in re.findall(r"\d+", str(structure))]
    if len(found) != 2:
        raise ConfigError(f"{where}block_structure: {shown(structure)}; expected two numbers such as [128, 128]")
    return found[0], found[1]


class _CompressedTensors(_Method):
    config_groups: dict[str, _Group] = Field(min_length=1)
    skipped: _Names = _Skipped
    format: str | None = None
    kv_cache_scheme: dict[str, object] | None = None
    sparsity_config: dict[str, object] | None = None
    transform_config: dict[str, object] | None = None
    quant_algo: object = None

    def storage(self, where: str) -> Storage:
        if self.sparsity_config and self.sparsity_config.get("format", "dense") != "dense":
            raise ConfigError(f"{where}sparsity_config: {shown(self.sparsity_config)}; expected dense weights")
        if self.transform_config:
            raise ConfigError(f"{where}transform_config: {shown(self.transform_config)}; expected none")
        groups = list(self.config_groups.values())
        formats = [each.weight_format(self.format, f"{where}config_groups.weights.") for each in groups]
        every = [stored for each, stored in zip(groups, formats, strict=True) if "Linear" in each.targets]
        others = tuple(
            (each.targets, stored) for each, stored in zip(groups, formats, strict=True) if "Linear" not in each.targets
        )
        # Without a group for all linear layers, those that no group names stay as they are.
        return Storage(
            every[0] if every else BF16, self.skipped or (), others, kv_value_bytes=_cache_bytes(self.kv_cache_scheme)
        )


def _cache_bytes(scheme: Mapping[str, object] | str | None) -> int:
    bits = scheme.get("num_bits") if isinstance(scheme, Mapping) else scheme
    return 1 if bits in (8, "FP8", "fp8") else VALUE_BYTES


class _ModelOpt(_Method):
    quant_algo: Literal["FP8", "NVFP4"]
    skipped: _Names = _Skipped
    kv_cache_scheme: dict[str, object] | None = None
    kv_cache_quant_algo: str | None = None
    # Both are what the algorithm is.
    config_groups: object = None
    group_size: object = None

    def storage(self, where: str) -> Storage:  # noqa: ARG002 - as the others
        cache = self.kv_cache_scheme or self.kv_cache_quant_algo
        return Storage(FORMATS[self.quant_algo.lower()], self.skipped or (), kv_value_bytes=_cache_bytes(cache))


_METHODS: dict[str, type[_Grouped | _Fp8 | _Mxfp4 | _BitsAndBytes | _CompressedTensors | _ModelOpt]] = {
    "awq": _Grouped,
    "gptq": _Grouped,
    "auto-round": _Grouped,
    "intel/auto-round": _Grouped,
    "fp8": _Fp8,
    "mxfp4": _Mxfp4,
    "bitsandbytes": _BitsAndBytes,
    "compressed-tensors": _CompressedTensors,
    "modelopt": _ModelOpt,
    "modelopt_fp4": _ModelOpt,
}


def read_storage(document: Mapping[str, Any] | None, where: str) -> Storage:
    """Return the storage that a `quantization_config` describes; None is a checkpoint in 16 bit.

    Parameters
    ----------
    document : Mapping[str, Any] or None
        Value of `quantization_config` in a config.json.
    where : str
        File and key that an error begins with.

    Raises
    ------
    ConfigError
        For a method, a key or a value that is not understood.
    """
    if document is None:
        return Storage()
    where = f"{where}quantization_config."
    method = str(document.get("quant_method", "")).lower()
    if method not in _METHODS:
        raise ConfigError(f"{where}quant_method: {shown(method)}; expected one of {', '.join(_METHODS)}")
    return read_form(_METHODS[method], document, where).storage(where)
