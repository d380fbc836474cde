"""Check that the sections of a profile agree.

Types are checked one value at a time (`types`); these rules compare values. They
run on whatever sections are sound, so that one mistake does not hide the others.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator

from bottleneck.performance.model import parameters
from bottleneck.profile.deployment_checks import deployment_problems, shares_host_memory
from bottleneck.profile.hardware_checks import hardware_problems
from bottleneck.profile.sections import Sections, unknown
from bottleneck.profile.types import Model
from bottleneck.profile.yaml_lines import Location, Problem
from bottleneck.units import size_text


def check(sections: Sections) -> list[Problem]:
    """Return every disagreement, without lines.

    Parameters
    ----------
    sections : Sections
        The profile's sections as far as each is sound by itself.

    Returns
    -------
    list[Problem]
        Problems in the order of the rules; empty for a profile that fits together.
    """
    rules: list[Callable[[Sections], Iterator[Problem]]] = [
        _control,
        _networks,
        _links,
        _unique,
        _nodes,
        _model,
        _default_deployment,
        _deployments,
        _sampler,
        hardware_problems,
    ]
    return [problem for rule in rules for problem in rule(sections)]


def _control(sections: Sections) -> Iterator[Problem]:
    control = sections.control
    if control is None:
        return
    stranger = sections.stranger("networks", control.network, "network")
    if stranger:
        yield Problem(("control", "network"), stranger)
        return
    yield from _inside(sections, ("control", "address"), control.address, control.network)
    for name, node in sections.nodes.items():
        if control.network not in node.links:
            text = f"no link on {control.network}; expected one, because the control node reaches nodes there"
            yield Problem(("nodes", name, "links"), text)


def _inside(sections: Sections, location: Location, address: str, network_name: str) -> Iterator[Problem]:
    network = sections.networks.get(network_name)
    if network is None:
        return
    subnet, value = ipaddress.IPv4Network(network.subnet), ipaddress.IPv4Address(address)
    if value not in subnet:
        yield Problem(location, f"{address}; expected an address in {subnet}, the subnet of {network_name}")
    elif value in (subnet.network_address, subnet.broadcast_address):
        what = "network" if value == subnet.network_address else "broadcast"
        yield Problem(location, f"{address}, the {what} address of {network_name}; expected a host's address")


def _networks(sections: Sections) -> Iterator[Problem]:
    seen: list[tuple[str, ipaddress.IPv4Network]] = []
    for name, network in sections.networks.items():
        subnet = ipaddress.IPv4Network(network.subnet)
        for other_name, other in seen:
            if subnet.overlaps(other):
                text = f"{subnet} overlaps {other} of {other_name}; expected a range of its own"
                yield Problem(("networks", name, "subnet"), text)
        seen.append((name, subnet))
        ends = [node for node, entry in sections.nodes.items() if name in entry.links]
        if network.kind == "point-to-point":
            if sections.control and sections.control.network == name:
                ends.append("control")
            if len(ends) > 2:
                text = f"point-to-point, with links of {', '.join(ends)}; expected two ends, or kind switch"
                yield Problem(("networks", name, "kind"), text)


def _sampler(sections: Sections) -> Iterator[Problem]:
    sampler = sections.sampler
    if sampler is not None and sampler.send_interval_seconds < sampler.batch_interval_seconds:
        text = f"{sampler.send_interval_seconds:g} s is less than a batch of {sampler.batch_interval_seconds:g} s"
        yield Problem(("sampler", "send_interval"), f"{text}; expected at least sampler.batch_interval")


def _links(sections: Sections) -> Iterator[Problem]:
    for name, node in sections.nodes.items():
        interfaces: dict[str, str] = {}
        for network, link in node.links.items():
            location: Location = ("nodes", name, "links", network)
            stranger = sections.stranger("networks", network, "network")
            if stranger:
                yield Problem(location, stranger)
            yield from _inside(sections, (*location, "address"), link.address, network)
            if link.interface in interfaces:
                text = f"{link.interface} is also the interface on {interfaces[link.interface]}; expected another"
                yield Problem((*location, "interface"), text)
            interfaces.setdefault(link.interface, network)


def _unique(sections: Sections) -> Iterator[Problem]:
    """Host names, addresses and MACs are each used once in the cluster."""
    hosts: list[tuple[Location, str]] = []
    addresses: list[tuple[Location, str]] = []
    macs: list[tuple[Location, str]] = []
    if sections.control:
        hosts.append((("control", "hostname"), sections.control.hostname.lower()))
        addresses.append((("control", "address"), sections.control.address))
    for name, node in sections.nodes.items():
        hosts.append((("nodes", name, "hostname"), node.hostname.lower()))
        for network, link in node.links.items():
            location: Location = ("nodes", name, "links", network)
            addresses.append(((*location, "address"), link.address))
            if link.mac is not None:
                macs.append(((*location, "mac"), link.mac))
    for what, entries in (("a host name", hosts), ("an address", addresses), ("a MAC address", macs)):
        first: dict[str, Location] = {}
        for place, value in entries:
            if value in first:
                where = ".".join(map(str, first[value]))
                yield Problem(place, f"{value}, as in {where}; expected {what} of its own")
            first.setdefault(value, place)


def _nodes(sections: Sections) -> Iterator[Problem]:
    for name, node in sections.nodes.items():
        accelerator = node.accelerator
        location: Location = ("nodes", name, "accelerator")
        # Commands and the lab call the control node so.
        if name == "control":
            yield Problem(("nodes", name), "control; expected another name, this one means the control node")
        if not sections.engines:
            continue
        # An entry that runs on other kinds is one that a deployment names.
        kinds = {kind: engine for kind, engine in sections.engines.items() if not engine.runs_on}
        engine = kinds.get(accelerator.kind)
        if engine is None:
            yield Problem((*location, "kind"), unknown(accelerator.kind, "kind of accelerator", kinds))
            continue
        for index, further in enumerate(node.further_accelerators):
            if further.kind != accelerator.kind:
                text = f"{further.kind} beside {accelerator.kind}; expected one kind a node, whose engine is installed"
                at: Location = ("nodes", name, "further_accelerators", index, "kind")
                yield Problem(at, f"{text}: say in `unused` what else there is")
        shared = [card.memory_bytes for card in node.cards if shares_host_memory(card, engine)]
        if sum(shared) > node.memory_bytes:
            alike = f"{len(shared)} x {size_text(shared[0])}"
            parts = alike if len(set(shared)) == 1 else " + ".join(map(size_text, shared))
            text = (
                f"{parts}, part of main memory; expected at most {size_text(node.memory_bytes)}, the memory of {name}"
            )
            yield Problem((*location, "memory"), text)
        if node.architecture not in engine.architectures:
            text = f"{node.architecture}, for which the engine of kind {accelerator.kind} has no packages"
            yield Problem(("nodes", name, "architecture"), f"{text}; expected {' or '.join(engine.architectures)}")


def _model(sections: Sections) -> Iterator[Problem]:
    model = sections.model
    if model is None:
        return
    shape, quantization = model.shape, model.quantization
    if model.config is not None:
        if model.is_made:
            text = f"beside source {model.source}; expected shape and quantization there"
            yield Problem(("model", "config"), text)
        return
    yield from _size_by_name(model)
    if shape.attention_heads % shape.key_value_heads:
        text = f"{shape.key_value_heads}; expected a divisor of attention_heads {shape.attention_heads}"
        yield Problem(("model", "shape", "key_value_heads"), text)
    if shape.head_dim % 2:
        yield Problem(
            ("model", "shape", "head_dim"), f"{shape.head_dim}; expected an even number, for rotary positions"
        )
    if quantization.bits < 16:
        for key in ("hidden_size", "intermediate_size"):
            size = getattr(shape, key)
            if size % quantization.group_size:
                text = f"{size}; expected a multiple of the quantization's group_size {quantization.group_size}"
                yield Problem(("model", "shape", key), text)
    if model.is_made:
        if quantization.bits < 16 and not quantization.symmetric:
            text = f"false; expected true: of source {model.source} no zero points are made"
            yield Problem(("model", "quantization", "symmetric"), text)
        width = shape.attention_heads * shape.head_dim
        if quantization.bits < 16 and width % quantization.group_size:
            text = (
                f"{shape.head_dim}; expected all heads together a multiple of the group_size {quantization.group_size}"
            )
            yield Problem(("model", "shape", "head_dim"), text)
    elif model.source.startswith((".", "~")):
        text = f"{model.source}; expected generate, dummy, a folder that begins with /, or a hub name"
        yield Problem(("model", "source"), text)


# Of the parameters that a model's name says: names are rounded, and 8x7B counts what experts share eight times.
_NAME_TOLERANCE = 1.6


def _size_by_name(model: Model) -> Iterator[Problem]:
    """Yield when a model is not as large as its name says: `shape` knows of no experts."""
    named = re.search(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", model.source.rsplit("/", 1)[-1].lower())
    if model.is_made or named is None:
        return
    expected = float(named[2]) * int(named[1] or 1) * 1e9
    counted = parameters(model.model_shape()).total
    if not 1 / _NAME_TOLERANCE < counted / expected < _NAME_TOLERANCE:
        text = (
            f"{counted / 1e9:.3g} B parameters; expected about {expected / 1e9:g} B, as the name {model.source} says:"
            " give the content of its config.json as `config` instead"
        )
        yield Problem(("model", "shape"), text)


def _default_deployment(sections: Sections) -> Iterator[Problem]:
    name = sections.default_deployment
    stranger = sections.stranger("deployments", name, "deployment") if name is not None else None
    if stranger:
        yield Problem(("default_deployment",), stranger)


def _deployments(sections: Sections) -> Iterator[Problem]:
    for name, deployment in sections.deployments.items():
        location: Location = ("deployments", name)
        lost = False
        for index, node in enumerate(deployment.nodes):
            stranger = sections.stranger("nodes", node, "node")
            if stranger:
                yield Problem((*location, "nodes", index), stranger)
            elif node in deployment.nodes[:index]:
                yield Problem((*location, "nodes", index), f"{node} for the second time; expected each node once")
            lost = lost or node not in sections.nodes or node in deployment.nodes[:index]
        stranger = sections.stranger("networks", deployment.link, "network")
        if stranger:
            yield Problem((*location, "link"), stranger)
        else:
            for node in deployment.nodes:
                if node in sections.nodes and deployment.link not in sections.nodes[node].links:
                    text = f"{deployment.link}, on which {node} has no link; expected a network of all its nodes"
                    yield Problem((*location, "link"), text)
        if not lost and sections.model:
            nodes = {node: sections.nodes[node] for node in deployment.nodes}
            problems = deployment_problems(deployment, sections.model, nodes, sections.engines, sections.workload)
            for problem in problems:
                yield Problem((*location, *problem.location), problem.text)
