"""Write on record what is deployed, and read it back: workers, and the server's settings in force."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from bottleneck.performance.model import FORMATS, WeightFormat

Count = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Index = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Flag = Annotated[bool, Field(strict=True)]

FormatName = Literal["bf16", "fp16", "fp8", "w8a8", "w8a16", "w4a16", "awq", "gptq", "mxfp4", "nvfp4", "bitsandbytes"]
"""Ways to store weights that the analysis knows."""
WEIGHT_FORMATS: tuple[FormatName, ...] = get_args(FormatName)
# Those that are stored and multiplied as another is: 4-bit weights of whichever scheme are multiplied in 16 bit, but
# for cards that multiply 4-bit floats, where the gain is then underestimated.
_STORED_AS = {"fp16": "bf16", **dict.fromkeys(("awq", "gptq", "mxfp4", "nvfp4", "bitsandbytes"), "w4a16")}
_OF_BITS: Mapping[int, FormatName] = MappingProxyType({4: "w4a16", 8: "w8a16", 16: "bf16"})


def weight_format(bits: int) -> FormatName:
    """Return the format of a profile's weights of so many bits: what it quantizes is the weights alone.

    Parameters
    ----------
    bits : int
        Bits of a weight: 4, 8 or 16.

    Raises
    ------
    KeyError
        For any other number.
    """
    return _OF_BITS[bits]


class Recorded(BaseModel):
    """A part of a record: frozen, of finite numbers; keys that are not known are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class ServerSettings(Recorded):
    """The engine's settings as they were in force; None is not known.

    Attributes
    ----------
    tensor_parallel, pipeline_parallel, replicas
        Ranks that share every layer; stages; independent copies of the whole.
    nodes
        Hosts that one replica is spread over.
    stage_layers
        Layers of each pipeline stage where they were given; empty is the engine's own split.
    kv_block_tokens, kv_cache_blocks
        Tokens of one block of the KV cache; blocks that an engine has, by its own account.
    captured_graphs
        Whether steps replay captured graphs (True) or every kernel is launched by the host (False).
    quantization
        How the weights are stored.
    dtype, kv_cache_dtype
        The engine's own words for the numbers that it computes with, and keeps in the KV cache.
    """

    tensor_parallel: Count = 1
    pipeline_parallel: Count = 1
    replicas: Count = 1
    nodes: Count = 1
    stage_layers: tuple[Count, ...] = ()
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    max_model_len: Count | None = None
    kv_cache_memory_bytes: Count | None = None
    num_gpu_blocks_override: Count | None = None
    kv_block_tokens: Count | None = None
    kv_cache_blocks: Count | None = None
    gpu_memory_utilization: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    captured_graphs: Flag | None = None
    prefix_caching: Flag | None = None
    quantization: FormatName | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    engine: str = "vllm"
    engine_version: str | None = None

    @property
    def ranks(self) -> int:
        """Ranks of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def weights(self) -> WeightFormat | None:
        """Bits of a stored weight and the gain of its arithmetic; None when the format is not known."""
        name = self.quantization
        return FORMATS[_STORED_AS.get(name, name)] if name else None


class Worker(Recorded):
    """One node's part of one replica.

    Attributes
    ----------
    name
        Deployment and replica, such as ``tp2-0``; the same on all nodes of the replica.
    replica, rank, world
        Index of the replica; this node's rank among the `world` nodes of the replica.
    head
        Whether it serves the API; `api_address` and `api_port` are None when not.
    link, interface, link_address
        The network that carries the traffic between ranks, and this node's end of it.
    argv
        The engine's command line, for people: nothing is read from it.
    """

    node: Annotated[str, Field(strict=True, min_length=1)]
    name: str = ""
    replica: Index = 0
    rank: Index = 0
    world: Count = 1
    head: Flag = False
    api_address: str | None = None
    api_port: Count | None = None
    link: str = ""
    interface: str = ""
    link_address: str = ""
    argv: list[str] = []


class DeploymentRecord(Recorded):
    """A deployment as it was started.

    Attributes
    ----------
    overrides
        Server settings that were changed for this time, as a person wrote them; they are in `settings` already.
    began, ready, first_token, ended
        Unix seconds: the order to deploy, serving, the first token, given up.
    """

    deployment: Annotated[str, Field(strict=True, min_length=1)]
    overrides: dict[str, object] = {}
    settings: ServerSettings
    workers: Annotated[tuple[Worker, ...], Field(min_length=1)]
    began: float | None = None
    ready: float | None = None
    first_token: float | None = None
    ended: float | None = None

    @property
    def nodes(self) -> list[str]:
        """The nodes, each once, in order of replica and rank."""
        return list(dict.fromkeys(worker.node for worker in self.workers))

    @property
    def heads(self) -> list[Worker]:
        """The workers that serve the API."""
        return [worker for worker in self.workers if worker.head]
