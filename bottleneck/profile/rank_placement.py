"""Place the ranks of a deployment on nodes."""

from dataclasses import dataclass

from bottleneck.profile.types import Accelerator, Deployment, Node


@dataclass(frozen=True)
class Place:
    """One node's part of one replica.

    Attributes
    ----------
    replica
        Index of the replica.
    node
        Name of the node.
    node_rank
        Its index among the replica's nodes; 0 is the head, which serves the API.
    ranks
        Ranks of the replica that run on it; tensor parallel ranks are next to each other.
    """

    replica: int
    node: str
    node_rank: int
    ranks: range

    def stages(self, tensor_parallel: int) -> list[int]:
        """Return the pipeline stages that have a rank here.

        Parameters
        ----------
        tensor_parallel : int
            Ranks of a stage, at least 1.
        """
        return sorted({rank // tensor_parallel for rank in self.ranks})


def placement_problem(deployment: Deployment, accelerators: list[int]) -> str | None:
    """Return why the ranks do not spread evenly over the nodes, or None.

    Parameters
    ----------
    deployment : Deployment
        The deployment, sound by itself.
    accelerators : list[int]
        Number of accelerators of each of the deployment's nodes.
    """
    nodes = len(deployment.nodes)
    ranks = deployment.ranks_per_replica * deployment.replicas
    sums = (
        f"tensor_parallel {deployment.tensor_parallel} x pipeline_parallel {deployment.pipeline_parallel}"
        f" x replicas {deployment.replicas} = {ranks} ranks over {nodes} nodes with"
        f" {_counts(accelerators)}"
    )
    if ranks % nodes:
        return f"{sums}; expected the same number of ranks on every node{_evenly(accelerators)}"
    if nodes % deployment.replicas:
        return f"{sums}; expected whole nodes for every replica"
    if ranks // nodes > min(accelerators):
        return f"{sums}; expected at most one rank for each accelerator"
    return None


def _evenly(accelerators: list[int]) -> str:
    """Return what the nodes can do instead, where they have unequal counts."""
    if len(set(accelerators)) == 1:
        return ""
    return f": vLLM starts as many on each, so {min(accelerators)}, or each node has a deployment of its own"


def _counts(accelerators: list[int]) -> str:
    if len(set(accelerators)) == 1:
        return f"{accelerators[0]} accelerator{'s' if accelerators[0] > 1 else ''} each"
    return " + ".join(map(str, accelerators)) + " accelerators"


def places(deployment: Deployment) -> list[Place]:
    """Return every node's part; the deployment must have no `placement_problem`.

    Parameters
    ----------
    deployment : Deployment
        A deployment whose nodes and ranks are multiples of its replicas.

    Returns
    -------
    list[Place]
        One for every node, replica after replica; a node's ranks follow each other.
    """
    nodes_per_replica = len(deployment.nodes) // deployment.replicas
    ranks_per_node = deployment.ranks_per_replica // nodes_per_replica
    found = []
    for index, node in enumerate(deployment.nodes):
        replica, node_rank = divmod(index, nodes_per_replica)
        first = node_rank * ranks_per_node
        found.append(Place(replica, node, node_rank, range(first, first + ranks_per_node)))
    return found


def card_count(deployment: Deployment, name: str, node: Node) -> int:
    """Return how many of a node's accelerators a deployment may take.

    Parameters
    ----------
    deployment
        As it is written in the profile.
    name
        The node's.
    node
        The node.
    """
    return len(deployment.cards.get(name, node.cards))


def taken_cards(deployment: Deployment, place: Place, node: Node) -> list[Accelerator]:
    """Return the accelerator of each of a node's ranks; the deployment's `cards` must be ones that the node has.

    Parameters
    ----------
    deployment
        As it is written in the profile.
    place
        A place of the deployment: replica, rank and node.
    node
        The node of that place.
    """
    chosen = deployment.cards.get(place.node, range(len(place.ranks)))
    return [node.cards[index] for index in list(chosen)[: len(place.ranks)]]
