"""From a profile to what every node gets: its workers and the pillar slice.

The first node of a replica is its head and serves the API, the others follow it. How either is started is data of the
engine (`bottleneck.plan.engines`).
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bottleneck.plan.cables import through
from bottleneck.plan.engines import Watch, conversion, engine_arguments, launch
from bottleneck.plan.engines.rendering import API_PORT
from bottleneck.plan.environment import sampled_cards
from bottleneck.plan.server_arguments import read_arguments
from bottleneck.plan.workers import DeploymentRecord, ServerSettings, Worker, weight_format
from bottleneck.profile import validation_problems
from bottleneck.profile.deployment_checks import NodeFit, deployment_problems, node_fits
from bottleneck.profile.rank_placement import Place, places
from bottleneck.profile.sections import unknown
from bottleneck.profile.types import Deployment, Link, Profile, Server
from bottleneck.profile.yaml_lines import Location, Problem, ProfileError

_LINK_KEY = "link"


class WorkerSpec(Worker):
    """Specification of one node's part of one replica.

    Attributes
    ----------
    environment
        Added to the node's own environment.
    coordinator
        Where the ranks meet, ``address:port``; None when the replica is on one node.
    log_name
        File under /var/log/cluster.
    engine
        The engine's name, as in the engine map.
    program, watch
        See `bottleneck.plan.engines.Launch`.
    start_turn
        Those of turn 0 are ready before those of turn 1 are started.
    memory_share
        Most of the node's memory that its processes may take together, 0 to 1.
    """

    deployment: str
    environment: dict[str, str]
    coordinator: str | None
    log_name: str
    engine: str
    program: str
    watch: Watch
    start_turn: int
    memory_share: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for pillar and JSON."""
        return self.model_dump(mode="json")


def worker_specs(
    profile: Profile, deployment_name: str | None = None, overrides: Mapping[str, object] | None = None
) -> list[WorkerSpec]:
    """Return the workers of a deployment, replica by replica, in rank order.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    deployment_name : str or None
        None is the profile's default.
    overrides : Mapping[str, Any] or None
        Server settings to change for this time, written as in a profile
        (``{"max_num_seqs": 1, "kv_cache_memory": "64 MiB"}``), and ``link``.

    Raises
    ------
    ProfileError
        When the deployment is unknown, or the overrides are not valid or make it one that
        cannot run.
    """
    name = deployment_name or profile.default_deployment
    deployment = deployment_with(profile, name, overrides)
    return [_worker(profile, name, deployment, place) for place in places(deployment)]


