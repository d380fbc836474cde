"""Ceilings: the most a resource can do, as the probes measured it, with its spread.

Kept in one file per cluster. Measuring one part again leaves the others, unless the machine they belong to is
another one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from bottleneck import atomic_files
from bottleneck.estimate import estimate
from bottleneck.json_files import JsonFileError, first_fault, read_json
from bottleneck.profile.types import Profile

_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
SCHEMA = 1
KEPT = 10
# What torch calls the processor.
HOST_DEVICE = "cpu"
# Measures of the accelerator; the others are of the machine around it.
ACCELERATOR_MEASURES = (
    "memory_read_bytes_per_second",
    "memory_copy_bytes_per_second",
    "gemm_bf16_flops_per_second",
    "gemm_f32_flops_per_second",
    "gemm_fp8_flops_per_second",
    "gemm_int8_flops_per_second",
    "engine_prompt_flops_per_second",
    "kernel_dispatch_seconds",
    "host_to_device_bytes_per_second",
    "device_to_host_bytes_per_second",
)


class CeilingsError(Exception):
    """The file of ceilings cannot be used; the text says why."""


class _Document(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="allow", populate_by_name=True, allow_inf_nan=False, protected_namespaces=()
    )


_Positive = Annotated[float, Field(gt=0)]


class Spread(_Document):
    """A median of repeats, the bounds of its interval, and how many repeats; a bare number stands for itself."""

    median: _Positive
    low: _Positive
    high: _Positive
    samples: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="before")
    @classmethod
    def _of_a_number(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = {"median": value}
        if isinstance(value, dict) and "median" in value:
            return {"low": value["median"], "high": value["median"], **value}
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError("expected low <= median <= high")
        return self

    @property
    def interval(self) -> tuple[float, float]:
        """The bounds."""
        return self.low, self.high


class Machine(_Document):
    """The machine that the numbers of a node belong to."""

    cpu_model: str = ""
    cores: int = 0
    memory_bytes: int = 0
    kernel: str = ""
    machine_id_digest: str = ""


class MeasuredDevice(_Document):
    """Device and program that the measures of the accelerator were made with.

    Attributes
    ----------
    kind
        Torch's name of it (`cpu`, `cuda`, `xpu`); of the engine's own bench, `engine`, or `host` on the processor.
    """

    kind: str
    name: str = ""
    by: str = ""


class NodeCeilings(_Document):
    """Ceilings of one node; base SI units."""

    machine: Machine = Field(default_factory=Machine)
    measured: float | None = None
    device: MeasuredDevice | None = None
    memory_read_bytes_per_second: Spread | None = None
    memory_copy_bytes_per_second: Spread | None = None
    gemm_bf16_flops_per_second: Spread | None = None
    gemm_f32_flops_per_second: Spread | None = None
    gemm_fp8_flops_per_second: Spread | None = None
    gemm_int8_flops_per_second: Spread | None = None
    engine_prompt_flops_per_second: Spread | None = None
    disk_read_bytes_per_second: Spread | None = None
    process_launch_seconds: Spread | None = None
    kernel_dispatch_seconds: Spread | None = None
    host_to_device_bytes_per_second: Spread | None = None
    device_to_host_bytes_per_second: Spread | None = None
    notes: dict[str, str] = {}


class LinkCeilings(_Document):
    """Ceilings of one direction of a link; the latency is one way."""

    measured: float | None = None
    bandwidth_bytes_per_second: Spread | None = None
    latency_seconds: Spread | None = None


class CollectiveCeilings(_Document):
    """Seconds of one message between all ranks, by its size in bytes."""

    deployment: str
    backend: str
    link: str
    ranks: int
    measured: float | None = None
    sizes: dict[int, Spread] = {}


class Ceilings(_Document):
    """Everything the probes of one cluster found; `Ceilings()` when nothing was measured."""

    version: int = Field(default=SCHEMA, alias="schema")
    measured: float | None = None
    profile: str = ""
    nodes: dict[str, NodeCeilings] = {}
    links: dict[str, dict[str, LinkCeilings]] = {}
    allreduce: CollectiveCeilings | None = None
    send_receive: CollectiveCeilings | None = None

    @property
    def known(self) -> bool:
        """Return whether anything was measured."""
        return bool(self.nodes or self.links or self.allreduce or self.send_receive)

    def to_json(self) -> dict[str, Any]:
        """Return the file's content."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def spread(values: Iterable[float]) -> Spread | None:
    """Return the median of repeats and its interval; None when nothing usable was measured.

    Parameters
    ----------
    values : Iterable[float]
        Repeats of one measurement, in its own unit. What is no number, infinite, 0 or less is left out.
    """
    found = estimate(value for value in values if math.isfinite(value) and value > 0)
    return Spread(**found.to_json()) if found else None


def device_kind(profile: Profile, node: str) -> str:
    """Return what the measures of a node's accelerator have to be made on, as `MeasuredDevice.kind` has it.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    node : str
        Name of one of its nodes.

    Returns
    -------
    str
        A kind of torch's devices such as "xpu", "host" for the processor, or "engine" for one that only its engine
        reaches.
    """
    engine = profile.engine_of(node)
    if engine.torch_device is not None:
        return engine.torch_device
    return "host" if engine.host_processor else "engine"


