"""The resources that can be slowed under a deployment: what each is now, how it is slowed, what it would confirm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from bottleneck.plan.workers import DeploymentRecord
from bottleneck.profile.types import Profile
from bottleneck.runs.ceilings import Ceilings
from bottleneck.telemetry.prometheus_text import MetricsText

LINK_RATE, LINK_LATENCY, CPU, SETTING = "link_rate", "link_latency", "cpu", "setting"
# A rank is slowed by pausing its process for a share of the time, a few percent: what then follows is its slack.
RANK = "rank"
LARGEST_PAUSED_SHARE = 0.12
# These two are slowed by the load generator.
SEQUENCES, ARRIVALS = "sequences", "arrivals"
# A one-way latency when no probe has measured one: what a veth pair or a good cable has.
ASSUMED_LATENCY_SECONDS = 50e-6
# A processor cannot be taken away more than this; a quota not below a twentieth of a core.
LARGEST_CPU_SLOWDOWN = 8.0
LEAST_QUOTA_CORES = 0.05
LEAST_LINK_BYTES_PER_SECOND = 125_000.0
# Of a packet: the Ethernet header around it, and the headers of IPv4 and of TCP with time stamps in it.
FRAME_BYTES, HEADER_BYTES = 14, 52
LARGEST_DELAY_SECONDS = 0.1


@dataclass(frozen=True)
class Resource:
    """One resource and the ways to make it worse.

    Attributes
    ----------
    name
        Unique in a session, such as ``link_rate:direct`` or ``cpu:node1``.
    kind
        What it is; decides how the load's time depends on it.
    amount, unit
        What there is of it now, in base units: bytes per second, seconds of latency, cores, sequences.
        Less is slower, except for a latency.
    largest
        The largest slowdown that can be made.
    nodes
        Nodes that are slowed together.
    place
        `node` or `link` of a verdict that names it.
    replica
        Of a rank: which replica it belongs to; ranks of one replica wait for each other.
    has_placebo
        Whether the actuator itself costs something, so that its slowdown of one has to be measured too.
    changes
        Node -> the change that makes it, without its value.
    """

    name: str
    kind: str
    amount: float
    unit: str
    largest: float
    nodes: tuple[str, ...] = ()
    place: Mapping[str, str | None] = field(default_factory=lambda: {"node": None, "link": None})
    has_placebo: bool = False
    replica: int | None = None
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, without the changes."""
        return {key: value for key, value in asdict(self).items() if key != "changes"}

    def at(self, slowdown: float) -> float:
        """Return the amount that is left at a slowdown; below one, what an upgrade would be.

        Parameters
        ----------
        slowdown : float
            Factor, above 0; at 1 the amount is the one that is there.

        Returns
        -------
        float
            In the unit of the amount: bytes per second, seconds of a link's delay, cores.
        """
        if self.kind == LINK_LATENCY:
            return self.amount * slowdown
        return self.amount / slowdown

    def changes_at(self, slowdown: float) -> dict[str, dict[str, Any]]:
        """Return node -> the change that makes a slowdown; empty for what the load generator does itself.

        Parameters
        ----------
        slowdown : float
            Factor, at least 1.

        Returns
        -------
        dict[str, dict[str, Any]]
            Arguments of the node's perturbation, in base SI units.
        """
        if self.kind == LINK_RATE:
            return {node: {**change, "bytes_per_second": self.at(slowdown)} for node, change in self.changes.items()}
        if self.kind == LINK_LATENCY:
            # On top of a delay that is there already.
            more = self.at(slowdown) - self.amount
            return {
                node: {**_without(change, "added"), "seconds": max(0.0, float(change["added"]) + more)}
                for node, change in self.changes.items()
            }
        if self.kind == CPU:
            return {
                node: {**_without(change, "base"), "cores": float(change["base"]) / slowdown}
                if change["actuator"] == "cpu_quota"
                else {**change, "slowdown": slowdown}
                for node, change in self.changes.items()
            }
        if self.kind == RANK:
            share = paused_share(slowdown)
            return {node: {**change, "share": round(share, 6)} for node, change in self.changes.items()}
        if self.kind == SETTING:
            return {node: {**change, "value": round(self.at(slowdown))} for node, change in self.changes.items()}
        return {}


def paused_share(slowdown: float) -> float:
    """Return the share of the time for which a process that is slowed by pauses stands still.

    Parameters
    ----------
    slowdown : float
        How many times as long its work takes, at least 1.

    Returns
    -------
    float
        0 to 1, without a unit.
    """
    return 1.0 - 1.0 / slowdown


