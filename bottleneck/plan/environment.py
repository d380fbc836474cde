"""The environment of a worker: what the engine map, the link and the deployment say."""

from bottleneck.profile.rank_placement import Place
from bottleneck.profile.types import Deployment, EngineSpec, Link


def deployment_environment(engine: EngineSpec, deployment: Deployment, place: Place, link: Link) -> dict[str, str]:
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
    """
    found: dict[str, str] = {}
    if link.rdma and engine.rdma_environment:
        # NCCL takes names as beginnings of names, unless an equals sign stands before them.
        found |= dict.fromkeys(engine.rdma_environment, "=" + ",".join(link.rdma))
    if deployment.layers and engine.layer_partition_environment:
        found[engine.layer_partition_environment] = ",".join(map(str, deployment.layers))
    if engine.local_ranks_environment:
        found[engine.local_ranks_environment] = str(len(place.ranks))
    if place.node in deployment.cards and engine.device_environment:
        taken = deployment.cards[place.node][: len(place.ranks)]
        found[engine.device_environment] = ",".join(map(str, taken))
    return found | deployment.environment