def node_ceilings(
    machine: Mapping[str, Any], measured: Mapping[str, Any], when: float, kind: str = HOST_DEVICE
) -> NodeCeilings:
    """Return a node's ceilings by what its probe returned: the raw repeats by name, the device, and notes.

    Parameters
    ----------
    machine : Mapping[str, Any]
        Facts of the node that tell whether it is still the same machine.
    measured : Mapping[str, Any]
        What the probe returned.
    when : float
        Unix seconds of the probe.
    kind : str
        What the accelerator's measures have to be made on; those of anything else are left out, and a note says so.
    """
    values = {name: spread(repeats) for name, repeats in measured["values"].items()}
    device = measured.get("device")
    found = NodeCeilings(
        machine=Machine(**machine),
        measured=when,
        device=MeasuredDevice(**device) if device else None,
        notes=dict(measured.get("notes") or {}),
        **values,
    )
    return _of_its_device(found, kind)


def _of_its_device(node: NodeCeilings, kind: str) -> NodeCeilings:
    """Return a node's ceilings without measures of its accelerator that were made on another device.

    Files of before there were devices in them have the processor's figures, whatever the node's accelerator is.
    """
    seen = node.device.kind if node.device else HOST_DEVICE
    wrong = [name for name in ACCELERATOR_MEASURES if getattr(node, name) is not None]
    if seen == kind or not wrong:
        return node
    note = f"left out, being measured on {seen} and not on {kind}: {', '.join(wrong)}"
    return node.model_copy(update={**dict.fromkeys(wrong), "notes": {**node.notes, "accelerator": note}})


def link_ceilings(own: str, peer: str, measured: Mapping[str, Any], when: float) -> dict[str, LinkCeilings]:
    """Return both directions of a link by what the probe on `own` returned.

    Parameters
    ----------
    own : str
        The node that the probe ran on.
    peer : str
        The node at the other end.
    measured : Mapping[str, Any]
        What the probe returned: rates in bytes per second, round trips in seconds.
    when : float
        Unix seconds.
    """
    latency = spread(measured["latency_seconds"])
    directions = {f"{own}->{peer}": "to_peer", f"{peer}->{own}": "from_peer"}
    return {
        name: LinkCeilings(
            measured=when,
            bandwidth_bytes_per_second=spread(measured[f"{direction}_bytes_per_second"]),
            # Half a round trip is the same for both.
            latency_seconds=latency,
        )
        for name, direction in directions.items()
    }


def merge(old: Ceilings | None, new: Ceilings) -> Ceilings:
    """Return `new` completed with what only `old` measured and still holds.

    A node that is another machine now takes its links and collectives with it.

    Parameters
    ----------
    old : Ceilings or None
        Ceilings from before, or None; those of another profile are dropped.
    new : Ceilings
        Ceilings that were just measured.
    """
    if old is None or old.profile != new.profile:
        return new
    changed = {
        name
        for name, node in new.nodes.items()
        if name in old.nodes and not _same_machine(old.nodes[name].machine, node.machine)
    }
    links: dict[str, dict[str, LinkCeilings]] = {}
    for source in (old.links, new.links):
        for network, pairs in source.items():
            kept = {
                pair: value
                for pair, value in pairs.items()
                if source is new.links or not changed & set(pair.split("->"))
            }
            links.setdefault(network, {}).update(kept)
    collectives = {
        "allreduce": new.allreduce or (None if changed else old.allreduce),
        "send_receive": new.send_receive or (None if changed else old.send_receive),
    }
    nodes = {**old.nodes, **new.nodes}
    return new.model_copy(
        update={"nodes": nodes, "links": {name: pairs for name, pairs in links.items() if pairs}, **collectives}
    )


def _same_machine(one: Machine, two: Machine) -> bool:
    # A new kernel is the same machine measured anew; the rest is hardware.
    return (one.cpu_model, one.cores, one.machine_id_digest) == (two.cpu_model, two.cores, two.machine_id_digest)


def parse(document: Mapping[str, Any]) -> Ceilings:
    """Return the ceilings that a file's content holds.

    Parameters
    ----------
    document : Mapping[str, Any]
        Content of a file of ceilings.

    Raises
    ------
    CeilingsError
        When it is of another version or not in the file's form.
    """
    if document.get("schema") != SCHEMA:
        raise CeilingsError(f"ceilings have schema {document.get('schema')!r}, expected {SCHEMA}: run cluster probe")
    try:
        return Ceilings.model_validate(dict(document))
    except ValidationError as error:
        raise CeilingsError(f"ceilings: {first_fault(error)}: run cluster probe") from error


def load(path: Path, profile: Profile | None = None) -> Ceilings | None:
    """Return the ceilings in a file; None when there is none.

    Parameters
    ----------
    path : Path
        File of ceilings.
    profile : Profile, optional
        The cluster's: measures of a node's accelerator that were made on another device are left out.

    Raises
    ------
    CeilingsError
        When it cannot be read.
    """
    try:
        document = read_json(path, _OBJECT)
    except JsonFileError as error:
        raise CeilingsError(str(error)) from error
    if document is None:
        return None
    found = parse(document)
    if profile is None:
        return found
    nodes = {
        name: _of_its_device(node, device_kind(profile, name)) if name in profile.nodes else node
        for name, node in found.nodes.items()
    }
    return found.model_copy(update={"nodes": nodes})


def store(path: Path, ceilings: Ceilings, keep_previous: bool = True) -> None:
    """Write the file whole; keep what was there before as `ceilings-<time>.json`, the last ten of them.

    Parameters
    ----------
    path : Path
        File to write; its folder is made where it is missing.
    ceilings : Ceilings
        Ceilings to write.
    keep_previous : bool
        False for a part that every run measures anew and carries a copy of: it would drive the others out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and keep_previous:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(path.stat().st_mtime))
        path.rename(path.with_name(f"{path.stem}-{stamp}{path.suffix}"))
    atomic_files.replace_json(path, ceilings.to_json())
    older = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))
    for excess in older[:-KEPT]:
        excess.unlink()
