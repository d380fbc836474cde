"""Read a sweep (step times over batch and prompt length) and the ceilings of the accelerator it ran on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bottleneck.json_files import JsonFileError, read_json
from bottleneck.performance.config_form import ConfigError
from bottleneck.performance.formats import FORMATS, VALUE_BYTES, WeightFormat
from bottleneck.performance.model import read_bytes
from bottleneck.performance.model_config import ModelConfig, read_model_config
from bottleneck.performance.served import Accelerator, Point, Served
from bottleneck.performance.server_limits import server_defaults
from bottleneck.units import GIB, shown

DEFAULT_OUTPUT_TOKENS = 49
DEFAULT_BATCHED_TOKENS = server_defaults(80 * GIB).batched_tokens
"""Where a sweep does not say: sweeps are made on data-centre GPUs."""
LARGEST_COUNT = 2**24
MOST_BATCH_TOKENS = 2**27
"""Of all prompts of a batch: more would take the scheduler's replay minutes."""
SWEEP_COMMAND = "bench/sweep_gpu.py makes files of this form"


class SweepError(Exception):
    """A sweep or a file of ceilings cannot be used; the text names the file, the key and what was expected."""


# What a sweep's `config` may leave out.
_LEFT_OUT = {"model_type": "mistral", "max_position_embeddings": 32768}
_SPELLINGS = {
    "bf16": r"bf16|bfloat16|fp16|float16|half|16[- ]?bit",
    "w4a16": r"w4a16|int4|uint4|4[- ]?bit|awq|gptq|nf4|marlin|machete",
    "w8a16": r"w8a16",
    "fp8": r"fp8|f8e4m3|float8|e4m3",
    "w8a8": r"w8a8|int8|8[- ]?bit",
}


@dataclass(frozen=True)
class Sweep:
    """Measured points of one model on one accelerator."""

    name: str
    served: Served
    output_tokens: int
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
_Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT, strict=True)]


_Form = TypeVar("_Form", bound=BaseModel)


