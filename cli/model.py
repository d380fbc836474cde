"""`cluster model`: what a model needs, from its own config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bottleneck.performance.config_form import ConfigError
from bottleneck.performance.formats import FORMATS, GGUF_TYPES, VALUE_BYTES
from bottleneck.performance.memory import RankMemory, SequenceCache, rank_memory, sequence_cache
from bottleneck.performance.model import Split, flops_per_token, kv_bytes_per_token, parameters, read_bytes
from bottleneck.performance.model_config import ModelConfig, read_model_config
from bottleneck.performance.server_limits import Limits, server_defaults
from bottleneck.units import SIZE, size_text
from cli.model_download import download
from cli.options import JsonOption
from cli.output import FAILED, USAGE, console, emit, fail, out

app = typer.Typer(help="What a model needs; a model for all nodes.", no_args_is_help=True)
app.command()(download)

HELP = "cluster model fit --help"
LONGEST = 131072
"""Most tokens of a sequence where none are asked for: what a token takes of a sequence's fixed part depends on them."""
BLOCK_TOKENS = 16
_CACHE_VALUE_BYTES = {"auto": None, "bf16": VALUE_BYTES, "fp8": 1}


@dataclass(frozen=True)
class _Rank:
    """One rank of a stage."""

    memory: RankMemory
    cache: SequenceCache
    growing_bytes_per_token: int
    sequence_tokens: int
    read_bytes_per_token: float
    flops_per_token: int
    room_bytes: int | None

    @property
    def kv_bytes_per_token(self) -> int:
        return round(self.cache.total_bytes / self.sequence_tokens)

    @property
    def tokens_that_fit(self) -> int | None:
        if self.room_bytes is None:
            return None
        memory = self.memory
        left = self.room_bytes - memory.weights_bytes - memory.activations_bytes - memory.runtime_bytes
        return self.cache.tokens_in(max(0, left) // self.cache.block_bytes * self.cache.block_bytes)

    def to_json(self) -> dict[str, Any]:
        memory, cache = self.memory, self.cache
        return {
            "stage": memory.stage,
            "layers": memory.layers,
            "weights_bytes": memory.weights_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_growing_bytes_per_token": self.growing_bytes_per_token,
            "kv_windowed_bytes": cache.windowed_bytes,
            "kv_state_bytes": cache.state_bytes,
            "kv_sequence_bytes": cache.total_bytes,
            "activations_bytes": memory.activations_bytes,
            "runtime_bytes": memory.runtime_bytes,
            "read_bytes_per_token": round(self.read_bytes_per_token),
            "flops_per_token": self.flops_per_token,
            "tokens_that_fit": self.tokens_that_fit,
        }


@app.command()
def fit(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG_OR_FOLDER", help="A model's config.json, or the folder that it is in.")
    ],
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Ranks that share every layer.")] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1, help="Stages that take turns on the layers.")] = 1,
    quantization: Annotated[
        str | None,
        typer.Option(
            help=f"How weights are stored: {', '.join(FORMATS)}, or a GGUF type such as {GGUF_TYPES[5]}.",
            show_default="as the configuration says",
        ),
    ] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="Of the KV cache: auto, bf16 or fp8.")] = "auto",
    max_model_len: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a sequence.", show_default=f"the model's own, at most {LONGEST}"),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Sequences at the same time.", show_default="vLLM's")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one forward pass.", show_default="vLLM's")
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Of one rank's accelerator: 24 GiB.")] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of it to use.")] = 0.9,
    runtime: Annotated[str, typer.Option(metavar="SIZE", help="What the engine itself takes of it.")] = "1 GiB",
    as_json: JsonOption = False,
) -> None:
    """Work out what each rank needs for a model, and how many tokens fit beside it.

    Reads mixtures of experts, latent attention, sliding windows, linear attention, vision towers and quantized
    checkpoints. A field that is not understood is refused, not passed over.

    Examples:

      cluster model fit ./gpt-oss-120b --memory '80 GiB'

      cluster model fit config.json --tensor-parallel 2 --quantization Q4_K_M --json
    """
    try:
        model = read_model_config(_document(config), quantization, str(config))
    except ConfigError as error:
        fail(str(error), HELP, USAGE if str(error).startswith("--") else FAILED)
    if kv_cache_dtype not in _CACHE_VALUE_BYTES:
        fail(f"--kv-cache-dtype {kv_cache_dtype}; expected one of {', '.join(_CACHE_VALUE_BYTES)}", HELP, USAGE)
    model = replace(model, kv_value_bytes=_CACHE_VALUE_BYTES[kv_cache_dtype] or model.kv_value_bytes)
    split = Split(tensor_parallel, pipeline_parallel)
    trouble = split.problem(model.shape)
    if trouble:
        fail(trouble, HELP, USAGE)
    length = max_model_len or min(model.shape.context_length, LONGEST)
    if length > model.shape.context_length:
        fail(f"--max-model-len {length}; expected at most the model's {model.shape.context_length}", HELP, USAGE)
    room = None if memory is None else _size("--memory", memory)
    default = server_defaults(room or 0)
    limits = Limits(length, max_num_seqs or default.sequences, max_num_batched_tokens or default.batched_tokens)
    usable = None if room is None else int(room * gpu_memory_utilization)
    ranks = [
        _rank(model, limits, split, stage, _size("--runtime", runtime), usable) for stage in range(pipeline_parallel)
    ]
    document = _summary(config, model, limits, split, ranks)
    emit(document, as_json, lambda: _show(model, split, ranks, document))
    if document["fits"] is False:
        raise typer.Exit(FAILED)


