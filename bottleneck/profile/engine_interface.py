"""Read how an engine is started, watched and spread, whatever it runs on: an entry of engine_interfaces.yaml.

Command lines are templates: words with ``{names}`` of the fixed set below, filled in by `bottleneck.plan.engines`. No
code is in them, so an engine that has no new dialect of metrics is added without Python.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from bottleneck.profile.value_types import Name, Port, Section, VariableName

# Settings of a deployment's server that a command line may carry; what no template of an engine uses, it cannot do.
SETTINGS: Mapping[str, str] = {
    "max_model_len": "most tokens of one sequence",
    "max_num_seqs": "sequences at the same time",
    "max_num_batched_tokens": "tokens of one forward pass",
    "kv_cache_memory_bytes": "bytes of each rank's KV cache",
    "num_gpu_blocks_override": "blocks of the KV cache",
    "gpu_memory_utilization": "share of the accelerator's memory",
    "prefix_caching": "reuse of the cache of equal prompt beginnings (true or false)",
}
NAMES: Mapping[str, str] = {
    **SETTINGS,
    "model": "the model on the node, in the form that the engine loads",
    "model_name": "the name it answers to",
    "dummy_weights": "whether the engine makes up the weights itself (true or false)",
    "api_address": "where the head serves",
    "api_port": "the port there",
    "link_address": "the node's own address on the deployment's link",
    "interface": "the interface of that link",
    "head_link_address": "the head's address on that link",
    "coordinator_port": "the port where the ranks of a replica meet",
    "peer_port": "the port of a follower that serves the head",
    "peers": "address:port of the replica's followers on the link, joined by commas; none without followers",
    "rank": "the node's index in its replica; the head is 0",
    "world": "nodes of the replica",
    "spread": "whether the replica is on several nodes (true or false)",
    "tensor_parallel": "ranks that share every layer",
    "pipeline_parallel": "stages that take turns on the layers",
    "offloaded_layers": "layers of all followers and the output; none without followers",
    "peer_shares": "layers of each follower, the output counted on the last, joined by commas; none without followers",
    "all_shares": "layers of each follower, then of the head with the output; none without followers",
    "context_tokens": "most tokens of all sequences together",
    "cores": "cores of the node",
    "api_key_file": "the file on a node that its engine reads the API's key from",
    "cache": "a folder of the node that outlives workers",
    "device": "the engine's own name of the accelerator, from the entry of the engine map",
}
# In what a check expects: the engine's own name of the accelerator.
DEVICE = "{device}"
# The dialect of an engine that has no metrics.
NO_METRICS = "none"
# Stands alone: the arguments of the engine map's entry and the deployment's further ones, one word each.
ARGUMENTS = "{arguments}"
# What a conversion of the model may name.
CONVERSION_NAMES: Mapping[str, str] = {
    "checkpoint": "the checkpoint, as it comes from the hub or is generated",
    "target": "the folder to fill",
    "weights": "the engine's own name for weights of the profile's bits",
    "scripts": "the folder with this project's scripts for models",
    "root": "the engine's folder",
    "python": "the Python of the environment that has the tools for checkpoints",
    "generated": "whether the checkpoint was generated here (true or false)",
}


def names_in(text: str) -> set[str]:
    """Return the names that a template uses.

    Parameters
    ----------
    text : str
        Template with names in braces, such as "--port {port}".

    Raises
    ------
    ValueError
        When it is no template.
    """
    found = set()
    for _, name, specification, conversion in string.Formatter().parse(text):
        if name is None:
            continue
        if specification or conversion or not name.isidentifier():
            raise ValueError(f"{{{name}}} in {text!r}; expected a name alone, such as {{model}}")
        found.add(name)
    return found


def _template(known: Mapping[str, str]) -> AfterValidator:
    def check(text: str) -> str:
        for name in sorted(names_in(text) - set(known)):
            if text != ARGUMENTS:
                raise ValueError(f"{{{name}}} in {text!r}; expected one of {', '.join(sorted(known))}")
        return text

    return AfterValidator(check)


def _condition(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{name}; expected one of {', '.join(sorted(NAMES))}")
    return name


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r}: {error}; expected a regular expression") from None
    return text


def _group(written: object) -> object:
    """Return words as they may be written short: one word, or a list of words that belong together."""
    if isinstance(written, str):
        return {"words": [written]}
    return {"words": written} if isinstance(written, list) else written


Template = Annotated[str, _template(NAMES)]
ConversionTemplate = Annotated[str, _template(CONVERSION_NAMES)]
Condition = Annotated[str, AfterValidator(_condition)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class Words(Section):
    """Words of a command line that belong together: left out when one of their names has no value."""

    words: list[Template] = Field(description="Words with {names}.")
    when: Condition | None = Field(default=None, description="Only when this name is true or has a value.")
    unless: Condition | None = Field(default=None, description="Only when this name is false or has no value.")

    def names(self) -> set[str]:
        """Return the names that are used here."""
        used = set().union(*(names_in(word) for word in self.words if word != ARGUMENTS))
        return used | {name for name in (self.when, self.unless) if name is not None}


WordGroup = Annotated[Words, BeforeValidator(_group)]


class Ready(Section):
    """Signs that a worker is ready: one of three."""

    path: str | None = Field(default=None, description="The API answers here with `status`.")
    status: int = Field(default=200, description="The status that is expected there.")
    stage: Literal["loading", "warming"] | None = Field(
        default=None, description="Its log has reached this of the engine's `stages`."
    )
    listening: bool = Field(default=False, description="It accepts connections on the peer port.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum((self.path is not None, self.stage is not None, self.listening)) != 1:
            raise ValueError("expected one of path, stage and listening")
        return self


class Role(Section):
    """Command of the worker of one role."""

    program: str = Field(description="The program: a path below the engine's environment, or an absolute one.")
    argv: list[WordGroup] = Field(default=[], description="Its arguments.")
    environment: dict[str, Template] = Field(default={}, description="Its environment; what has no value is left out.")
    ready: Ready = Field(description="How is seen that it is ready.")

    def names(self) -> set[str]:
        """Return the names that its command line and environment use."""
        groups = (group.names() for group in self.argv)
        return set().union(*groups, *(names_in(text) for text in self.environment.values()))


class Stage(Section):
    """A stage of a start, seen in the worker's log; the last one that matches holds."""

    name: Literal["loading", "warming"] = Field(description="The stage.")
    pattern: Pattern = Field(description="What the log says when it begins; a regular expression.")