class _Document(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class _Point(_Document):
    batch: _Count
    prompt: _Count
    prefill_s: _Positive
    decode_step_s: _Positive
    total_s: _Positive | None = None


class _Sweep(_Document):
    config: dict[str, object]
    points: Annotated[list[_Point], Field(min_length=1)]
    weights: str = ""
    engine: str = ""
    method: str = ""
    kv_cache_dtype: str = ""


class _Ceilings(_Document):
    name: str = "accelerator"
    copy_bytes_per_second: _Positive | None = Field(default=None, alias="copy_Bps")
    read_bytes_per_second: _Positive | None = Field(default=None, alias="read_Bps")
    launch_s: _Positive | None = None


def read_sweep(path: Path) -> Sweep:
    """Return the sweep in a file.

    Parameters
    ----------
    path : Path
        JSON file of a sweep (doc/howto/what-if.md).

    Raises
    ------
    SweepError
        When it cannot be used.
    """
    document = _validated(path, _Sweep)
    try:
        model = read_model_config({**_LEFT_OUT, **document.config}, where=f"{path}: config")
    except ConfigError as error:
        raise SweepError(str(error)) from error
    notes: list[str] = []
    weights, scale = _weights(path, document, model, notes)
    budget = re.search(r"max_num_batched_tokens\D{0,3}(\d+)", document.engine)
    if not budget:
        notes.append(f"engine: no max_num_batched_tokens; {DEFAULT_BATCHED_TOKENS} is taken")
    served = Served(
        model.shape,
        weights,
        max(1, int(budget[1])) if budget else DEFAULT_BATCHED_TOKENS,
        scale,
        1 if re.search(r"8", document.kv_cache_dtype) else VALUE_BYTES,
    )
    points = tuple(Point(each.batch, each.prompt, each.prefill_s, each.decode_step_s) for each in document.points)
    seen: set[tuple[int, int]] = set()
    for index, each in enumerate(points):
        if (each.batch, each.prompt) in seen:
            raise SweepError(
                f"{path}: points[{index}]: batch {each.batch} x prompt {each.prompt} is there twice; expected one"
            )
        seen.add((each.batch, each.prompt))
        if each.batch * each.prompt > MOST_BATCH_TOKENS:
            raise SweepError(
                f"{path}: points[{index}]: batch {each.batch} x prompt {each.prompt}; expected at most "
                f"{MOST_BATCH_TOKENS} tokens in a batch"
            )
    return Sweep(path.name, served, _output_tokens(path, document), points, tuple(notes))


def _output_tokens(path: Path, document: _Sweep) -> int:
    steps = {
        index: (point.total_s - point.prefill_s) / point.decode_step_s
        for index, point in enumerate(document.points)
        if point.total_s is not None
    }
    if steps:
        middle = sorted(steps.values())[len(steps) // 2]
        for index, each in steps.items():
            if abs(each - middle) > 0.02 * abs(middle) + 0.5:
                seen = document.points[index].decode_step_s
                raise SweepError(
                    f"{path}: points[{index}].decode_step_s: {seen:g} is (total_s - prefill_s)/{each:.3g}; "
                    f"expected (total_s - prefill_s)/{middle:.3g} as in the other points"
                )
        return max(2, round(middle) + 1)
    stated = re.findall(r"max_tokens=(\d+)", document.method)
    return max([DEFAULT_OUTPUT_TOKENS] if not stated else [2, *map(int, stated)])


def _weights(path: Path, document: _Sweep, model: ModelConfig, notes: list[str]) -> tuple[WeightFormat, float]:
    """Return how weights are stored, and the bytes of them that were loaded over those counted.

    What the engine says it loaded is evidence; what the sweep calls it, a name: a checkpoint can be loaded as another.
    """
    # The model's own configuration goes before the sentence.
    named = [model.weights] if document.config.get("quantization_config") else _named(path, document.weights)
    shape = model.shape
    # A step reads a few rows of the embedding table.
    table = shape.table_parameters * VALUE_BYTES
    loaded = re.search(r"(\d+(?:\.\d+)?)\s*GiB loaded", document.weights)
    stated = float(loaded[1]) * GIB - table if loaded else 0.0
    if stated <= 0:
        return named[0], 1.0

    def distance(weights: WeightFormat) -> float:
        return abs(math.log(read_bytes(shape, weights) / stated))

    best = min(named, key=distance)
    if distance(best) > 0.25:
        other = min((FORMATS[name] for name in _SPELLINGS), key=distance)
        notes.append(
            f"weights: {loaded[1] if loaded else 0} GiB loaded, but {best.name} would be "
            f"{(read_bytes(shape, best) + table) / GIB:.2f} GiB; {other.name} is taken"
        )
        best = other
    return best, stated / read_bytes(shape, best)


def _named(path: Path, text: str) -> list[WeightFormat]:
    """Return the formats that a sentence names, fewest bits first: weights are what is stored with the fewest."""
    lowered = text.lower()
    found = [
        FORMATS[name]
        for name, pattern in _SPELLINGS.items()
        if re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", lowered)
    ]
    if not found:
        raise SweepError(
            f"{path}: weights: {shown(text)} names no known quantisation; expected one of "
            f"{', '.join(_SPELLINGS)}, such as 'w4a16 (11.26 GiB loaded)'"
        )
    return sorted(found, key=lambda each: each.bits)


def read_accelerator(path: Path) -> Accelerator:
    """Return the accelerator whose ceilings are in a file.

    Parameters
    ----------
    path : Path
        JSON file of an accelerator's ceilings, in bytes and operations per second.

    Raises
    ------
    SweepError
        When they lack the memory rate or the rate of matrix products.
    """
    document = _validated(path, _Ceilings)
    rates: dict[str, float] = {}
    for key, value in (document.model_extra or {}).items():
        if re.fullmatch(r"gemm_bf16_\d+_flops", key):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise SweepError(f"{path}: {key}: {shown(value)}; expected a rate above zero in FLOP/s")
            rates[key] = float(value)
    memory = document.read_bytes_per_second or document.copy_bytes_per_second
    if memory is None:
        raise SweepError(f"{path}: read_Bps: missing; expected bytes per second read from memory ({SWEEP_COMMAND})")
    if not rates:
        raise SweepError(
            f"{path}: gemm_bf16_8192_flops: missing; expected FLOP/s of a large bfloat16 matrix product "
            f"({SWEEP_COMMAND})"
        )
    return Accelerator(document.name, memory, max(rates.values()), document.launch_s or 1e-5)


def _validated(path: Path, form: type[_Form]) -> _Form:
    try:
        found = read_json(path, TypeAdapter(form))
    except JsonFileError as error:
        raise SweepError(f"{error}; {SWEEP_COMMAND}") from error
    if found is None:
        raise SweepError(f"{path}: no such file; {SWEEP_COMMAND}")
    return found
