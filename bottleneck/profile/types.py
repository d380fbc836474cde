"""The types of a profile: what may be written, in which unit, with which default.

YAML keys are the names a person writes (``rate: 1 Gbit/s``), attributes carry the base
unit (``rate_bytes_per_second``). The descriptions here become the reference page.
Machines are in `machine_types`, the model in `model_types`, netboot in `boot_types`, the engine map in `engine_types`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, PrivateAttr

from bottleneck.performance.server_limits import Limits, server_defaults
from bottleneck.performance.shape import Split
from bottleneck.profile.boot_types import Boot, Source
from bottleneck.profile.engine_types import EngineSpec
from bottleneck.profile.machine_types import Accelerator, Control, Link, Network, Node
from bottleneck.profile.model_types import Model, Quantization, Shape
from bottleneck.profile.value_types import (
    Count,
    Duration,
    Frequency,
    Name,
    Port,
    Section,
    Size,
    Subnet,
    VariableName,
    name_text,
    with_unit,
)
from bottleneck.profile.yaml_lines import Document, Location, Problem

__all__ = [
    "Accelerator",
    "Boot",
    "Control",
    "Deployment",
    "EngineSpec",
    "Link",
    "Model",
    "Network",
    "Node",
    "Profile",
    "Quantization",
    "Sampler",
    "Section",
    "Server",
    "Shape",
    "Source",
    "Telemetry",
    "Workload",
]


class Server(Section):
    """Settings of vLLM; what is left out is vLLM's own default."""

    max_model_len: Count | None = Field(default=None, description="Most tokens of one sequence; at most the model's.")
    max_num_seqs: Count | None = Field(default=None, description="Sequences that run at the same time.")
    max_num_batched_tokens: Count | None = Field(default=None, description="Tokens of one forward pass.")
    kv_cache_memory_bytes: Size | None = Field(
        default=None, alias="kv_cache_memory", description="KV cache of each rank."
    )
    num_gpu_blocks_override: Count | None = Field(
        default=None, description="Blocks of the KV cache, whatever memory would allow."
    )
    prefix_caching: bool = Field(default=True, description="Reuse the KV cache of equal prompt beginnings.")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.15, description="Share of the accelerator's memory (on a CPU: of the machine's) that vLLM may take."
    )
    enforce_eager: bool | None = Field(
        default=None, description="Run without torch.compile; left out, the engine map decides."
    )
    extra_arguments: list[str] = Field(default=[], description="Further arguments of `vllm serve`.")


class Deployment(Section):
    """A model on an engine across nodes."""

    nodes: list[Name] = Field(min_length=1, description="Nodes in rank order; each replica takes the next ones.")
    tensor_parallel: Count = Field(default=1, description="Ranks that share every layer.")
    pipeline_parallel: Count = Field(default=1, description="Stages that take turns on the layers.")
    replicas: Count = Field(default=1, description="Independent copies of the whole.")
    layers: list[Count] = Field(
        default=[],
        description="Layers of each pipeline stage, for unlike accelerators; left out, the engine splits them evenly.",
    )
    cards: dict[Name, list[Annotated[int, Field(ge=0)]]] = Field(
        default={},
        description="Node name -> which of its accelerators are taken, counted from 0, a rank each; left out, the"
        " first ones.",
    )
    link: Name = Field(description="Network that carries the traffic between ranks.")
    environment: dict[VariableName, str] = Field(
        default={}, description="Environment of its workers, over what the engine map says; no secrets."
    )
    api_clients: list[Subnet] = Field(
        default=[],
        description="Networks that may connect to the gateway beside the control node, such as 10.77.0.0/24; they need"
        " the API's key all the same. Its heads are reached by the control node alone.",
    )
    memory_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9,
        description="Most of a node's memory that its worker's processes may take together; what takes more is ended,"
        " all of it, before the node is short of memory itself. Enforced where systemd runs.",
    )
    engine: Name | None = Field(
        default=None,
        description="Entry of the engine map, where another engine than that of the nodes' kind of accelerator is"
        " meant.",
    )
    server: Server = Field(default_factory=Server, description="Settings of vLLM.")

    @property
    def split(self) -> Split:
        """The split of the model over the ranks of a replica."""
        return Split(self.tensor_parallel, self.pipeline_parallel, partition=tuple(self.layers))

    @property
    def ranks_per_replica(self) -> int:
        """Tensor parallel size times pipeline stages."""
        return self.split.ranks

    def limits(self, shape: Shape, accelerator: Accelerator, on_cpu: bool) -> Limits:
        """Return the server's settings on a kind of accelerator, vLLM's defaults in place of those left out.

        Parameters
        ----------
        shape
            Of the whole model.
        accelerator
            On which it runs: vLLM has other defaults for each.
        on_cpu
            Whether the engine is the one for processors.
        """
        server = self.server
        name = accelerator.model or accelerator.kind
        default = server_defaults(accelerator.memory_bytes, name, on_cpu=on_cpu, ranks=self.ranks_per_replica)
        return Limits(
            server.max_model_len or shape.context_length,
            server.max_num_seqs or default.sequences,
            server.max_num_batched_tokens or default.batched_tokens,
            server.kv_cache_memory_bytes,
            server.num_gpu_blocks_override,
        )