def deployment_record(
    profile: Profile, deployment_name: str | None = None, overrides: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return what goes on record of a deployment as it is started: a `DeploymentRecord`, with the workers' whole specs.

    Parameters
    ----------
    profile, deployment_name, overrides : Profile, str or None, mapping or None
        As in `worker_specs`.

    Raises
    ------
    ProfileError
        As in `worker_specs`.
    """
    name = deployment_name or profile.default_deployment
    specs = worker_specs(profile, name, overrides)
    settings = server_settings(profile, name, overrides)
    record = DeploymentRecord(deployment=name, overrides=dict(overrides or {}), settings=settings, workers=tuple(specs))
    return record.model_dump(mode="json", exclude={"workers"}, exclude_none=True) | {
        "workers": [spec.as_dict() for spec in specs]
    }


def server_settings(profile: Profile, name: str, overrides: Mapping[str, object] | None = None) -> ServerSettings:
    """Return the settings that a deployment runs with.

    The further arguments that the profile and the engine map carry are a person's words: they are read, once, here.

    Parameters
    ----------
    profile, name, overrides : Profile, str, mapping or None
        As in `worker_specs`.

    Raises
    ------
    ProfileError
        As in `worker_specs`.
    """
    deployment = deployment_with(profile, name, overrides)
    server, engine = deployment.server, profile.engine_for(deployment, deployment.nodes[0])
    written = ServerSettings(
        tensor_parallel=deployment.tensor_parallel,
        pipeline_parallel=deployment.pipeline_parallel,
        replicas=deployment.replicas,
        nodes=len(deployment.nodes) // deployment.replicas,
        stage_layers=tuple(deployment.layers),
        max_num_seqs=server.max_num_seqs,
        max_num_batched_tokens=server.max_num_batched_tokens,
        max_model_len=server.max_model_len,
        kv_cache_memory_bytes=server.kv_cache_memory_bytes,
        num_gpu_blocks_override=server.num_gpu_blocks_override,
        kv_block_tokens=engine.kv_block_tokens,
        gpu_memory_utilization=server.gpu_memory_utilization,
        prefix_caching=server.prefix_caching,
        quantization=weight_format(profile.model.quantization.bits),
        engine=engine.engine,
    )
    if engine.interface.argument_reader is None:
        return written
    return read_arguments(engine_arguments(engine, deployment), written).settings


def deployment_with(profile: Profile, name: str, overrides: Mapping[str, object] | None = None) -> Deployment:
    """Return a deployment with overrides applied and checked.

    Parameters
    ----------
    profile, name, overrides : Profile, str, mapping or None
        As in `worker_specs`.

    Raises
    ------
    ProfileError
        As in `worker_specs`.
    """
    if name not in profile.deployments:
        raise ProfileError(profile.path, [Problem((), unknown(name, "deployment", profile.deployments))])
    deployment = profile.deployments[name]
    if not overrides:
        return deployment
    problems: list[Problem] = []
    at: Location = ("overrides",)
    update: dict[str, Any] = {}
    if _LINK_KEY in overrides:
        link = overrides[_LINK_KEY]
        reachable = set.intersection(*(set(profile.nodes[node].links) for node in deployment.nodes))
        if link not in reachable:
            problems.append(Problem((*at, _LINK_KEY), unknown(str(link), "network of all its nodes", reachable)))
        update["link"] = link
    settings = {key: value for key, value in overrides.items() if key != _LINK_KEY}
    try:
        changed = Server.model_validate(settings)
        values = {key: getattr(changed, key) for key in changed.model_fields_set}
        update["server"] = deployment.server.model_copy(update=values)
    except ValidationError as error:
        problems += validation_problems(Server, error, prefix=at)
    if not problems:
        deployment = deployment.model_copy(update=update)
        nodes = {node: profile.nodes[node] for node in deployment.nodes}
        # The workload may be overridden as well, so that is not compared.
        problems += [
            Problem((*at, *problem.location[1:]), problem.text)
            for problem in deployment_problems(deployment, profile.model, nodes, profile.engines, None)
        ]
    if problems:
        raise ProfileError(f"deployment {name}", problems)
    return deployment


def deployment_memory(profile: Profile, name: str, overrides: Mapping[str, object] | None = None) -> list[NodeFit]:
    """Return the memory arithmetic of every node of a deployment.

    Parameters
    ----------
    profile
        A profile that was checked.
    name
        Of the deployment.
    overrides
        Server settings in place of the profile's, by their names; None is none.
    """
    deployment = deployment_with(profile, name, overrides)
    nodes = {node: profile.nodes[node] for node in deployment.nodes}
    return node_fits(deployment, profile.model, nodes, profile.engines)


def _worker(profile: Profile, name: str, deployment: Deployment, place: Place) -> WorkerSpec:
    members = [other for other in places(deployment) if other.replica == place.replica]
    head = members[0].node
    link = profile.nodes[place.node].links[deployment.link]
    is_head = place.node == head
    engine = profile.engine_for(deployment, place.node)
    started = launch(profile, deployment, place)
    worker = f"{name}-{place.replica}"
    return WorkerSpec(
        node=place.node,
        name=worker,
        deployment=name,
        replica=place.replica,
        rank=place.node_rank,
        world=len(members),
        head=is_head,
        api_address=profile.nodes[head].links[profile.control.network].address if is_head else None,
        api_port=API_PORT if is_head else None,
        argv=started.argv,
        environment=started.environment,
        link=deployment.link,
        interface=link.interface,
        link_address=link.address,
        coordinator=started.coordinator,
        log_name=f"{engine.engine}-{worker}.log",
        engine=engine.engine,
        program=started.program,
        watch=started.watch,
        # Followers that serve the head are there before it.
        memory_share=deployment.memory_share,
        start_turn=1 if is_head and engine.interface.followers_first and len(members) > 1 else 0,
    )


def node_pillar(profile: Profile, node_name: str) -> dict[str, Any]:
    """Return a node's slice of the profile: what its states are rendered with, and nothing else.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    node_name : str
        Name of one of its nodes.

    Raises
    ------
    ProfileError
        When the node is unknown, or the engine's lock file is missing.
    """
    if node_name not in profile.nodes:
        raise ProfileError(profile.path, [Problem((), unknown(node_name, "node", profile.nodes))])
    engine = profile.engine_of(node_name)
    cards = sampled_cards(engine, profile.nodes[node_name])
    return {
        "control": {
            "address": str(profile.control.address),
            "exporter_port": profile.telemetry.exporter_port,
            # Where the boot service has models that were published; a lab's nodes share the machine's own.
            "models": f"http://{profile.control.address}:{profile.boot.port}/models" if profile.boot else None,
        },
        "node": {"name": node_name, "links": _links(profile, node_name)},
        "hosts": hosts(profile),
        "engine": engine.installation(),
        "engines": [each.installation() for each in profile.further_engines_of(node_name)],
        "model": {
            **profile.model.model_dump(mode="json", include={"name", "source", "seed", "shape", "quantization"}),
            "directory": profile.model.directory(),
        },
        "conversions": [
            made
            for each in (engine, *profile.further_engines_of(node_name))
            if (made := conversion(profile, each)) is not None
        ],
        "sampler": {
            **profile.sampler.model_dump(mode="json"),
            **({} if cards is None else {"cards": cards}),
        },
    }


def hosts(profile: Profile) -> dict[str, str]:
    """Return host name -> address on the control network, of every node and the control node.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    """
    network = profile.control.network
    addresses = {node.hostname: node.links[network].address for node in profile.nodes.values()}
    return {profile.control.hostname: profile.control.address, **addresses}


def _peers(profile: Profile, network: str, link: Link) -> dict[str, dict[str, str]]:
    """Return, on a mesh or ring, the interface whose cable leads to each other node, and that node's address."""
    return {
        peer: {"interface": interface, "address": profile.nodes[peer].links[network].address}
        for peer, interface in link.peers.items()
    }


def _through(profile: Profile, network: str, node_name: str) -> dict[str, dict[str, str]]:
    """Return, on a ring, the address of each node that no cable leads to, and that of the neighbour before it."""
    if profile.networks[network].kind != "ring":
        return {}
    links = {name: node.links[network] for name, node in profile.nodes.items() if network in node.links}
    ways = through({name: list(link.peers) for name, link in links.items()}, node_name)
    return {far: {"address": links[far].address, "via": links[near].address} for far, near in ways.items()}


def _links(profile: Profile, node_name: str) -> dict[str, Any]:
    return {
        name: {
            "interface": link.interface,
            "address": link.address,
            "prefix_length": profile.networks[name].prefix_length,
            "peers": _peers(profile, name, link),
            "through": _through(profile, name, node_name),
            "mtu": profile.networks[name].mtu_bytes,
            "kind": profile.networks[name].kind,
        }
        for name, link in profile.nodes[node_name].links.items()
    }
