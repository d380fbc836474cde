"""Plan what the probes measure, from the profile; and refuse when they had better not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bottleneck.performance.messages import allreduces, sends
from bottleneck.plan.engines import model_path
from bottleneck.plan.nodes import WorkerSpec, worker_specs
from bottleneck.profile.types import Profile

# What can be measured by itself; the pipeline's messages go with the all-reduce.
SECTIONS = ("nodes", "links", "allreduce")
UP_STAGES = frozenset({"installing", "loading", "warming", "ready"})
FIRST_PORT = 29600
LINK_BUDGET_SECONDS = 10.0
OWN_BENCH_SECONDS = 45.0


@dataclass(frozen=True)
class Collective:
    """One kind of message between the nodes of a deployment.

    Attributes
    ----------
    kind
        `all_reduce` or `send_receive`.
    address, port
        Where the ranks meet.
    interface_environment
        Variables that name the interface to talk over.
    """

    kind: str
    deployment: str
    link: str
    backend: str
    address: str
    port: int
    nodes: list[str]
    interfaces: list[str]
    interface_environment: list[str]
    sizes_bytes: list[int]

    def for_node(self, node: str) -> dict[str, Any] | None:
        """Return the arguments of the probe on a node; None when the node takes no part.

        Parameters
        ----------
        node : str
            Name of a node.

        Returns
        -------
        dict[str, Any] or None
            Plain data: rank, world, interface and the fields of this class that are not of the plan alone.
        """
        if node not in self.nodes:
            return None
        rank = self.nodes.index(node)
        fields = asdict(self) | {"rank": rank, "world": len(self.nodes), "interface": self.interfaces[rank]}
        return {key: value for key, value in fields.items() if key not in ("nodes", "interfaces", "deployment", "link")}


def collectives(profile: Profile) -> list[Collective]:
    """Return the collectives worth measuring: those of the default deployment first.

    One all-reduce of a deployment that splits layers over nodes, one send and receive of one with stages.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.

    Returns
    -------
    list[Collective]
        At most one of each kind; empty when no deployment spans two nodes.
    """
    names = sorted(profile.deployments, key=lambda name: name != profile.default_deployment)
    found = [
        _first(profile, names, kind, FIRST_PORT + index) for index, kind in enumerate(("all_reduce", "send_receive"))
    ]
    return [each for each in found if each is not None]


def _first(profile: Profile, names: list[str], kind: str, port: int) -> Collective | None:
    for name in names:
        sizes = message_sizes(profile, name)[kind]
        deployment = profile.deployments[name]
        if profile.engine_for(deployment, deployment.nodes[0]).torch_device is None:
            continue  # its messages are the engine's own, and no library is there to time
        workers = [worker for worker in worker_specs(profile, name) if worker.replica == 0]
        if sizes and len(workers) > 1:
            return _collective(profile, kind, workers, sizes, port)
    return None


def _collective(profile: Profile, kind: str, workers: list[WorkerSpec], sizes: list[int], port: int) -> Collective:
    engine = profile.engine_of(workers[0].node)
    return Collective(
        kind=kind,
        deployment=workers[0].deployment,
        link=workers[0].link,
        # What torch uses between CPUs when the engine map does not say.
        backend=engine.collective_backend or "gloo",
        address=workers[0].link_address,
        port=port,
        nodes=[worker.node for worker in workers],
        interfaces=[worker.interface for worker in workers],
        interface_environment=list(engine.bind_interface_environment),
        sizes_bytes=sizes,
    )


def message_sizes(profile: Profile, deployment_name: str) -> dict[str, list[int]]:
    """Return the payloads in bytes that a deployment exchanges, by kind, smallest first.

    One sequence's token, a decoding step of the workload's concurrency, one prompt, and the largest forward pass.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    deployment_name : str
        Name of one of its deployments.

    Returns
    -------
    dict
        `all_reduce` and `send_receive`; a list is empty when the deployment makes no such messages.
    """
    deployment, shape = profile.deployments[deployment_name], profile.model.model_shape()
    accelerator = profile.nodes[deployment.nodes[0]].accelerator
    on_host = profile.engine_for(deployment, deployment.nodes[0]).host_processor
    largest = deployment.limits(profile.model.shape, accelerator, on_host).batched_tokens
    tokens = {1, profile.workload.concurrency, min(profile.workload.input_tokens, largest), largest}
    reduced = {count * allreduces(shape, deployment.split).bytes_per_token for count in tokens}
    passed = {count * sends(shape, deployment.split).bytes_per_token for count in tokens}
    return {"all_reduce": sorted(reduced - {0}), "send_receive": sorted(passed - {0})}


def own_bench(profile: Profile, node: str) -> dict[str, Any] | None:
    """Return how a node's engine measures itself, where it has no torch to be measured with; None otherwise.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    node : str
        Name of one of its nodes.

    Returns
    -------
    dict[str, Any] or None
        Plain data: program, arguments, the most seconds that it may take, and whether it measures the host's processor.
    """
    engine = profile.engine_of(node)
    bench = engine.interface.bench
    if engine.torch_device is not None or bench is None:
        return None
    values = {"model": model_path(profile, engine), "cores": str(profile.nodes[node].cores)}
    return {
        "program": bench.program,
        "argv": [word.format_map(values) for word in bench.argv],
        "seconds": OWN_BENCH_SECONDS,
        "host": engine.host_processor,
    }


def node_pairs(profile: Profile) -> list[tuple[str, str, str]]:
    """Return (network, node, node) for every two nodes that share a network.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    """
    pairs = []
    for network in profile.networks:
        members = [name for name, node in profile.nodes.items() if network in node.links]
        pairs += [(network, one, two) for index, one in enumerate(members) for two in members[index + 1 :]]
    return pairs


def replica_pairs(workers: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (network, node, node) for every two nodes that work on one replica: only they exchange anything.

    Parameters
    ----------
    workers : iterable of mapping
        Worker specifications of what is deployed: `replica`, `rank`, `node`, `link`.

    Returns
    -------
    list
        Neighbours by rank first: between them most bytes cross, and the time may end before all pairs are measured.
    """
    replicas: dict[int, list[Mapping[str, Any]]] = {}
    for worker in sorted(workers, key=lambda each: each["rank"]):
        replicas.setdefault(worker["replica"], []).append(worker)
    found = [
        (apart, one["link"], one["node"], two["node"])
        for ranks in replicas.values()
        for apart in range(1, len(ranks))
        for one, two in zip(ranks, ranks[apart:], strict=False)
    ]
    found.sort(key=lambda pair: pair[0])
    return [(link, one, two) for _, link, one, two in found]


