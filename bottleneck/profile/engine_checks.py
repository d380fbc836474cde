"""Check that a deployment's engine can do what is asked of it: each thing that it cannot, in a sentence.

What an entry of the engine map leaves out, its engine has no setting for.
"""

import re
from collections.abc import Iterator, Mapping

from bottleneck.profile.engine_interface import names_in
from bottleneck.profile.rank_placement import places
from bottleneck.profile.types import Deployment, EngineSpec, Node
from bottleneck.profile.yaml_lines import Location, Problem

# What a variable of an engine's interface is filled in with -> the key that it is set by.
_SET_BY = {"link_address": "link", "interface": "link", "cores": "the node's cores"}
_SECRET = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIALS?)(?:_|$)", re.IGNORECASE)


def engine_problems(
    deployment: Deployment, nodes: Mapping[str, Node], engines: Mapping[str, EngineSpec]
) -> Iterator[Problem]:
    """Yield what the engines of a deployment's nodes cannot do with it, located within the deployment.

    Parameters
    ----------
    deployment
        As it is written in the profile.
    nodes
        Node name to node.
    engines
        Kind of accelerator to engine.
    """
    kinds = dict.fromkeys(node.accelerator.kind for node in nodes.values())
    for kind in kinds:
        engine = engines[kind]
        if deployment.layers and not (engine.layer_partition_environment or engine.interface.unequal_layers):
            text = f"layers of each stage, which the engine of kind {kind} cannot be told; expected none"
            yield Problem(("layers",), f"{text}, or layer_partition_environment in the engine map")
        if deployment.cards and not engine.device_environment:
            text = f"a choice of accelerators, which the engine of kind {kind} cannot be told; expected none"
            yield Problem(("cards",), f"{text}, or device_environment in the engine map")
        yield from _environment(deployment, kind, engine)
    yield from _rdma(deployment, nodes, engines)


def _environment(deployment: Deployment, kind: str, engine: EngineSpec) -> Iterator[Problem]:
    set_by = {
        **_of_the_interface(engine),
        **dict.fromkeys(engine.bind_interface_environment, "link"),
        **dict.fromkeys(engine.rdma_environment, "the link's rdma"),
    }
    for variable, key in (
        (engine.layer_partition_environment, "layers"),
        (engine.device_environment, "cards"),
        (engine.local_ranks_environment, "the ranks of a node"),
    ):
        if variable:
            set_by[variable] = key
    for name in deployment.environment:
        at: Location = ("environment", name)
        if name in set_by:
            yield Problem(at, f"a variable that is set by {set_by[name]} for kind {kind}; expected that instead")
        elif _SECRET.search(name):
            yield Problem(at, "a secret by its name; expected none in a profile, which everybody can read")


def _of_the_interface(engine: EngineSpec) -> dict[str, str]:
    """Return the variables that the engine's interface sets for every worker, and by which key."""
    return {
        variable: next((_SET_BY[name] for name in sorted(names_in(text)) if name in _SET_BY), "the plan")
        for role in engine.interface.roles.values()
        for variable, text in role.environment.items()
    }


def _rdma(deployment: Deployment, nodes: Mapping[str, Node], engines: Mapping[str, EngineSpec]) -> Iterator[Problem]:
    groups: dict[int, list[str]] = {}
    nodes_per_replica = max(1, len(nodes) // deployment.replicas)
    for index, name in enumerate(nodes):
        groups.setdefault(index // nodes_per_replica, []).append(name)
    for group in groups.values():
        links = {name: nodes[name].links.get(deployment.link) for name in group}
        with_devices = [name for name, link in links.items() if link and link.rdma]
        if len(group) < 2 or not with_devices:
            continue
        kind = nodes[with_devices[0]].accelerator.kind
        if not engines[kind].rdma_environment:
            text = f"{deployment.link}, on which {with_devices[0]} has RDMA devices, which the engine of kind {kind}"
            yield Problem(
                ("link",), f"{text} cannot be told; expected a link without, or rdma_environment in the engine map"
            )
            continue
        without = [name for name in group if name not in with_devices]
        if without:
            text = (
                f"{deployment.link}, on which {', '.join(with_devices)} have RDMA devices and {', '.join(without)} none"
            )
            yield Problem(("link",), f"{text}; expected them on all of a replica's nodes, or on none")
        for one, link in links.items():
            far = [other for other in group if link and link.peers and other != one and other not in link.peers]
            if far:
                text = f"{deployment.link}, where no cable leads from {one} to {', '.join(far)}: RDMA is not passed on"
                yield Problem(("link",), f"{text}; expected neighbours, or links without rdma")
                break


def kind_problems(deployment: Deployment, nodes: Mapping[str, Node]) -> Iterator[Problem]:
    """Yield where a replica's nodes have unlike kinds of accelerators; the deployment must be placeable.

    Parameters
    ----------
    deployment : Deployment
        A deployment that can be placed on its nodes (`placement_problem`).
    nodes : Mapping[str, Node]
        Name -> node, of every node that the deployment names.

    Yields
    ------
    Problem
        At most one, for the first replica with two kinds.
    """
    groups: dict[int, dict[str, str]] = {}
    for place in places(deployment):
        groups.setdefault(place.replica, {})[place.node] = nodes[place.node].accelerator.kind
    for group in groups.values():
        kinds = sorted(set(group.values()))
        if len(kinds) > 1:
            text = f"accelerators {', '.join(kinds)}; expected one kind within a replica, whose ranks talk through one"
            yield Problem(("nodes",), f"{text} library: let each kind have its own replica or deployment")
            return