class Metrics(Section):
    """Place of the head's metrics, and the names in them."""

    dialect: Name = Field(
        default=NO_METRICS,
        description="Names of its metrics (`bottleneck/telemetry/engine_names.py`); `none` has none.",
    )
    path: str = Field(default="/metrics", description="Where the head serves them.")


class EagerWords(Section):
    """Words for the setting enforce_eager."""

    on: str = Field(description="Steps are run kernel by kernel.")
    off: str = Field(description="Steps are compiled or captured.")


class Conversion(Section):
    """Conversion of a checkpoint to what the engine loads: done once, by digest."""

    form: Name = Field(description="The form, a part of the folder's name.")
    file: str = Field(default="", description="The file in that folder that the engine loads; empty is the folder.")
    steps: list[list[ConversionTemplate]] = Field(min_length=1, description="Programs to run, one after another.")


class OwnBench(Section):
    """The engine's own bench, where it has no torch: what `cluster probe` measures the accelerator with."""

    dialect: Literal["llama-bench"] = Field(description="What it prints: the JSON of llama-bench.")
    program: str = Field(description="The program: a path below the engine's environment, or a name there.")
    argv: list[Template] = Field(description="Its arguments; {model} and {cores} are known.")

    @model_validator(mode="after")
    def _known(self) -> Self:
        unknown = set().union(*(names_in(word) for word in self.argv)) - {"model", "cores"}
        if unknown:
            raise ValueError(f"{{{min(unknown)}}} in argv; expected {{model}} and {{cores}} alone")
        return self


