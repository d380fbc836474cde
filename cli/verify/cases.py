"""The cases: which fault, how strong, under which deployment and load. Data, and the order that needs few restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bottleneck.diagnosis.scoring import DEVELOPMENT, HEALTHY, halves

LINK = "direct"
MEGABIT = 1e6 / 8
DECODE = ("decode_memory_bandwidth", "decode_compute", "host_overhead")
# A case with this for its load is a start: nothing is sent, and the deployment is made anew for it.
START = "start"
# What is right of a start that nothing holds back: its own work takes the time.
NO_FAULT_AT_START = ("balanced",)
# What a healthy cluster that has enough to do may be limited by: its work, its messages, its stages.
NO_FAULT = ("prefill_compute", *DECODE, "link_latency", "balanced")
# A class that cannot be put in on one machine without accelerators, and why.
NOT_INJECTED = {
    "thermal_throttling": "the lab's nodes have no clock or sensor of their own",
    "numa_pcie": "the lab's machine has one memory node and no accelerator",
    "memory_capacity": "a node that has less memory than its programs hold swaps: the engine lost a quarter of its "
    "speed, or died, and the kernel's pressure counted a twentieth",
}

_NORMAL: Mapping[str, Any] = {"concurrency": 4, "input_tokens": 256, "output_tokens": 16, "requests": 8}
_READING: Mapping[str, Any] = {"concurrency": 2, "input_tokens": 768, "output_tokens": 4, "requests": 6}
_WRITING: Mapping[str, Any] = {"concurrency": 4, "input_tokens": 32, "output_tokens": 48, "requests": 8}
_ALONE: Mapping[str, Any] = {"concurrency": 1, "input_tokens": 32, "output_tokens": 48, "requests": 3}
_CROWD: Mapping[str, Any] = {"concurrency": 8, "input_tokens": 128, "output_tokens": 24, "requests": 16}
# Where every step takes long: one wave of few steps.
_WAVE: Mapping[str, Any] = {"concurrency": 4, "input_tokens": 32, "output_tokens": 12, "requests": 4}
_BRIEF: Mapping[str, Any] = {"concurrency": 1, "input_tokens": 32, "output_tokens": 12, "requests": 2}
_LONG: Mapping[str, Any] = {"concurrency": 12, "input_tokens": 256, "output_tokens": 96, "requests": 12}
LOADS = {
    "normal": _NORMAL, "reading": _READING, "writing": _WRITING, "alone": _ALONE, "crowd": _CROWD, "wave": _WAVE,
    "brief": _BRIEF, "long": _LONG, START: {},
}  # fmt: skip
_SMALL_CACHE = {"max_model_len": 512, "kv_cache_memory": "8 MiB"}


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes
    ----------
    fault
        The class that is put in, or `healthy`.
    expected
        Classes that are a right answer.
    settings
        Server settings of the deployment that differ from the profile's.
    injections
        What is done to the lab while the load runs; see `cli.verify.faults`.
    """

    fault: str
    strength: str
    deployment: str
    load: str
    expected: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    injections: tuple[Mapping[str, Any], ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    node: str | None = None
    link: str | None = None
    seed: int = 1
    split: str = DEVELOPMENT

    @property
    def name(self) -> str:
        """What it is, unique in the benchmark."""
        place = f"-{self.node}" if self.node else ""
        return f"{self.deployment}/{self.fault}{place}/{self.strength}/{self.load}"

    @property
    def stratum(self) -> str:
        """Cases that are put in alike: the two halves get as many of each."""
        watched = (START,) if self.is_start else ()
        return " ".join((self.fault, *dict.fromkeys(str(each["kind"]) for each in self.injections), *watched))

    @property
    def is_start(self) -> bool:
        """Whether the case is about how the deployment starts."""
        return self.load == START

    @property
    def workload(self) -> dict[str, Any]:
        """The load, as the causal experiment takes it."""
        return {**LOADS[self.load], **self.changes, "seed": self.seed}

    @property
    def bench(self) -> dict[str, Any]:
        """The load, as a bench takes it: a sweep of one point."""
        load = self.workload
        points = {key: [load[key]] for key in ("concurrency", "rate") if load.get(key) is not None}
        return {**load, "concurrency": None, "rate": None, **points}

    @property
    def deployed(self) -> tuple[str, str]:
        """What has to be deployed for it; cases with the same need no restart between them."""
        return self.deployment, json.dumps(dict(self.settings), sort_keys=True)


def _cases(seed: int) -> Iterator[Case]:
    for deployment, loads in (
        ("tp2", ("normal", "reading", "writing", "crowd")),
        ("pp2", ("normal", "reading", "crowd")),
        ("replicas", ("normal", "reading", "writing", "crowd")),
        ("single", ("normal", "writing")),
    ):
        for load in loads:
            stages = ("pipeline_bubble",) if deployment == "pp2" else ()
            yield Case(HEALTHY, "none", deployment, load, NO_FAULT + stages, seed=seed)
    yield from _links(seed)
    yield from _nodes(seed)
    yield from _limits(seed)
    yield from _loads(seed)
    yield from _starts(seed)


def _links(seed: int) -> Iterator[Case]:
    for deployment, load, rates in (
        ("tp2", "normal", (20, 40, 80)),
        ("tp2", "reading", (30, 60)),
        ("pp2", "normal", (3, 8)),
        ("pp2", "reading", (5,)),
    ):
        for megabits in rates:
            injection = {"kind": "throttle", "link": LINK, "bytes_per_second": megabits * MEGABIT}
            yield Case("link_bandwidth", f"{megabits}Mbit/s", deployment, load, ("link_bandwidth",),
                       injections=(injection,), link=LINK, seed=seed)  # fmt: skip
    for load, delays in (("wave", (5, 10, 20)), ("brief", (5, 10))):
        for milliseconds in delays:
            injection = {"kind": "delay", "link": LINK, "seconds": milliseconds / 1e3}
            yield Case("link_latency", f"{milliseconds}ms", "tp2", load, ("link_latency",),
                       injections=(injection,), link=LINK, seed=seed)  # fmt: skip


def _nodes(seed: int) -> Iterator[Case]:
    for deployment, node, load, limits in (
        ("tp2", "node1", "normal", (0.3, 0.45)),
        ("tp2", "node0", "normal", (0.35, 0.5)),
        ("tp2", "node1", "reading", (0.4,)),
        ("pp2", "node1", "crowd", (0.3, 0.45)),
        ("pp2", "node0", "crowd", (0.35,)),
        ("replicas", "node1", "normal", (0.3, 0.45)),
    ):
        for cores in limits:
            yield Case("straggler", f"{cores:g}cores", deployment, load, ("straggler",),
                       injections=({"kind": "slow", "node": node, "cores": cores},), node=node, seed=seed)  # fmt: skip
    for deployment, node, hogs in (("tp2", "node1", 1), ("tp2", "node1", 3), ("replicas", "node0", 2)):
        yield Case("straggler", f"{hogs}hogs", deployment, "normal", ("straggler",),
                   injections=({"kind": "hog", "node": node, "processes": hogs},), node=node, seed=seed)  # fmt: skip
    for deployment, load, hogs in (
        ("tp2", "normal", 2), ("tp2", "writing", 4), ("replicas", "normal", 3), ("single", "normal", 3),
    ):  # fmt: skip
        crowded = ("node0",) if deployment == "single" else ("node0", "node1")
        injections = tuple({"kind": "hog", "node": node, "processes": hogs} for node in crowded)
        yield Case("host_overhead", f"{hogs}hogs", deployment, load, ("host_overhead",),
                   injections=injections, seed=seed)  # fmt: skip
    for deployment, load, share in (
        ("tp2", "crowd", 0.01), ("single", "writing", 0.01), ("single", "writing", 0.02), ("single", "crowd", 0.015),
    ):  # fmt: skip
        yield Case("api_server", f"{share:g}cores", deployment, load, ("api_server",),
                   injections=({"kind": "front", "node": "node0", "cores": share},), node="node0",
                   seed=seed)  # fmt: skip


def _limits(seed: int) -> Iterator[Case]:
    for deployment, allowed, load in (
        ("tp2", 1, "normal"), ("tp2", 1, "writing"), ("tp2", 1, "crowd"), ("tp2", 2, "crowd"),
        ("pp2", 1, "crowd"), ("replicas", 1, "crowd"), ("replicas", 1, "writing"),
    ):  # fmt: skip
        yield Case("sequence_limit", f"{allowed}seqs", deployment, load, ("sequence_limit",),
                   settings={"max_num_seqs": allowed}, seed=seed)  # fmt: skip
    for deployment, load in (("tp2", "long"), ("single", "long")):
        for concurrency in (8, 12):
            yield Case("kv_cache_capacity", f"8MiB-{concurrency}", deployment, load, ("kv_cache_capacity",),
                       settings=_SMALL_CACHE, changes={"concurrency": concurrency}, seed=seed)  # fmt: skip


def _loads(seed: int) -> Iterator[Case]:
    for deployment, rates in (("tp2", (0.1, 0.2)), ("pp2", (0.1,)), ("replicas", (0.15, 0.25))):
        for rate in rates:
            yield Case("client_limited", f"{rate:g}perSecond", deployment, "normal", ("client_limited",),
                       changes={"rate": rate, "concurrency": None, "requests": 4}, seed=seed)  # fmt: skip
    for deployment in ("single", "replicas"):
        for length in (512, 1024):
            yield Case("prefill_compute", f"{length}tokens", deployment, "reading", ("prefill_compute",),
                       changes={"input_tokens": length, "output_tokens": 2}, seed=seed)  # fmt: skip
        yield Case("decode", "alone", deployment, "alone", DECODE, seed=seed)
    for length in (24, 48):
        yield Case("pipeline_bubble", f"alone{length}", "pp2", "alone", ("pipeline_bubble",),
                   changes={"output_tokens": length}, seed=seed)  # fmt: skip


def _starts(seed: int) -> Iterator[Case]:
    for deployment in ("tp2", "replicas", "single"):
        yield Case(HEALTHY, "warm", deployment, START, NO_FAULT_AT_START, seed=seed)
    for deployment, rates in (("tp2", (4, 8)), ("replicas", (6,)), ("single", (8, 16))):
        # All nodes of the lab have one page cache: what one has read, none of them reads again.
        nodes = ("node0",) if deployment == "single" else ("node0", "node1")
        for rate in rates:
            injections = tuple({"kind": "cold_disk", "node": node, "bytes_per_second": rate * 1e6} for node in nodes)
            yield Case("weight_loading", f"{rate}MB/s", deployment, START, ("weight_loading",),
                       injections=injections, node=nodes[0] if len(nodes) == 1 else None, seed=seed)  # fmt: skip


def cases(seed: int) -> list[Case]:
    """Return every case in an order with few restarts: grouped by what is deployed, healthy ones first."""
    found = list(_cases(seed))
    split = halves({case.name: case.stratum for case in found}, seed)
    found = [replace(case, split=split[case.name]) for case in found]
    groups = list(dict.fromkeys(case.deployed for case in found))
    # A start leaves the deployment up for the cases that follow it; the warm one comes last, after one that has read.
    return sorted(
        found,
        key=lambda case: (groups.index(case.deployed), not case.is_start, (case.fault != HEALTHY) ^ case.is_start),
    )
