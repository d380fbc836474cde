"""An entry of the engine map: how the engine for one kind of accelerator is installed and started."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PrivateAttr

from bottleneck.places import engine_directory
from bottleneck.value_types import Count, Name, Section, Size, with_unit


class FallbackIndex(Section):
    """A package index that is asked only when the default one fails."""

    package: str = Field(description="The package it is for.")
    url: str = Field(description="Its address.")


class AliasDistribution(Section):
    """A second name under which a package's version is looked up."""

    name: str = Field(description="The name.")
    version: str = Field(description="The version to give.")


class EngineSpec(Section):
    """An entry of engines.yaml: the engine for one kind of accelerator."""

    engine: Literal["vllm", "openvino"] = Field(description="The engine.")
    python: str = Field(default="python3.11", description="Interpreter of its virtual environment.")
    packages: list[str] = Field(default=[], description="Debian packages it needs.")
    lock: Name | None = Field(
        default=None,
        description="Lock file in salt/engine/files: one pinned package a line.",
    )
    untested: str = Field(
        default="", description="What has not been tried or is missing; an entry without a lock file has to say it."
    )
    requirements: list[str] = Field(default=[], description="What the lock file was resolved from, or is to be.")
    indexes: list[str] = Field(default=[], description="Package indexes to ask besides the default one, every time.")
    fallback_index: FallbackIndex | None = Field(default=None, description="Index to ask when the default one fails.")
    alias_distribution: AliasDistribution | None = Field(default=None, description="A second name for the package.")
    preload: list[str] = Field(default=[], description="Libraries to preload, relative to the environment.")
    environment: dict[str, str] = Field(default={}, description="Environment of every worker.")
    arguments: list[str] = Field(default=[], description="Arguments of every worker.")
    tensor_parallel_arguments: list[str] = Field(default=[], description="Added when there are no pipeline stages.")
    pipeline_parallel_arguments: list[str] = Field(default=[], description="Added when there are pipeline stages.")
    bind_interface_environment: list[str] = Field(
        default=[], description="Variables that name the interface to talk over."
    )
    collective_backend: str | None = Field(
        default=None, description="What torch sends messages between ranks with; measured by `cluster probe`."
    )
    shares_host_memory: bool = Field(
        default=False, description="The accelerator's memory is part of the node's main memory."
    )
    runtime_memory_bytes: Size = with_unit(
        "1 GiB", "runtime_memory", "What the engine's own code and buffers take on each rank; an estimate."
    )
    kv_block_tokens: Count = Field(default=16, description="Tokens of one block of the KV cache.")

    _kind: str = PrivateAttr(default="")

    @property
    def kind(self) -> str:
        """The kind of accelerator this entry is for."""
        return self._kind

    def directory(self) -> str:
        """Return where the environment is on every node; the name changes with what is in it."""
        return engine_directory(self)
