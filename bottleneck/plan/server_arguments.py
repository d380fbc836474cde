"""Read the arguments of a vLLM server that a person wrote down: a scenario's, a profile's further ones.

The one place where a command line is read. What this system starts itself is on record as `ServerSettings`, and its
command line is never read back. Spellings are those of vLLM 0.24 (``vllm serve --help``): dashes and underscores are
alike, a value follows its option or an equals sign.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bottleneck.plan.workers import WEIGHT_FORMATS, FormatName, ServerSettings

_SHORT = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-n": "nnodes",
    "-r": "node-rank",
    "-q": "quantization",
    "-O": "optimization-level",
    "-cc": "compilation-config",
}
_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# vLLM's names of methods that are another way to run one of the formats; one that leaves the width open is not here.
_METHODS: dict[str, FormatName] = {
    **{name: name for name in WEIGHT_FORMATS},
    **dict.fromkeys(("awq_marlin", "auto_awq"), "awq"),
    **dict.fromkeys(("gptq_marlin", "auto_gptq"), "gptq"),
    **dict.fromkeys(("fbgemm_fp8", "ptpc_fp8", "fp8_per_tensor", "modelopt"), "fp8"),
    "modelopt_fp4": "nvfp4",
    "experts_int8": "w8a16",
}


@dataclass(frozen=True)
class ServerArguments:
    """Settings that were read from a server's arguments.

    Attributes
    ----------
    settings
        With the defaults that were given for whatever the arguments leave out.
    node_rank
        Rank of the node that was started with them.
    problems
        Arguments that cannot be read, each in a sentence.
    """

    settings: ServerSettings
    node_rank: int = 0
    problems: tuple[str, ...] = ()


def read_arguments(words: Sequence[object], defaults: ServerSettings | None = None) -> ServerArguments:
    """Read arguments; of an option that is there twice the last counts, and options that are not known are passed over.

    Parameters
    ----------
    words : Sequence[object]
        What follows ``vllm serve``.
    defaults : ServerSettings or None
        Settings that hold where the arguments say nothing.

    Returns
    -------
    ServerArguments
        Settings that the arguments stand for; None for those that are not among them.
    """
    settings = defaults or ServerSettings()
    problems = [f"{word!r}: a {type(word).__name__}; expected a word" for word in words if not isinstance(word, str)]
    found: dict[str, Any] = {}
    for option, value in _pairs([word for word in words if isinstance(word, str)]):
        try:
            new = _OPTIONS[option](value)
            # Checked one by one: a value that does not fit is left out, the others stand.
            ServerSettings.model_validate({key: each for key, each in new.items() if key != "node_rank"})
        except (ValueError, ValidationError):
            problems.append(f"--{option} {value!r}: not a value that it takes")
            continue
        found |= new
    rank = found.pop("node_rank", 0)
    if found.get("captured_graphs", False) is None:
        found["captured_graphs"] = settings.captured_graphs
    return ServerArguments(settings.model_copy(update=found), rank, tuple(problems))


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (option, value) of the known options; the value of a flag is empty."""
    for index, word in enumerate(words):
        if not word.startswith("-"):
            continue
        name, equals, value = word.partition("=")
        if word[:2] == "-O" and word[2:3] in tuple("0123456789{"):
            # Its value may follow it at once.
            name, equals, value = "-O", "=", word[2:]
        key, dot, part = name.partition(".")
        key = _SHORT.get(key, key.removeprefix("--").replace("_", "-"))
        if dot and key in ("optimization-level", "compilation-config"):
            key = f"compilation-config.{part.replace('_', '-')}"
        if key == "optimization-level" and value.lstrip().startswith("{"):
            key = "compilation-config"
        if key not in _OPTIONS:
            continue
        following = words[index + 1] if index + 1 < len(words) else ""
        yield key, value if equals else "" if key in _FLAGS else following


