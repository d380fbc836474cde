"""Work out the names that command lines are filled in with, and how one node's worker is started."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bottleneck.plan.engines.templates import Values, command_line, environment, filled
from bottleneck.plan.environment import deployment_environment
from bottleneck.profile.engine_interface import Metrics, Stage
from bottleneck.profile.paths import CACHE_DIRECTORY, ENGINE_MAP, content_directory
from bottleneck.profile.rank_placement import Place, places
from bottleneck.profile.types import Deployment, EngineSpec, Profile
from bottleneck.profile.yaml_lines import Problem, ProfileError

API_PORT = 8000
# In memory, and seen in an engine's root folder as well.
API_KEY_FILE = "/run/cluster/engine/api.key"
FIRST_COORDINATOR_PORT = 29500
# What a node needs of an installed engine to run one of its programs.
_TO_RUN = ("kind", "engine", "directory", "root_folder")


@dataclass(frozen=True)
class Guard:
    """Ports of a worker that only some may connect to; the node itself always may.

    Attributes
    ----------
    ephemeral
        Whether those count as well that the kernel gives by itself.
    allowed
        Addresses and networks.
    """

    ports: list[int]
    ephemeral: bool
    allowed: list[str]


@dataclass(frozen=True)
class ApiKey:
    """The API's key as an engine gets it: in a file, and in a variable; None where the engine reads the file."""

    file: str
    variable: str | None


@dataclass(frozen=True)
class Watch:
    """Signs by which the node's module (`_modules/worker.py`) tells what a worker is doing, and what it guards of it.

    Attributes
    ----------
    ready
        What shows that it is ready, as in `engine_interface.Ready`, with the node's own address.
    failures
        Module with the rules of its failures.
    """

    ready: dict[str, object]
    stages: list[Stage]
    failures: str | None
    metrics: Metrics
    guards: list[Guard]
    api_key: ApiKey


@dataclass(frozen=True)
class Launch:
    """Command, environment and checks of one worker.

    Attributes
    ----------
    program
        A path below the engine's folder, or an absolute one.
    """

    program: str
    argv: list[str]
    environment: dict[str, str]
    coordinator: str | None
    watch: Watch


def launch(profile: Profile, deployment: Deployment, place: Place) -> Launch:
    """Return how the worker of one place of a deployment is started.

    Parameters
    ----------
    profile
        A profile that was checked.
    deployment
        A deployment of that profile.
    place
        A place of the deployment: replica, rank and node.
    """
    engine = profile.engine_for(deployment, place.node)
    interface = engine.interface
    values = _values(profile, deployment, place, engine)
    role = interface.roles["head" if place.node_rank == 0 else "follower"]
    spread = bool(values["spread"])
    link = profile.nodes[place.node].links[deployment.link]
    ready = role.ready.model_dump(mode="json", exclude_none=True, exclude={"listening"})
    if role.ready.listening:
        ready["listening"] = f"{link.address}:{interface.peer_port}"
    meets = spread and "coordinator_port" in role.names()
    return Launch(
        program=role.program,
        argv=command_line(role.argv, values, engine_arguments(engine, deployment, values)),
        environment={
            **engine.environment,
            **dict.fromkeys(engine.bind_interface_environment, link.interface),
            **environment(role.environment, values),
            **deployment_environment(engine, deployment, place, link, profile.nodes[place.node]),
        },
        coordinator=f"{values['head_link_address']}:{values['coordinator_port']}" if meets else None,
        watch=Watch(
            ready=ready,
            stages=interface.stages,
            failures=interface.failures,
            metrics=interface.metrics,
            guards=_guards(profile, deployment, place, values),
            api_key=ApiKey(API_KEY_FILE, interface.api_key_variable),
        ),
    )


