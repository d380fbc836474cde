"""Read the command line, and the limits that the model's own files set."""

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class SettingsError(Exception):
    """A setting that cannot be; the text says which, what was seen and what was expected."""


# Tokens of one block of the KV cache by device (openvino.genai: continuous_batching/cache/kv_cache_manager.hpp;
# measured on the CPU: 250 tokens take 8 blocks).
BLOCK_TOKENS = {"CPU": 32, "GPU": 16}
# Bytes of one value in the KV cache.
CACHE_FORMATS = {"u8": 1, "f16": 2, "bf16": 2, "f32": 4}
DEFAULT_CACHE_FORMATS = {"CPU": "u8", "GPU": "f16"}
# A scale and a zero point, as 32-bit floats: in u8 a block has one pair for each channel of its keys, and each token
# one for its values (measured with 2026.4.1 on the CPU by the pipeline's cache_size_in_bytes).
_PAIR_BYTES = 8


@dataclass(frozen=True)
class Settings:
    """Settings that the server runs with.

    Attributes
    ----------
    model_folder
        With OpenVINO's form of the model.
    device
        ``CPU``, ``GPU`` or ``GPU.1``: one device.
    threads
        Of a step on the CPU; None leaves it to OpenVINO.
    vocabulary_size
        Tokens that the model knows.
    max_model_len
        Most tokens of a sequence.
    max_num_seqs
        Requests that are computed together; others wait.
    cache_blocks, block_tokens
        Blocks of the KV cache, and tokens of one.
    stall_seconds
        Without the end of a step for so long, while requests are there, the server is not healthy.
    """

    model_folder: str
    model_name: str
    vocabulary_size: int
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "CPU"
    threads: int | None = None
    max_model_len: int = 2048
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 2048
    cache_blocks: int = 256
    block_tokens: int = 32
    cache_format: str = "u8"
    prefix_caching: bool = False
    api_key_file: str | None = None
    chat_template_file: str | None = None
    stall_seconds: float = 60.0
    drain_seconds: float = 10.0

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache has room for."""
        return self.cache_blocks * self.block_tokens


def settings(arguments: Sequence[str] | None = None) -> Settings:
    """Return the settings of a command line.

    Raises
    ------
    SettingsError
        For a value that cannot be; what argparse finds wrong ends the program as it does.
    """
    options = _parser().parse_args(arguments)
    config = _config(options.model)
    longest, vocabulary = (_count(config, key) for key in ("max_position_embeddings", "vocab_size"))
    if options.max_model_len and options.max_model_len > longest:
        raise SettingsError(
            f"--max-model-len {options.max_model_len}: the model was made for {longest} tokens; expected no more"
        )
    device = options.device.partition(".")[0]
    if not re.fullmatch(r"CPU|GPU(\.\d+)?", options.device):
        # HETERO and MULTI over several cards fail in 2026: openvino issues 38250 and 38253.
        raise SettingsError(f"--device {options.device}: expected CPU, GPU or GPU.N; one device serves a replica")
    block_tokens = BLOCK_TOKENS[device]
    cache_format = options.kv_cache_format or DEFAULT_CACHE_FORMATS[device]
    blocks = options.num_kv_blocks or options.kv_cache_bytes // block_bytes(config, block_tokens, cache_format)
    if blocks < 2:
        raise SettingsError(
            f"the KV cache would have {blocks} blocks of {block_tokens} tokens; expected 2 or more: "
            "raise --kv-cache-bytes"
        )
    for name in ("api_key_file", "chat_template"):
        path = getattr(options, name)
        if path and not os.path.isfile(path):
            raise SettingsError(f"--{name.replace('_', '-')} {path}: no such file")
    return Settings(
        model_folder=options.model,
        model_name=options.served_model_name or os.path.basename(os.path.normpath(options.model)),
        host=options.host,
        port=options.port,
        vocabulary_size=vocabulary,
        device=options.device,
        threads=options.threads,
        max_model_len=options.max_model_len or longest,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        cache_blocks=blocks,
        block_tokens=block_tokens,
        cache_format=cache_format,
        prefix_caching=options.enable_prefix_caching,
        api_key_file=options.api_key_file,
        chat_template_file=options.chat_template,
        stall_seconds=options.stall_seconds,
        drain_seconds=options.drain_seconds,
    )


def _count(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise SettingsError(f"config.json: {key} is {value!r}; expected a whole number above 0")
    return value


def block_bytes(config: dict[str, Any], block_tokens: int, cache_format: str) -> int:
    """Return the bytes of one block of the KV cache: keys and values of every layer for so many tokens."""
    layers = _count(config, "num_hidden_layers")
    heads = _count(config, "num_key_value_heads" if config.get("num_key_value_heads") else "num_attention_heads")
    width = config.get("head_dim") or _count(config, "hidden_size") // _count(config, "num_attention_heads")
    pairs = (width + block_tokens) * _PAIR_BYTES if cache_format == "u8" else 0
    return layers * heads * int(2 * width * block_tokens * CACHE_FORMATS[cache_format] + pairs)


def _config(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}; expected the folder of a converted model") from error
    if not os.path.exists(os.path.join(folder, "openvino_model.xml")):
        raise SettingsError(f"{folder} has no openvino_model.xml; expected OpenVINO's form of the model")
    return content


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="genai_server", description="Serve a model by OpenVINO GenAI.")
    parser.add_argument("--model", required=True, help="folder with OpenVINO's form of the model")
    parser.add_argument("--served-model-name", help="name it answers to; the folder's when left out")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_positive, default=8000)
    parser.add_argument("--device", default="CPU", help="CPU, GPU or GPU.N")
    parser.add_argument("--threads", type=_positive, help="threads of a step on the CPU")
    parser.add_argument("--max-model-len", type=_positive, help="most tokens of a sequence; the model's when left out")
    parser.add_argument("--max-num-seqs", type=_positive, default=16, help="requests that are computed together")
    parser.add_argument("--max-num-batched-tokens", type=_positive, default=2048, help="most tokens of one step")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument("--kv-cache-bytes", type=_positive, default=256 * 2**20)
    cache.add_argument("--num-kv-blocks", type=_positive)
    parser.add_argument("--kv-cache-format", choices=sorted(CACHE_FORMATS), help="u8 on the CPU, f16 on a GPU")
    parser.add_argument("--enable-prefix-caching", action="store_true")
    parser.add_argument("--api-key-file", help="file whose first line requests to /v1 must bring as a bearer token")
    parser.add_argument("--chat-template", help="file with the chat template; the model's own when left out")
    parser.add_argument("--stall-seconds", type=float, default=60.0, help="not healthy after so long without a step")
    parser.add_argument("--drain-seconds", type=float, default=10.0, help="how long a stop waits for running requests")
    return parser