class Workload(Section):
    """Requests that the load generator sends: their number, lengths and concurrency."""

    input_tokens: Count = Field(default=256, description="Tokens of a prompt.")
    output_tokens: Count = Field(default=32, description="Tokens of an answer.")
    concurrency: Count = Field(default=4, description="Requests under way at the same time.")
    requests: Count = Field(default=16, description="Requests in all.")
    temperature: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0, description="0 is greedy; above 0 the sampler is compiled at the first request."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="Seed of the random prompts.")


class Sampler(Section):
    """Settings of the sampler on each node."""

    rate_hertz: Frequency = with_unit("10 Hz", "rate", "Samples a second.")
    batch_interval_seconds: Duration = with_unit("1 s", "batch_interval", "Samples are packed into batches this long.")
    send_interval_seconds: Duration = with_unit(
        "5 s",
        "send_interval",
        "How often batches are sent, all that are due in one event; an event costs 8 ms of CPU, most of it Salt's.",
    )
    engine_interval_seconds: Duration = with_unit("3 s", "engine_interval", "How often the engine's metrics are read.")
    acknowledge_interval_seconds: Duration = with_unit(
        "10 s", "acknowledge_interval", "How often the control node says which batches it has."
    )
    spool_batches: Count = Field(default=600, description="Batches kept while they are not acknowledged.")
    spool_bytes: Size = with_unit(
        "256 MiB", "spool_size", "Room they may take in memory, and once more on the disk; the oldest go first."
    )


class Telemetry(Section):
    """Settings of the control node's handling of samples."""

    window_seconds: Duration = with_unit("15 s", "window", "Length of one window of aggregation.")
    heartbeat_deadline_seconds: Duration = with_unit(
        "5 s", "heartbeat_deadline", "A node whose batches are this late is lost."
    )
    exporter_port: Port = Field(default=9477, description="Port of the Prometheus exporter.")
    retention_seconds: Duration = with_unit("24 h", "retention", "How long the store keeps batches.")