def link_seconds(pairs: int) -> int:
    """Return how long to load each direction of each link, whole seconds, so that all of them take about 10 s.

    Parameters
    ----------
    pairs : int
        Number of pairs of nodes with a link between them.

    Returns
    -------
    int
        1 or 2.
    """
    return max(1, min(2, int(LINK_BUDGET_SECONDS / max(1, 2 * pairs))))


def requests_under_way(workers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> float | None:
    """Return how many requests run or wait, from what `worker.status` answers by node; None when no head tells.

    Parameters
    ----------
    workers : Mapping[str, Mapping[str, Mapping[str, Any]]]
        Node -> worker -> its status; starting workers and those without counts are left out.
    """
    recorded = [
        status["requests"]
        for found in workers.values()
        for status in found.values()
        if status.get("stage") in UP_STAGES and status.get("requests")
    ]
    return float(sum(sum(counts.values()) for counts in recorded)) if recorded else None


def busy_reason(deployment: str | None, workers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str | None:
    """Return why probes should not run now, or None.

    Parameters
    ----------
    deployment : str or None
        What is deployed, as far as is known.
    workers : mapping
        Node to worker name to status (`stage`, `requests`), as `worker.status` answers.
    """
    up = [
        (worker, node, status)
        for node, found in workers.items()
        for worker, status in found.items()
        if status.get("stage") in UP_STAGES
    ]
    if not up:
        return None
    requests = requests_under_way(workers) or 0.0
    names = ", ".join(f"{worker} on {node}" for worker, node, _ in up)
    load = f" with {requests:.0f} requests" if requests else ""
    what = f"{deployment} is deployed{load}" if deployment else f"workers are up{load}"
    return f"{what} ({names}): it and the probes would disturb each other"