def engine_arguments(engine: EngineSpec, deployment: Deployment, values: Values | None = None) -> list[str]:
    """Return the arguments of the engine map's entry and the deployment's further ones.

    Parameters
    ----------
    engine : EngineSpec
        Entry of the engine map.
    deployment : Deployment
        Deployment whose further arguments come last.
    values : Values or None
        For the names in them; left out, words with names are left out too.
    """
    written = [*engine.arguments]
    written += (
        engine.pipeline_parallel_arguments if deployment.pipeline_parallel > 1 else engine.tensor_parallel_arguments
    )
    arguments: list[str] = []
    for words in written:
        group = [words] if isinstance(words, str) else words
        if values is not None:
            arguments += filled(group, values)
        elif not any("{" in word for word in group):
            arguments += group
    eager, words_of = deployment.server.enforce_eager, engine.interface.eager
    if eager is not None and words_of is not None:
        arguments = [argument for argument in arguments if argument not in (words_of.on, words_of.off)]
        arguments.append(words_of.on if eager else words_of.off)
    return arguments + deployment.server.extra_arguments


def model_directory(profile: Profile, engine: EngineSpec) -> str:
    """Return the folder with the model in the form that an engine loads.

    Parameters
    ----------
    profile : Profile
        Profile with the model.
    engine : EngineSpec
        Entry of the engine map.

    Returns
    -------
    str
        Absolute path on a node: of the checkpoint, or of what it is converted to, whose name has the digest of all that
        the conversion depends on.
    """
    checkpoint = profile.model.directory()
    conversion = engine.interface.conversion
    if conversion is None:
        return checkpoint
    content = {
        "checkpoint": checkpoint,
        "engine": engine.directory(),
        "weights": _weights(profile, engine),
        **conversion.model_dump(mode="json"),
    }
    return content_directory("models", f"{profile.model.name}-{conversion.form}", content)


def model_path(profile: Profile, engine: EngineSpec) -> str:
    """Return what an engine loads: the folder with the model, or the file in it.

    Parameters
    ----------
    profile : Profile
        Profile with the model.
    engine : EngineSpec
        Entry of the engine map.

    Returns
    -------
    str
        Absolute path on a node.
    """
    made = engine.interface.conversion
    return "/".join(filter(None, [model_directory(profile, engine), made.file if made else ""]))


def conversion(profile: Profile, engine: EngineSpec) -> dict[str, Any] | None:
    """Return what a node needs to make the model in the form that an engine loads; None where it loads checkpoints.

    Parameters
    ----------
    profile : Profile
        Profile with the model, and the engine map with the engine whose tools convert.
    engine : EngineSpec
        Entry of the engine map.

    Returns
    -------
    dict[str, Any] or None
        Plain data for the pillar: the tools, the steps as templates, the names that are filled in, where the result
        goes.
    """
    made = engine.interface.conversion
    if made is None:
        return None
    tools = profile.engines[engine.conversion_tools or engine.kind]
    return {
        "kind": engine.kind,
        "directory": model_directory(profile, engine),
        "file": made.file,
        "steps": made.steps,
        "engine": {key: value for key, value in engine.installation().items() if key in _TO_RUN},
        "names": {
            "checkpoint": profile.model.directory(),
            "weights": _weights(profile, engine),
            "root": engine.root(),
            "python": f"{tools.directory()}/bin/python",
            "generated": str(profile.model.is_made).lower(),
        },
    }


def load_generator(profile: Profile, deployment_name: str) -> EngineSpec:
    """Return the entry of the engine map whose load generator a deployment is sent load with.

    The deployment's own engine comes first, then those of the profile's nodes, which the control node has as well.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    deployment_name : str
        Name of one of its deployments.

    Raises
    ------
    ProfileError
        When none of them has one.
    """
    deployment = profile.deployments[deployment_name]
    own = [profile.engine_for(deployment, node) for node in deployment.nodes]
    for engine in (*own, *map(profile.engine_of, profile.nodes)):
        if engine.load_generator:
            return engine
    names = ", ".join(sorted({engine.kind for engine in own}))
    text = f"{names}: none has a load generator; expected `load_generator` at an engine of this profile's nodes"
    raise ProfileError(ENGINE_MAP, [Problem((), text)])


def _weights(profile: Profile, engine: EngineSpec) -> str:
    bits = str(profile.model.quantization.bits)
    return next(name for each, name in engine.interface.weights.items() if each == bits)