def _written(section: Section) -> dict[str, Any]:
    """Return a section as it is written: a default that comes later changes no digest."""
    return section.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Profile(Section):
    """One cluster: its machines, its networks, its model and how it is watched."""

    schema_version: Literal[1] = Field(alias="schema", description="Version of this form.")
    name: Name = Field(description="The profile's name.")
    version: Annotated[str, AfterValidator(name_text)] = Field(description="Its version, in quotes; runs carry it.")
    description: str = Field(default="", description="One line for people.")
    kind: Literal["lab", "hardware"] = Field(description="Namespaces on one machine, or machines of their own.")
    control: Control = Field(description="The control node.")
    networks: dict[Name, Network] = Field(min_length=1, description="Network name -> network.")
    nodes: dict[Name, Node] = Field(min_length=1, description="Node name -> compute node.")
    model: Model = Field(description="The model that is served.")
    deployments: dict[Name, Deployment] = Field(min_length=1, description="Deployment name -> deployment.")
    default_deployment: Name = Field(description="The deployment that is meant when none is named.")
    workload: Workload = Field(default_factory=Workload, description="What the load generator sends.")
    sampler: Sampler = Field(default_factory=Sampler, description="How each node measures itself.")
    telemetry: Telemetry = Field(
        default_factory=Telemetry,
        # The section's name before version 0.1.0: profiles that runs were recorded with have it.
        validation_alias=AliasChoices("telemetry", "perf"),
        description="What the control node makes of the samples.",
    )
    boot: Boot | None = Field(
        default=None, description="How the nodes boot over the network; left out, they boot by themselves."
    )
    sources: dict[str, Source] = Field(
        default={},
        description="Key, such as nodes.*.cores -> where its number is from. Hardware's numbers all need one; `*` is"
        " any name, and a key covers what is below it.",
    )

    _engines: dict[str, EngineSpec] = PrivateAttr(default_factory=dict)
    _path: Path = PrivateAttr(default=Path())
    _document: Document | None = PrivateAttr(default=None)

    @property
    def engines(self) -> dict[str, EngineSpec]:
        """Kind of accelerator -> how its engine is installed and started."""
        return self._engines

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self._path

    @property
    def lost_after_seconds(self) -> float:
        """The time after which a silent node counts as lost: one interval of sending, and the deadline after it."""
        return self.sampler.send_interval_seconds + self.telemetry.heartbeat_deadline_seconds

    def problem(self, location: Location, text: str) -> Problem:
        """Return a problem at a location, with the line it is written on.

        Parameters
        ----------
        location : Location
            Keys and indices from the root of the profile.
        text : str
            What was seen and what is expected.
        """
        return self._document.problem(location, text) if self._document else Problem(location, text)

    @property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of all that is in force: the profile, what is laid over it, and
        the entries of the engine map that its nodes use.
        """
        kinds = {node.accelerator.kind for node in self.nodes.values()}
        kinds |= {deployment.engine for deployment in self.deployments.values() if deployment.engine}
        engines = {kind: _written(self._engines[kind]) for kind in sorted(kinds)}
        content = {"profile": _written(self), "engines": engines}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def engine_of(self, node: str) -> EngineSpec:
        """Return the engine of a node's accelerator.

        Parameters
        ----------
        node : str
            Name of a node of the profile.

        Raises
        ------
        KeyError
            For a node that the profile does not have.
        """
        return self._engines[self.nodes[node].accelerator.kind]

    def engine_for(self, deployment: Deployment, node: str) -> EngineSpec:
        """Return the engine that a deployment has on a node: the one it names, or that of the node's accelerator.

        Parameters
        ----------
        deployment : Deployment
            A deployment of the profile.
        node : str
            Name of one of its nodes.

        Raises
        ------
        KeyError
            For a node that the profile does not have.
        """
        return self._engines[deployment.engine] if deployment.engine else self.engine_of(node)

    def further_engines_of(self, node: str) -> list[EngineSpec]:
        """Return the engines of deployments on a node that are not its accelerator's own, each once.

        Parameters
        ----------
        node : str
            Name of a node of the profile.

        Returns
        -------
        list[EngineSpec]
            In the order of the deployments; engines whose tools convert a model come last.

        Raises
        ------
        KeyError
            For a node that the profile does not have.
        """
        named = {each.engine: None for each in self.deployments.values() if node in each.nodes and each.engine}
        # A conversion of the model has its tools in yet another one.
        tools = {self._engines[name].conversion_tools: None for name in named if name}
        own = self.nodes[node].accelerator.kind
        return [self._engines[name] for name in dict.fromkeys([*named, *tools]) if name is not None and name != own]