def candidates(
    profile: Profile,
    record: DeploymentRecord,
    seen: Mapping[str, Mapping[str, Any]],
    ceilings: Ceilings,
    concurrency: int | None,
    rate_per_second: float | None = None,
    cached_requests: int | None = None,
) -> list[Resource]:
    """Return the resources of a deployment that can be slowed.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    record : DeploymentRecord
        What is deployed.
    seen : Mapping[str, Mapping[str, Any]]
        Node -> what `actuator.look` found there on the deployment's link.
    ceilings : Ceilings
        For what a link really carries; may be empty.
    concurrency, rate_per_second : int or None
        Requests kept under way (closed loop), or their arrivals (open loop); the other is None.
    cached_requests : int or None
        Whole requests that the engines' KV caches hold together; None when that is not known.
    """
    nodes = record.nodes
    found = _links(profile, record, nodes, seen, ceilings)
    found += _processors(nodes, seen)
    found += _ranks(record, seen)
    found += _settings(profile, nodes, seen)
    if concurrency is not None and concurrency > 1:
        most = min(concurrency, allowed_sequences(record) or concurrency, cached_requests or concurrency)
        found.append(Resource(SEQUENCES, SEQUENCES, float(most), "sequences", 4.0))
    if rate_per_second is not None:
        found.append(Resource(ARRIVALS, ARRIVALS, rate_per_second, "1/s", 4.0))
    return found


def allowed_sequences(record: DeploymentRecord) -> int | None:
    """Return how many sequences the engines may run together; None when they run with vLLM's own default.

    Parameters
    ----------
    record : DeploymentRecord
        Record of a deployment as it was started.
    """
    each = record.settings.max_num_seqs
    return each * len(record.heads) if each else None


