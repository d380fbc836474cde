"""Who serves what in a run: engines, their nodes, the link between them, the server's limits.

Taken from the profile where there is one, else from the run's plan, else from what reported: an old run, or one from
elsewhere, is still analysed as far as it goes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bottleneck.runs.run import Run
from bottleneck.telemetry.prometheus_text import MetricsText


@dataclass
class Group:
    """One engine: the nodes of one replica, its head first."""

    head: str
    nodes: list[str]
    before: MetricsText | None = None
    after: MetricsText | None = None


@dataclass
class Topology:
    """What the analysis needs to know of a deployment.

    Attributes
    ----------
    groups : list of Group
        One per replica.
    link : str or None
        The link between the nodes of a group; None when a group has one node.
    cores : dict
        Cores that each node was promised.
    link_rate_bytes_per_second : float or None
        What the profile says of the link; a ceiling of last resort.
    """

    groups: list[Group] = field(default_factory=list)
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    link: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    cores: dict[str, float] = field(default_factory=dict)
    link_rate_bytes_per_second: float | None = None
    profile: Any = None
    deployment: str = ""

    @property
    def nodes(self) -> list[str]:
        """Every node of the deployment."""
        return [node for group in self.groups for node in group.nodes]

    @property
    def world(self) -> int:
        """Nodes that work on one step together."""
        return max((len(group.nodes) for group in self.groups), default=1)

    @property
    def heads(self) -> set[str]:
        """The nodes whose engine loop spins."""
        return {group.head for group in self.groups}


def _chunks(nodes: list[str], size: int) -> list[list[str]]:
    return [nodes[start : start + size] for start in range(0, len(nodes), size)]


def _planned_groups(plan: list[dict[str, Any]]) -> list[Group]:
    by_replica: dict[int, list[dict[str, Any]]] = {}
    for spec in plan:
        if isinstance(spec.get("node"), str):
            by_replica.setdefault(int(spec.get("replica") or 0), []).append(spec)
    groups = []
    for _, specs in sorted(by_replica.items()):
        specs.sort(key=lambda spec: (not spec.get("head"), int(spec.get("rank") or 0)))
        nodes = list(dict.fromkeys(str(spec["node"]) for spec in specs))
        groups.append(Group(nodes[0], nodes))
    return groups


def _planned_option(plan: list[dict[str, Any]], option: str) -> int | None:
    for spec in plan:
        words = [str(word) for word in spec.get("argv") or []]
        for index, word in enumerate(words):
            if word == option and index + 1 < len(words) and words[index + 1].isdigit():
                return int(words[index + 1])
            if word.startswith(f"{option}=") and word.partition("=")[2].isdigit():
                return int(word.partition("=")[2])
    return None


def _planned_link(run: Run) -> str | None:
    """Return the link that the workers were given: a deployment may be started over another than the profile's."""
    nodes = getattr(run.profile, "nodes", None) or {}
    for spec in run.plan:
        links = getattr(nodes.get(str(spec.get("node"))), "links", None) or {}
        for name, link in links.items():
            if spec.get("link_address") and link.address == spec["link_address"]:
                return str(name)
    return None


def _attach_engines(run: Run, groups: list[Group]) -> None:
    """Give each group its readings; the file's name is the head's node, or its worker's name, or nothing."""
    names = {str(spec.get("name")): str(spec.get("node")) for spec in run.plan}
    for attribute, readings in (("before", run.engine_before), ("after", run.engine_after)):
        by_node = {names.get(key, key): reading for key, reading in readings.items()}
        for group in groups:
            found = by_node.get(group.head)
            if found is None and len(groups) == 1 and len(readings) == 1:
                found = next(iter(readings.values()))
            setattr(group, attribute, found)


def find_topology(run: Run) -> Topology:
    """Work out a run's topology.

    Parameters
    ----------
    run : Run
        Loaded run or live window.

    Returns
    -------
    Topology
        With one group at least, whose head may be an empty name when nothing at all is known.
    """
    topology = Topology(deployment=run.deployment, groups=_planned_groups(run.plan))
    deployments = getattr(run.profile, "deployments", None) or {}
    deployment = deployments.get(run.deployment)
    if deployment is not None:
        topology.profile = run.profile
        topology.tensor_parallel = int(deployment.tensor_parallel)
        topology.pipeline_parallel = int(deployment.pipeline_parallel)
        topology.max_num_seqs = getattr(deployment.server, "max_num_seqs", None)
        topology.max_num_batched_tokens = getattr(deployment.server, "max_num_batched_tokens", None)
        topology.link = deployment.link
        if not topology.groups:
            size = max(1, topology.tensor_parallel * topology.pipeline_parallel)
            nodes = list(deployment.nodes)
            replicas = max(1, int(deployment.replicas))
            # A node may hold several ranks (several accelerators): then a group has fewer nodes than ranks.
            per_group = max(1, min(size, len(nodes) // replicas or 1))
            topology.groups = [Group(part[0], part) for part in _chunks(nodes, per_group)[:replicas]]
    elif topology.groups:
        topology.tensor_parallel = _planned_option(run.plan, "--tensor-parallel-size") or topology.world
        topology.pipeline_parallel = _planned_option(run.plan, "--pipeline-parallel-size") or 1
    if deployment is not None:
        topology.link = _planned_link(run) or topology.link
        _read_hardware(run, topology)
    planned = _planned_option(run.plan, "--max-num-seqs")
    topology.max_num_seqs = planned or topology.max_num_seqs
    if not topology.groups:
        nodes = sorted({str(batch.get("node", "")) for batch in run.batches}) or sorted(run.engine_after) or [""]
        heads = [node for node in nodes if node in run.engine_after] or nodes[:1]
        topology.groups = [Group(heads[0], [heads[0], *(node for node in nodes if node != heads[0])])]
        topology.tensor_parallel = len(nodes)
    if topology.world < 2:
        topology.link = None
    _attach_engines(run, topology.groups)
    return topology


def _read_hardware(run: Run, topology: Topology) -> None:
    nodes = getattr(run.profile, "nodes", None) or {}
    for name in topology.nodes:
        cores = getattr(nodes.get(name), "cores", None)
        if isinstance(cores, int | float):
            topology.cores[name] = float(cores)
    networks = getattr(run.profile, "networks", None) or {}
    rate = getattr(networks.get(topology.link or ""), "rate_bytes_per_second", None)
    topology.link_rate_bytes_per_second = float(rate) if isinstance(rate, int | float) else None
