"""The environment of a worker: what the engine map, the link and the deployment say."""

from collections.abc import Iterable

from bottleneck.profile.rank_placement import Place
from bottleneck.profile.types import Deployment, EngineSpec, Link, Node


def deployment_environment(
    engine: EngineSpec, deployment: Deployment, place: Place, link: Link, node: Node
) -> dict[str, str]:
    """Return what a deployment adds: RDMA devices, layers of each stage, its choice of accelerators, its own variables.

    The deployment must be one that `bottleneck.profile.engine_checks` has nothing against.

    Parameters
    ----------
    engine
        The entry of the engine map.
    deployment
        A deployment of that profile.
    place
        A place of the deployment: replica, rank and node.
    link
        The node's link that the deployment uses.
    node
        The node of that place.
    """
    found: dict[str, str] = {}
    if link.rdma and engine.rdma_environment:
        # NCCL takes names as beginnings of names, unless an equals sign stands before them.
        found |= dict.fromkeys(engine.rdma_environment, "=" + ",".join(link.rdma))
    if deployment.layers and engine.layer_partition_environment:
        found[engine.layer_partition_environment] = ",".join(map(str, deployment.layers))
    if engine.local_ranks_environment:
        found[engine.local_ranks_environment] = str(len(place.ranks))
    if engine.device_environment and (place.node in deployment.cards or node.host_cards):
        taken = deployment.cards.get(place.node, range(len(place.ranks)))[: len(place.ranks)]
        # A node of a lab counts its own; the machine's driver counts all of them.
        found[engine.device_environment] = _listed(node.host_cards[each] if node.host_cards else each for each in taken)
    return found | deployment.environment


def node_devices(engine: EngineSpec, node: Node) -> dict[str, str]:
    """Return what shows a lab's node its own of the machine's accelerators; empty where it has none of them.

    Parameters
    ----------
    engine
        The entry of the engine map.
    node
        A node of the profile.
    """
    if not node.host_cards or not engine.device_environment:
        return {}
    return {engine.device_environment: _listed(node.host_cards)}


def sampled_cards(engine: EngineSpec, node: Node) -> list[str] | None:
    """Return the sampler's names of a lab node's own accelerators; None means all that it finds.

    Parameters
    ----------
    engine
        The entry of the engine map.
    node
        A node of the profile.
    """
    if not node.host_cards or not engine.sampled_as:
        return None
    return [f"{engine.sampled_as}{index}" for index in node.host_cards]


def _listed(indices: Iterable[int]) -> str:
    return ",".join(map(str, indices))