def requests_in_cache(metrics: Iterable[MetricsText], tokens: int) -> int | None:
    """Return how many requests of so many tokens, prompt and answer, the engines' KV caches hold together.

    Parameters
    ----------
    metrics : Iterable[MetricsText]
        One reading of each head: ``vllm:cache_config_info`` has its blocks.
    tokens : int
        Tokens of one request, prompt and answer together.

    Returns
    -------
    int or None
        At least one for each engine, which cannot start with less; None when one does not tell.
    """
    total = 0
    for reading in metrics:
        words = [reading.info("vllm:cache_config_info", label) for label in ("num_gpu_blocks", "block_size")]
        if not all(word and word.isdigit() and int(word) for word in words):
            return None
        blocks, size = (int(word or 0) for word in words)
        total += max(1, blocks // math.ceil(tokens / size))
    return total or None


def exchanging_pairs(record: DeploymentRecord) -> list[tuple[str, str]]:
    """Return the pairs of nodes of one replica: they exchange messages over the deployment's link.

    Parameters
    ----------
    record : DeploymentRecord
        Record of a deployment as it was started.
    """
    replicas: dict[int, list[str]] = {}
    for worker in record.workers:
        members = replicas.setdefault(worker.replica, [])
        if worker.node not in members:
            members.append(worker.node)
    return [pair for members in replicas.values() for pair in combinations(members, 2)]


def _links(
    profile: Profile,
    record: DeploymentRecord,
    nodes: Sequence[str],
    seen: Mapping[str, Mapping[str, Any]],
    ceilings: Ceilings,
) -> list[Resource]:
    pairs = exchanging_pairs(record)
    if not pairs:
        return []
    link = record.workers[0].link
    network = profile.networks[link]
    place: dict[str, str | None] = {"node": None, "link": link}
    peers: dict[str, dict[str, str | None]] = {node: {} for node in nodes}
    for one, other in pairs:
        for node, peer in ((one, other), (other, one)):
            ends = profile.nodes[peer].links[link]
            peers[node][ends.address] = ends.mac
    joined = [node for node in nodes if peers[node]]
    probed = [way for name, way in ceilings.links.get(link, {}).items() if set(name.split("->")) <= set(joined)]
    # A shaper counts whole frames, a probe what is in them.
    framing = (network.mtu_bytes + FRAME_BYTES) / (network.mtu_bytes - HEADER_BYTES)
    carried = [framing * way.bandwidth_bytes_per_second.median for way in probed if way.bandwidth_bytes_per_second]
    shaped = [float(seen[node]["rate_bytes_per_second"]) for node in joined if seen[node].get("rate_bytes_per_second")]
    rate = min([*carried, *shaped, network.rate_bytes_per_second])
    interfaces = {node: profile.nodes[node].links[link].interface for node in joined}
    found = [
        Resource(
            f"{LINK_RATE}:{link}",
            LINK_RATE,
            rate,
            "B/s",
            max(1.0, rate / LEAST_LINK_BYTES_PER_SECOND),
            tuple(joined),
            place,
            changes={node: {"actuator": "link_rate", "interface": interfaces[node]} for node in joined},
        )
    ]
    latencies = [way.latency_seconds.median for way in probed if way.latency_seconds]
    added = {node: float(seen[node].get("delay_seconds") or 0.0) for node in joined}
    # What was probed includes a delay that was there; without a probe it is that delay and a little.
    latency = max([*latencies, max(added.values())]) if latencies else max(added.values()) + ASSUMED_LATENCY_SECONDS
    found.append(
        Resource(
            f"{LINK_LATENCY}:{link}",
            LINK_LATENCY,
            latency,
            "s",
            LARGEST_DELAY_SECONDS / latency,
            tuple(joined),
            place,
            has_placebo=not any(added.values()),
            changes={
                node: {
                    "actuator": "link_latency",
                    "interface": interfaces[node],
                    "peers": peers[node],
                    "added": added[node],
                }
                for node in joined
            },
        )
    )
    return found


def _processors(nodes: Sequence[str], seen: Mapping[str, Mapping[str, Any]]) -> list[Resource]:
    """Return each node's processor, and all of them together when there are several."""
    single = []
    for node in nodes:
        cores, quota = float(seen[node]["cores"]), seen[node].get("quota_cores")
        limited = quota is not None and float(quota) < cores
        amount = float(quota) if limited and quota is not None else cores
        largest = min(LARGEST_CPU_SLOWDOWN, amount / LEAST_QUOTA_CORES) if limited else LARGEST_CPU_SLOWDOWN
        change: dict[str, Any] = {"actuator": "cpu_quota", "base": amount} if limited else {"actuator": "cpu_speed"}
        place: dict[str, str | None] = {"node": node, "link": None}
        single.append(Resource(f"{CPU}:{node}", CPU, amount, "cores", largest, (node,), place, changes={node: change}))
    if len(single) == 1:
        return single
    together = Resource(
        CPU,
        CPU,
        math.fsum(each.amount for each in single),
        "cores",
        min(each.largest for each in single),
        tuple(nodes),
        changes={node: change for each in single for node, change in each.changes.items()},
    )
    return [together, *single]


def _ranks(record: DeploymentRecord, seen: Mapping[str, Mapping[str, Any]]) -> list[Resource]:
    """Return the ranks of replicas that have several: one that waits for no other has no slack to find."""
    replicas: dict[int, list[Resource]] = {}
    for worker in record.workers:
        prefix = f"{worker.name}/"
        titles = [str(name) for name in seen[worker.node].get("ranks") or () if str(name).startswith(prefix)]
        for title in titles:
            # Where a node has one rank alone, the node names it.
            own = f"/{title.removeprefix(prefix).removeprefix('VLLM::')}" if len(titles) > 1 else ""
            rank = Resource(
                f"{RANK}:{worker.node}{own}",
                RANK,
                1.0,
                "of the time",
                1.0 / (1.0 - LARGEST_PAUSED_SHARE),
                (worker.node,),
                {"node": worker.node, "link": None},
                replica=worker.replica,
                changes={worker.node: {"actuator": "rank_pause", "name": title}},
            )
            replicas.setdefault(worker.replica, []).append(rank)
    return [rank for members in replicas.values() if len(members) > 1 for rank in members]


def _settings(profile: Profile, nodes: Sequence[str], seen: Mapping[str, Mapping[str, Any]]) -> list[Resource]:
    """Return the clocks and power limits that the engine map names for the nodes' accelerators."""
    found: dict[str, Resource] = {}
    for node in nodes:
        for name, setting in getattr(profile.engine_of(node), "actuators", {}).items():
            value = (seen[node].get("settings") or {}).get(name)
            if value is None:
                continue
            change = {"actuator": "setting", "name": name, **setting.commands()}
            known = found.get(name)
            changes = {**(known.changes if known else {}), node: change}
            found[name] = Resource(
                f"{SETTING}:{name}",
                SETTING,
                float(value),
                setting.unit,
                setting.largest_slowdown,
                tuple(changes),
                changes=changes,
            )
    return list(found.values())


def _without(change: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in change.items() if name != key}
