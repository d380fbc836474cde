"""The types of a profile: what may be written, in which unit, with which default.

YAML keys are the names a person writes (``rate: 1 Gbit/s``), attributes carry the base
unit (``rate_bytes_per_second``). The descriptions here become the reference page.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, WithJsonSchema

from bottleneck.places import engine_directory
from bottleneck.units import DURATION, FREQUENCY, RATE, SIZE, Dimension, shown

DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


class Section(BaseModel):
    """A mapping of the profile. Unknown keys are errors, and values are not guessed at."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def _host_name(text: str) -> str:
    if DNS_LABEL.fullmatch(text):
        return text
    mended = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:63]
    hint = f", such as {mended}" if mended else ""
    raise ValueError(f"{shown(text)}; expected a DNS label of letters, digits and inner hyphens{hint}")


def _name(text: str) -> str:
    # Names become parts of file names, process names and run ids.
    if not _NAME.fullmatch(text):
        raise ValueError(f"{shown(text)}; expected a name of letters, digits, '-', '_' and '.'")
    return text


def _interface(text: str) -> str:
    # Linux keeps 16 bytes for an interface's name, one of them the terminator.
    if not 0 < len(text.encode()) < 16 or re.search(r"[/\s:]", text) or text in (".", ".."):
        raise ValueError(f"{shown(text)}; expected an interface name of at most 15 characters, such as eth0")
    return text


def _mac(text: str) -> str:
    if not _MAC.fullmatch(text.lower()):
        raise ValueError(f'{shown(text)}; expected a MAC address such as "02:77:00:00:00:10"')
    if int(text[:2], 16) & 1 or not int(text.replace(":", ""), 16):
        raise ValueError(f"{shown(text)}; expected the MAC address of one interface, not of a group or of none")
    return text.lower()


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(f"{shown(text)}; expected an IPv4 address such as 10.77.0.10") from None


def _subnet(text: str) -> str:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError:
        network = None
    if network is None or network.prefixlen > 30 or "/" not in text:
        try:
            hint = str(ipaddress.IPv4Interface(text).network)
        except ValueError:
            hint = "10.77.0.0/24"
        hint = "10.77.0.0/24" if hint.endswith(("/31", "/32")) else hint
        raise ValueError(f"{shown(text)}; expected an IPv4 subnet of at most 30 bits such as {hint}")
    return str(network)


def _quantity(dimension: Dimension, whole: bool) -> list[Any]:
    units = "|".join(re.escape(unit) for unit in dimension.units)
    schema = {
        "type": "string",
        "pattern": rf"^\s*\+?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{{1,3}})?\s*({units})\s*$",
        "examples": [dimension.example],
        "title": dimension.noun.removeprefix("a "),
    }
    return [BeforeValidator(dimension.parse_whole if whole else dimension.parse), WithJsonSchema(schema)]


def _default(text: str, alias: str, description: str) -> Any:
    """Return a field whose default is written with its unit, as in a profile."""
    return Field(default=text, validate_default=True, alias=alias, description=description)


_size, _rate = _quantity(SIZE, whole=True), _quantity(RATE, whole=False)
_duration, _frequency = _quantity(DURATION, whole=False), _quantity(FREQUENCY, whole=False)
Size = Annotated[int, _size[0], _size[1]]
Rate = Annotated[float, _rate[0], _rate[1]]
Duration = Annotated[float, _duration[0], _duration[1]]
Frequency = Annotated[float, _frequency[0], _frequency[1]]
Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"title": "name"})]
HostName = Annotated[str, AfterValidator(_host_name), Field(json_schema_extra={"title": "DNS label"})]
InterfaceName = Annotated[str, AfterValidator(_interface), Field(json_schema_extra={"title": "interface name"})]
MacAddress = Annotated[str, AfterValidator(_mac), Field(json_schema_extra={"title": "MAC address"})]
Address = Annotated[str, AfterValidator(_address), Field(json_schema_extra={"title": "IPv4 address"})]
Subnet = Annotated[str, AfterValidator(_subnet), Field(json_schema_extra={"title": "IPv4 subnet"})]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Control(Section):
    """The control node: it boots, configures and watches the others."""

    hostname: HostName = Field(description="Its name on the cluster's networks.")
    network: Name = Field(description="The network that Salt and the engine's API use; every node is on it.")
    address: Address = Field(description="Its address on that network.")
    interface: InterfaceName | None = Field(default=None, description="Its interface on that network.")


class Network(Section):
    """A network of the cluster."""

    kind: Literal["switch", "point-to-point"] = Field(description="A switch, or a cable between two nodes.")
    subnet: Subnet = Field(description="Every address on it lies in this range.")
    rate_bytes_per_second: Rate = Field(alias="rate", description="What a link of it can carry one way.")
    mtu_bytes: Annotated[int, Field(ge=576, le=65535)] = Field(
        alias="mtu", description="Largest packet in bytes, the same on all its interfaces."
    )

    @property
    def prefix_length(self) -> int:
        """Number of network bits of the subnet."""
        return ipaddress.IPv4Network(self.subnet).prefixlen