def _document(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; expected a model's config.json") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: expected a JSON object, a model's config.json")
    return document


def _size(option: str, text: str) -> int:
    try:
        return int(SIZE.parse(text))
    except ValueError as error:
        fail(f"{option}: {error}", HELP, USAGE)


def _rank(model: ModelConfig, limits: Limits, split: Split, stage: int, runtime: int, room: int | None) -> _Rank:
    shape, weights, values = model.shape, model.weights, model.kv_value_bytes
    memory = rank_memory(
        shape, weights, limits, split, stage, runtime_bytes=runtime, block_tokens=BLOCK_TOKENS, kv_value_bytes=values
    )
    cache = sequence_cache(shape, limits, split, stage, BLOCK_TOKENS, values)
    unlimited = kv_bytes_per_token(shape, split, stage, values, unlimited=True)
    return _Rank(
        memory,
        cache,
        unlimited,
        limits.sequence_tokens,
        read_bytes(shape, weights, split, stage),
        flops_per_token(shape, split, stage),
        room,
    )


def _summary(path: Path, model: ModelConfig, limits: Limits, split: Split, ranks: list[_Rank]) -> dict[str, Any]:
    """Return what the command prints: the largest rank's needs, and every stage's."""
    counted = parameters(model.shape)
    fitting = [each.tokens_that_fit for each in ranks if each.tokens_that_fit is not None]
    tokens = min(fitting) if fitting else None
    return {
        "config": str(path),
        "model_type": model.model_type,
        "parameters": counted.total,
        "weights": model.weights.name,
        "kv_value_bytes": model.kv_value_bytes,
        "tensor_parallel": split.tensor_parallel,
        "pipeline_parallel": split.pipeline_parallel,
        "sequence_tokens": limits.sequence_tokens,
        "weights_bytes": max(each.memory.weights_bytes for each in ranks),
        "kv_bytes_per_token": max(each.kv_bytes_per_token for each in ranks),
        "room_bytes": ranks[0].room_bytes,
        "tokens_that_fit": tokens,
        "fits": None if tokens is None else tokens >= limits.sequence_tokens,
        "ranks": [each.to_json() for each in ranks],
        "notes": list(model.notes),
    }


def _show(model: ModelConfig, split: Split, ranks: list[_Rank], document: dict[str, Any]) -> None:
    billions = document["parameters"] / 1e9
    cache = {1: "8 bit", 2: "16 bit"}[model.kv_value_bytes]
    out.print(f"{model.model_type}: {billions:.4g} B parameters, weights {model.weights.name}, KV cache {cache}")
    table = Table(box=None)
    titles = ("stage", "layers", "weights", "a token of the cache", "activations", "engine", "tokens that fit")
    for title in titles:
        table.add_column(title, justify="right")
    for each in ranks:
        memory, tokens = each.memory, each.tokens_that_fit
        table.add_row(
            str(memory.stage),
            str(memory.layers),
            size_text(memory.weights_bytes),
            f"{each.kv_bytes_per_token} B",
            size_text(memory.activations_bytes),
            size_text(memory.runtime_bytes),
            "-" if tokens is None else str(tokens),
        )
    out.print(table)
    if split.tensor_parallel > 1:
        out.print(f"each of {split.tensor_parallel} ranks of a stage")
    for each in ranks:
        if each.cache.windowed_bytes or each.cache.state_bytes:
            out.print(
                f"stage {each.memory.stage}: a sequence of {document['sequence_tokens']} tokens takes "
                f"{size_text(each.cache.total_bytes)}: {each.growing_bytes_per_token} B a token that grow with it, "
                f"{size_text(each.cache.windowed_bytes)} in windows, {size_text(each.cache.state_bytes)} of states"
            )
    for note in model.notes:
        console.print(f"note: {note}", style="dim", markup=False)
    if document["fits"] is False:
        worst = min(ranks, key=lambda each: each.tokens_that_fit or 0)
        console.print(
            f"does not fit: {worst.memory.arithmetic()} for one sequence of {document['sequence_tokens']} tokens; "
            f"expected at most {size_text(document['room_bytes'])}",
            style="red",
            markup=False,
            soft_wrap=True,
        )