def _values(profile: Profile, deployment: Deployment, place: Place, engine: EngineSpec) -> Values:
    """Return a value for every name of `engine_interface.NAMES`."""
    members = [other for other in places(deployment) if other.replica == place.replica]
    node, head = profile.nodes[place.node], profile.nodes[members[0].node]
    followers = [profile.nodes[other.node] for other in members[1:]]
    link, server, interface = node.links[deployment.link], deployment.server, engine.interface
    is_head, spread = place.node_rank == 0, len(members) > 1
    length = server.max_model_len or profile.model.shape.context_length
    layers = _node_layers(profile, deployment, members)
    on_followers = layers[1:]
    return {
        "max_model_len": server.max_model_len,
        "max_num_seqs": server.max_num_seqs,
        "max_num_batched_tokens": server.max_num_batched_tokens,
        "kv_cache_memory_bytes": server.kv_cache_memory_bytes,
        "num_gpu_blocks_override": server.num_gpu_blocks_override,
        "gpu_memory_utilization": server.gpu_memory_utilization,
        "prefix_caching": server.prefix_caching,
        "model": model_path(profile, engine),
        "model_name": profile.model.name,
        "dummy_weights": profile.model.source == "dummy",
        "api_address": head.links[profile.control.network].address if is_head else None,
        "api_port": API_PORT if is_head else None,
        "link_address": link.address,
        "interface": link.interface,
        "head_link_address": head.links[deployment.link].address,
        "coordinator_port": FIRST_COORDINATOR_PORT + place.replica,
        "peer_port": interface.peer_port,
        "peers": _joined(f"{other.links[deployment.link].address}:{interface.peer_port}" for other in followers),
        "rank": place.node_rank,
        "world": len(members),
        "spread": spread,
        "tensor_parallel": deployment.tensor_parallel,
        "pipeline_parallel": deployment.pipeline_parallel,
        "offloaded_layers": sum(on_followers) + 1 if spread else None,
        "peer_shares": _joined([*on_followers[:-1], on_followers[-1] + 1]) if spread else None,
        "all_shares": _joined([*on_followers, layers[0] + 1]) if spread else None,
        "context_tokens": length * (server.max_num_seqs or 1),
        "cores": node.cores,
        "cache": CACHE_DIRECTORY,
        "api_key_file": API_KEY_FILE,
        "device": engine.device,
    }


def _node_layers(profile: Profile, deployment: Deployment, members: list[Place]) -> list[int]:
    """Return how many layers each node of a replica has, in rank order."""
    counts = deployment.split.stage_layers(profile.model.shape.layers)
    return [sum(counts[stage] for stage in place.stages(deployment.tensor_parallel)) for place in members]


def _guards(profile: Profile, deployment: Deployment, place: Place, values: Values) -> list[Guard]:
    """Return what only some may connect to on the node of a place."""
    interface = profile.engine_for(deployment, place.node).interface
    role = interface.roles["head" if place.node_rank == 0 else "follower"]
    found = []
    if role.ready.listening:
        found.append(_guard([interface.peer_port], False, [str(values["head_link_address"])]))
    if "coordinator_port" in role.names():
        # Ranks meet at one port and then listen on others, which nobody chooses.
        ranks = [str(profile.nodes[name].links[deployment.link].address) for name in deployment.nodes]
        found.append(_guard([FIRST_COORDINATOR_PORT + place.replica], True, ranks))
    if place.node_rank == 0:
        found.append(_guard([API_PORT], False, [str(profile.control.address)]))
    return found


def _guard(ports: list[int], ephemeral: bool, allowed: Iterable[str]) -> Guard:
    # Addresses that are in a network of the list would be named twice.
    networks = ipaddress.collapse_addresses(map(ipaddress.IPv4Network, allowed))
    names = [str(each.network_address) if each.prefixlen == each.max_prefixlen else str(each) for each in networks]
    return Guard(ports, ephemeral, names)


def _joined(parts: Iterable[object]) -> str | None:
    return ",".join(map(str, parts)) or None
