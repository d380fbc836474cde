"""Types of the model in a profile: dimensions and storage of its weights, or its own configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from bottleneck.performance.config_form import ConfigError
from bottleneck.performance.formats import FORMATS, VALUE_BYTES, WeightFormat
from bottleneck.performance.layers import dense_shape
from bottleneck.performance.model_config import ModelConfig, read_model_config
from bottleneck.performance.shape import ModelShape
from bottleneck.profile.paths import content_directory
from bottleneck.profile.value_types import Count, Name, Section


class Quantization(Section):
    """Storage of the weights of the linear layers."""

    bits: Literal[4, 8, 16] = Field(description="Bits of one weight; 16 is bfloat16 without quantization.")
    group_size: Count = Field(default=128, description="Weights that share one bfloat16 scale.")
    symmetric: bool = Field(default=True, description="False when every group has a zero point of `bits` bits too.")

    def weight_format(self) -> WeightFormat:
        """Return it as the step model takes it."""
        if self.bits == 16:
            return FORMATS["bf16"]
        zero_point = 0 if self.symmetric else self.bits
        return replace(FORMATS[f"w{self.bits}a16"], group_size=self.group_size, zero_point_bits=zero_point)


class Shape(Section):
    """Dimensions of a model of the Mistral architecture."""

    layers: Count = Field(description="Transformer layers.")
    hidden_size: Count = Field(description="Width of the hidden state.")
    intermediate_size: Count = Field(description="Width inside the feed-forward block.")
    attention_heads: Count = Field(description="Query heads.")
    key_value_heads: Count = Field(description="Key and value heads; divides the query heads.")
    head_dim: Count = Field(description="Width of one head.")
    vocabulary_size: Count = Field(description="Entries of the vocabulary.")
    context_length: Count = Field(description="Most tokens of one sequence.")

    def model_shape(self) -> ModelShape:
        """Return it as the step model takes it."""
        return dense_shape(**self.model_dump())


@lru_cache(maxsize=16)
def _read_config(text: str) -> ModelConfig:
    return read_model_config(json.loads(text), where="config")


def _main_format(found: ModelConfig) -> dict[str, Any]:
    bits = next(width for width in (4, 8, 16) if found.weights.bits <= width)
    return {"bits": bits, "group_size": found.weights.group_size or Quantization.model_fields["group_size"].default}


def _main_shape(found: ModelConfig) -> dict[str, int]:
    """Return dimensions for people, and for those who only ask for the hidden size or the context length."""
    shape = found.shape
    widths = {matrix.name: matrix.outputs for layer in shape.layers for matrix in layer.matrices}
    return {
        "layers": len(shape.layers),
        "hidden_size": shape.hidden_size,
        "intermediate_size": widths["gate_proj"],
        "attention_heads": shape.attention_heads,
        "key_value_heads": shape.key_value_heads,
        "head_dim": max(1, widths.get("k_proj", shape.hidden_size) // shape.key_value_heads),
        "vocabulary_size": shape.vocabulary_size,
        "context_length": shape.context_length,
    }


def _either(schema: dict[str, Any]) -> None:
    """Let a model have its own configuration in place of what is filled in from it."""
    filled = ["quantization", "shape"]
    schema["required"] = [key for key in schema["required"] if key not in filled]
    schema["anyOf"] = [{"required": ["config"]}, {"required": filled}]


class Model(Section):
    """The model that is served."""

    model_config = ConfigDict(json_schema_extra=_either)

    name: Name = Field(description="The name clients ask for.")
    source: Annotated[str, Field(min_length=1)] = Field(
        description="`generate` (random weights, made on the node), `dummy` (shape and tokenizer alone, made there; the"
        " engine makes weights up), an absolute folder, or a hub name."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="Seed of generated weights.")
    config: dict[str, object] | None = Field(
        default=None,
        description="The content of the model's own config.json, for a model that is not of the Mistral architecture;"
        " it stands in place of `quantization` and `shape`.",
    )
    quantization: Quantization = Field(description="How the weights are stored.")
    shape: Shape = Field(description="Its dimensions.")

    @model_validator(mode="before")
    @classmethod
    def _from_config(cls, data: Any) -> Any:
        """Fill in the main dimensions from the model's own configuration."""
        if not isinstance(data, dict) or not isinstance(data.get("config"), dict):
            return data
        given = [key for key in ("shape", "quantization") if key in data]
        try:
            found = read_model_config(data["config"], where="config")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        filled = {"quantization": _main_format(found), "shape": _main_shape(found)}
        # What was filled in before, and dumped with it, stands beside it.
        if any(data[key].get(name) != value for key in given for name, value in filled[key].items()):
            raise ValueError(f"config beside {' and '.join(given)}; expected either it or both of them")
        return {**data, **filled}

    def model_config_read(self) -> ModelConfig | None:
        """Return what the model's own configuration says; None where there is none."""
        return None if self.config is None else _read_config(json.dumps(self.config, sort_keys=True))

    def model_shape(self) -> ModelShape:
        """Return its dimensions as the step model takes them."""
        found = self.model_config_read()
        return found.shape if found else self.shape.model_shape()

    def weight_format(self) -> WeightFormat:
        """Return how its weights are stored, as the step model takes it."""
        found = self.model_config_read()
        return found.weights if found else self.quantization.weight_format()

    @property
    def kv_value_bytes(self) -> int:
        """Bytes of a value of the KV cache."""
        found = self.model_config_read()
        return found.kv_value_bytes if found else VALUE_BYTES

    @property
    def is_made(self) -> bool:
        """True when nodes make it themselves, of its shape alone."""
        return self.source in ("generate", "dummy")

    def directory(self) -> str:
        """Return where the checkpoint is on every node; the name changes with what is in it."""
        if self.source.startswith("/"):
            return self.source
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return content_directory("models", self.name, content)