class EngineCheck(Section):
    """Something that `cluster doctor` looks at on a node with this engine."""

    what: str = Field(description="What is looked at, in a few words.")
    command: list[str] = Field(min_length=1, description="Program with arguments, run as a worker is.")
    expected: Pattern = Field(
        description="What it has to print; a regular expression, in which {device} is the entry's `device`. Without a"
        " device it is not looked at."
    )
    next: str = Field(description="What to do when it does not.")


class EngineInterface(Section):
    """An entry of engine_interfaces.yaml: how one engine is started, watched and spread."""

    title: str = Field(description="Its name for people.")
    spreads: list[Literal["tensor", "pipeline", "layers", "replicas"]] = Field(
        description="How it spreads a model: every layer over ranks, stages of layers, layers by remote calls, copies."
    )
    unequal_layers: bool = Field(
        default=False, description="Its command line says the layers of each stage, which may be unlike."
    )
    overlapping_stages: bool = Field(
        default=True, description="Its stages work on parts of a batch side by side, and do not wait for each other."
    )
    weights: dict[Literal["4", "8", "16"], str] = Field(
        min_length=1, description="Bits of the profile's quantization that it takes -> its own name for such weights."
    )
    conversion: Conversion | None = Field(
        default=None, description="How its form of the model is made; left out, it loads the checkpoint as it is."
    )
    roles: dict[Literal["head", "follower"], Role] = Field(
        default={}, description="How workers are started: the head serves the API; a replica on one node is a head."
    )
    followers_first: bool = Field(default=False, description="Followers must be ready before the head is started.")
    peer_port: Port = Field(default=50052, description="Port of a follower that serves the head, on the link.")
    stages: list[Stage] = Field(default=[], description="Stages of a start in a worker's log.")
    metrics: Metrics = Field(default_factory=Metrics, description="The head's metrics.")
    bench: OwnBench | None = Field(default=None, description="Its own bench.")
    failures: str | None = Field(
        default=None, description="Rules for failures in its log: a module of `_utils` with `ENGINE_RULES`."
    )
    api_key_variable: VariableName | None = Field(
        default=None, description="Variable of its environment that it takes the API's key from, where no file is."
    )
    eager: EagerWords | None = Field(default=None, description="Words of the setting enforce_eager.")
    argument_reader: Literal["server_arguments"] | None = Field(
        default=None, description="What reads further arguments that a person wrote; left out, nothing is read in them."
    )
    version_of: list[str] = Field(
        default=[], description="Names of the package that is the engine; the first that is installed has its version."
    )
    versions: list[str] = Field(default=[], description="Further packages whose versions go on record.")
    checks: list[EngineCheck] = Field(default=[], description="What `cluster doctor` looks at.")

    _name: str = PrivateAttr(default="")

    @property
    def name(self) -> str:
        """The engine's name in the engine map."""
        return self._name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.roles and "head" not in self.roles:
            raise ValueError("roles without head; expected a head, which serves the API")
        stages = {stage.name for stage in self.stages}
        for role in self.roles.values():
            if role.ready.stage is not None and role.ready.stage not in stages:
                raise ValueError(f"ready by the stage {role.ready.stage}; expected it among stages")
        if self.failures is not None and not re.fullmatch(r"[a-z][a-z0-9_]*", self.failures):
            raise ValueError(f"failures {self.failures!r}; expected the name of a module, such as vllm_failures")
        return self

    @property
    def reserves_context(self) -> bool:
        """Return whether it is started with room in the cache for every sequence at its longest."""
        return any("context_tokens" in role.names() for role in self.roles.values())

    @property
    def makes_weights_up(self) -> bool:
        """True when it can serve a model of which there is only the shape."""
        return any("dummy_weights" in role.names() for role in self.roles.values())

    def settings(self) -> set[str]:
        """Return the server settings that its command lines carry."""
        used = set().union(*(role.names() for role in self.roles.values()))
        # Said in one number where the engine knows only that.
        if self.reserves_context:
            used |= {"max_model_len", "max_num_seqs"}
        return used & set(SETTINGS)