class Link(Section):
    """A node's interface on a network."""

    interface: InterfaceName = Field(description="The interface's name on the node.")
    mac: MacAddress = Field(description="Its MAC address, in quotes; netboot knows the node by it.")
    address: Address = Field(description="Its address, inside the network's subnet.")


class Accelerator(Section):
    """What computes on a node."""

    kind: Name = Field(description="An entry of engines.yaml, which says how vLLM is installed and started for it.")
    count: Count = Field(default=1, description="How many the node has; each takes one rank.")
    memory_bytes: Size = Field(alias="memory", description="What weights, KV cache and buffers of one rank may take.")


class Node(Section):
    """A compute node."""

    hostname: HostName = Field(description="Its name, and its Salt minion id.")
    cores: Count = Field(description="CPU cores that are its own.")
    memory_bytes: Size = Field(alias="memory", description="Main memory.")
    accelerator: Accelerator = Field(description="What computes on it.")
    links: dict[Name, Link] = Field(min_length=1, description="Network name -> its interface there.")


class Quantization(Section):
    """How the weights of the linear layers are stored."""

    bits: Literal[4, 8, 16] = Field(description="Bits of one weight; 16 is bfloat16 without quantization.")
    group_size: Count = Field(default=128, description="Weights that share one bfloat16 scale.")
    symmetric: bool = Field(default=True, description="False when every group has a zero point of `bits` bits too.")


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


class Model(Section):
    """The model that is served."""

    name: Name = Field(description="The name clients ask for.")
    source: Annotated[str, Field(min_length=1)] = Field(
        description="`generate` (random weights, made on the node), an absolute folder, or a hub name."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="Seed of generated weights.")
    quantization: Quantization = Field(description="How the weights are stored.")
    shape: Shape = Field(description="Its dimensions.")


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
    link: Name = Field(description="Network that carries the traffic between ranks.")
    server: Server = Field(default_factory=Server, description="Settings of vLLM.")

    @property
    def ranks_per_replica(self) -> int:
        """Tensor parallel size times pipeline stages."""
        return self.tensor_parallel * self.pipeline_parallel


class Workload(Section):
    """What the load generator sends."""

    input_tokens: Count = Field(default=256, description="Tokens of a prompt.")
    output_tokens: Count = Field(default=32, description="Tokens of an answer.")
    concurrency: Count = Field(default=4, description="Requests under way at the same time.")
    requests: Count = Field(default=16, description="Requests in all.")
    temperature: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0, description="0 is greedy; above 0 the sampler is compiled at the first request."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="Seed of the random prompts.")


class Sampler(Section):
    """How each node measures itself."""

    rate_hertz: Frequency = _default("10 Hz", "rate", "Samples a second.")
    batch_interval_seconds: Duration = _default("1 s", "batch_interval", "Samples are sent in batches of this length.")
    engine_interval_seconds: Duration = _default("2 s", "engine_interval", "How often the engine's metrics are read.")
    acknowledge_interval_seconds: Duration = _default(
        "10 s", "acknowledge_interval", "How often the control node says which batches it has."
    )
    spool_batches: Count = Field(default=600, description="Batches kept while they are not acknowledged.")


class Perf(Section):
    """What the control node makes of the samples."""

    window_seconds: Duration = _default("10 s", "window", "Length of one window of aggregation.")
    heartbeat_deadline_seconds: Duration = _default(
        "5 s", "heartbeat_deadline", "A node whose batches stay away this long is lost."
    )
    exporter_port: Port = Field(default=9477, description="Port of the Prometheus exporter.")
    retention_seconds: Duration = _default("24 h", "retention", "How long the store keeps batches.")


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
    lock: Name = Field(description="Lock file in salt/engine/files: one pinned package a line.")
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
    runtime_memory_bytes: Size = _default(
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


class Profile(Section):
    """One cluster: its machines, its networks, its model and how it is watched."""

    schema_version: Literal[1] = Field(alias="schema", description="Version of this form.")
    name: Name = Field(description="The profile's name.")
    version: Annotated[str, AfterValidator(_name)] = Field(description="Its version, in quotes; runs carry it.")
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
    perf: Perf = Field(default_factory=Perf, description="What the control node makes of the samples.")

    _engines: dict[str, EngineSpec] = PrivateAttr(default_factory=dict)
    _path: Path = PrivateAttr(default=Path())

    @property
    def engines(self) -> dict[str, EngineSpec]:
        """Kind of accelerator -> how its engine is installed and started."""
        return self._engines

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self._path

    def engine_of(self, node: str) -> EngineSpec:
        """Return the engine of a node's accelerator."""
        return self._engines[self.nodes[node].accelerator.kind]