def _whole(text: str) -> int:
    """Return a whole number as vLLM reads one: 8192, 8k (thousands), 8K (times 1024)."""
    factor = _SUFFIXES.get(text[-1:], 1)
    value = float(text[:-1] if factor > 1 else text) * factor
    if not math.isfinite(value) or value != int(value):
        raise ValueError(text)
    return int(value)


def _to(key: str, convert: Callable[[str], object]) -> Callable[[str], Mapping[str, object]]:
    return lambda text: {key: convert(text)}


def _length(text: str) -> int | None:
    # Found out by the engine when it starts.
    return None if text in ("auto", "-1") else _whole(text)


def _rank(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise ValueError(text)
    return value


def _level(text: str) -> Mapping[str, object]:
    return {"captured_graphs": False} if _whole(text) == 0 else {}


def _graph_mode(text: str) -> Mapping[str, object]:
    return {"captured_graphs": text.strip().upper() not in ("NONE", "0")}


def _compilation(text: str) -> Mapping[str, object]:
    if text.strip().isdecimal():
        return _level(text)
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(text)
    mode = document.get("cudagraph_mode")
    return {} if mode is None else _graph_mode(str(mode))


_OPTIONS: Mapping[str, Callable[[str], Mapping[str, object]]] = {
    "tensor-parallel-size": _to("tensor_parallel", _whole),
    "pipeline-parallel-size": _to("pipeline_parallel", _whole),
    "data-parallel-size": _to("replicas", _whole),
    "nnodes": _to("nodes", _whole),
    "node-rank": _to("node_rank", _rank),
    "max-num-seqs": _to("max_num_seqs", _whole),
    "max-num-batched-tokens": _to("max_num_batched_tokens", _whole),
    "max-model-len": _to("max_model_len", _length),
    "kv-cache-memory-bytes": _to("kv_cache_memory_bytes", _whole),
    "num-gpu-blocks-override": _to("num_gpu_blocks_override", _whole),
    "block-size": _to("kv_block_tokens", _whole),
    "gpu-memory-utilization": _to("gpu_memory_utilization", float),
    "dtype": _to("dtype", str),
    "kv-cache-dtype": _to("kv_cache_dtype", str),
    "quantization": _to("quantization", _METHODS.get),
    "enforce-eager": lambda _: {"captured_graphs": False},
    "no-enforce-eager": lambda _: {"captured_graphs": None},
    "enable-prefix-caching": lambda _: {"prefix_caching": True},
    "no-enable-prefix-caching": lambda _: {"prefix_caching": False},
    "optimization-level": _level,
    "compilation-config": _compilation,
    "compilation-config.cudagraph-mode": _graph_mode,
}
_FLAGS = frozenset({"enforce-eager", "no-enforce-eager", "enable-prefix-caching", "no-enable-prefix-caching"})


def format_of_config(config: object) -> FormatName | None:
    """Return how a checkpoint's weights are stored by its ``quantization_config``; None when that cannot be told.

    The forms are those of Hugging Face's transformers: ``quant_method``, and for ``compressed-tensors`` the bits of
    weights and activations in ``config_groups``.

    Parameters
    ----------
    config : object
        Value of the key as JSON gives it; what is no mapping has no format.
    """
    if not isinstance(config, dict):
        return None
    method = str(config.get("quant_method", "")).lower()
    if method != "compressed-tensors":
        # AWQ and GPTQ come in other widths too, which no format here stands for.
        return None if method in ("awq", "gptq") and config.get("bits", 4) != 4 else _METHODS.get(method)
    groups = config.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights, activations = (
        part if isinstance(part, dict) else {}
        for part in (first.get(key) if isinstance(first, dict) else None for key in ("weights", "input_activations"))
    )
    if not activations:
        return "w4a16" if weights.get("num_bits") == 4 else "w8a16" if weights.get("num_bits") == 8 else None
    if weights.get("num_bits") == activations.get("num_bits") == 8:
        return "fp8" if weights.get("type") == "float" else "w8a8"
    return None
