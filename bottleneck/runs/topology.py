"""Derive who serves what in a run: engines, their nodes, the link between them, the server's limits.

From the run's workers, and where there are none from what reported: a run from elsewhere is still analysed as far as
it goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from bottleneck.plan.workers import ServerSettings
from bottleneck.profile.types import Model, Profile
from bottleneck.runs.run import Run
from bottleneck.telemetry.prometheus_text import MetricsText


@dataclass(frozen=True)
class Group:
    """One engine: the nodes of one replica, its head first."""

    head: str
    nodes: tuple[str, ...]
    before: MetricsText | None = None
    after: MetricsText | None = None


@dataclass(frozen=True)
class Topology:
    """Facts of a deployment that the analysis needs.

    Attributes
    ----------
    groups : tuple of Group
        One per replica.
    link : str or None
        The link between the nodes of a group; None when a group has one node, or nobody says which it is.
    cores : dict
        Cores that each node was promised.
    link_rate_bytes_per_second : float or None
        What the profile says of the link; a ceiling of last resort.
    profile : Profile or None
        Only one that has the deployment.
    """

    groups: tuple[Group, ...] = ()
    settings: ServerSettings = field(default_factory=ServerSettings)
    link: str | None = None
    cores: Mapping[str, float] = field(default_factory=dict)
    link_rate_bytes_per_second: float | None = None
    profile: Profile | None = None
    deployment: str = ""

    @property
    def model(self) -> Model:
        """The model that is served; ValueError where no profile has it."""
        if self.profile is None:
            raise ValueError(f"no profile has deployment {self.deployment!r}: its model is not known")
        return self.profile.model

    @property
    def tensor_parallel(self) -> int:
        """Ranks that share every layer."""
        return self.settings.tensor_parallel

    @property
    def pipeline_parallel(self) -> int:
        """Stages that take turns on the layers."""
        return self.settings.pipeline_parallel

    @property
    def overlapping_stages(self) -> bool:
        """True where stages work on parts of a batch side by side, and where no profile names the engine."""
        if self.profile is None:
            return True
        deployment = self.profile.deployments[self.deployment]
        return self.profile.engine_for(deployment, deployment.nodes[0]).interface.overlapping_stages

    @property
    def max_num_seqs(self) -> int | None:
        """Sequences that run at the same time; None is not known."""
        return self.settings.max_num_seqs

    @property
    def max_num_batched_tokens(self) -> int | None:
        """Tokens of one forward pass; None is not known."""
        return self.settings.max_num_batched_tokens

    @property
    def nodes(self) -> list[str]:
        """Every node of the deployment."""
        return [node for group in self.groups for node in group.nodes]

    @property
    def world(self) -> int:
        """Nodes that work on one step together and were watched."""
        return max((len(group.nodes) for group in self.groups), default=1)

    def on_accelerator(self, node: str) -> bool:
        """Return whether a node's part of a step is an accelerator's: its processes' CPU time does not show it.

        Parameters
        ----------
        node : str
            A node of the profile.

        Returns
        -------
        bool
            False where no profile says what the node computes on, and for engines that compute without torch.
        """
        if self.profile is None or node not in self.profile.nodes:
            return False
        engine = self.profile.engine_for(self.profile.deployments[self.deployment], node)
        return engine.torch_device is not None and not engine.host_processor

    @property
    def unwatched_link(self) -> bool:
        """Return whether ranks of one replica exchange messages between hosts over something that nobody watched."""
        return self.link is None and self.settings.nodes > 1 and self.settings.ranks > 1

    @property
    def heads(self) -> set[str]:
        """The nodes whose engine loop spins."""
        return {group.head for group in self.groups}


def find_topology(run: Run) -> Topology:
    """Derive a run's topology.

    Parameters
    ----------
    run : Run
        Any run; without a profile or a deployment, the nodes that reported are one group.

    Returns
    -------
    Topology
        With one group at least, whose head may be an empty name when nothing at all is known.
    """
    replicas = _replicas(run) or [_reporting(run)]
    profile = run.profile if run.profile and run.deployment in run.profile.deployments else None
    groups = tuple(
        Group(
            nodes[0],
            nodes,
            _reading(run, run.engine_before, nodes[0], len(replicas)),
            _reading(run, run.engine_after, nodes[0], len(replicas)),
        )
        for nodes in replicas
    )
    link = next((worker.link for worker in run.workers if worker.link), None) if max(map(len, replicas)) > 1 else None
    network = profile.networks.get(link) if profile and link else None
    return Topology(
        groups=groups,
        settings=run.settings if run.workers else run.settings.model_copy(update={"tensor_parallel": len(replicas[0])}),
        link=link,
        cores={node: float(profile.nodes[node].cores) for nodes in replicas for node in nodes if node in profile.nodes}
        if profile
        else {},
        link_rate_bytes_per_second=network.rate_bytes_per_second if network else None,
        profile=profile,
        deployment=run.deployment,
    )


def _replicas(run: Run) -> list[tuple[str, ...]]:
    """Return the nodes of every replica that the workers name, its head first."""
    ordered = sorted(run.workers, key=lambda worker: (worker.replica, not worker.head, worker.rank))
    return [
        tuple(dict.fromkeys(worker.node for worker in workers))
        for _, workers in groupby(ordered, key=lambda worker: worker.replica)
    ]


def _reporting(run: Run) -> tuple[str, ...]:
    """Return the nodes that something came from, taken for one replica."""
    nodes = sorted({str(batch.get("node", "")) for batch in run.batches}) or sorted(run.engine_after) or [""]
    head = next((node for node in nodes if node in run.engine_after), nodes[0])
    return (head, *(node for node in nodes if node != head))


def _reading(run: Run, readings: Mapping[str, MetricsText], head: str, replicas: int) -> MetricsText | None:
    """Return a head's reading; it goes by the head's node, or its worker's name, or nothing where there is but one."""
    names = {worker.name: worker.node for worker in run.workers if worker.head}
    by_node = {names.get(key, key): reading for key, reading in readings.items()}
    if head not in by_node and replicas == 1 and len(readings) == 1:
        return next(iter(readings.values()))
    return by_node.get(head)
