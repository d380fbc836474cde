"""Check what a profile says of its hardware: MACs, cables of a mesh, power, and a source for every number.

Called from `checks`. What a description may leave open but a deployment may not
is apart: `open_points`.
"""

import re
from collections.abc import Iterator, Mapping

from bottleneck.profile.machine_types import UNKNOWN, Node, WakeOnLan
from bottleneck.profile.sections import Sections
from bottleneck.profile.types import Profile
from bottleneck.profile.yaml_lines import Location, Problem, ProfileError

# Keys that are numbers of hardware: on a profile of kind hardware, each that is there needs a source.
HARDWARE_NUMBERS = (
    "networks.*.rate",
    "networks.*.mtu",
    "nodes.*.cores",
    "nodes.*.memory",
    "nodes.*.accelerator.count",
    "nodes.*.accelerator.memory",
    "nodes.*.accelerator.memory_bandwidth",
    "nodes.*.accelerator.pcie",
    "nodes.*.accelerator.interconnect",
    "nodes.*.further_accelerators.*.count",
    "nodes.*.further_accelerators.*.memory",
    "nodes.*.further_accelerators.*.memory_bandwidth",
    "nodes.*.further_accelerators.*.pcie",
    "nodes.*.further_accelerators.*.interconnect",
    "model.config",
    "model.shape",
    "model.quantization",
)


def hardware_problems(sections: Sections) -> Iterator[Problem]:
    """Yield what is wrong with the hardware's description, without lines.

    Parameters
    ----------
    sections : Sections
        The profile's sections as far as each is sound by itself.

    Yields
    ------
    Problem
        Problems with MAC addresses, full meshes, the boot section, and keys that a source names.
    """
    yield from _macs(sections)
    yield from _meshes(sections)
    yield from _host_cards(sections)
    yield from _boot(sections)
    yield from _sources(sections)


def _macs(sections: Sections) -> Iterator[Problem]:
    control_network = sections.control.network if sections.control else None
    for name, node in sections.nodes.items():
        for network, link in node.links.items():
            at: Location = ("nodes", name, "links", network, "mac")
            # The interface that has a node's address on a mesh is made by the node; the cables' ends are the kernel's.
            made = sections.kind == "lab" and not link.peers
            if made and link.mac is None:
                yield Problem(at, 'nothing; expected a MAC address such as "02:77:00:00:00:10": a lab makes its links')
            elif network == control_network and "mac" not in link.model_fields_set:
                text = f"nothing; expected its MAC address in quotes, or {UNKNOWN} until it is known"
                yield Problem(at, f"{text}: netboot knows {name} by it")


def _meshes(sections: Sections) -> Iterator[Problem]:
    for name, network in sections.networks.items():
        members = [node for node, entry in sections.nodes.items() if name in entry.links]
        cabled = network.kind in ("full-mesh", "ring")
        if network.kind == "ring" and sections.kind == "lab":
            text = "ring; expected switch, point-to-point or full-mesh in a lab"
            yield Problem(("networks", name, "kind"), text)
        if cabled and sections.control and sections.control.network == name:
            what = "a full mesh" if network.kind == "full-mesh" else "a ring"
            yield Problem(("control", "network"), f"{name}, {what}; expected a switch, which nodes boot over")
        for node in members:
            link = sections.nodes[node].links[name]
            at: Location = ("nodes", node, "links", name, "peers")
            if not cabled:
                if link.peers:
                    kinds = "kind full-mesh or ring"
                    yield Problem(at, f"cables on {name}, of kind {network.kind}; expected none, or {kinds}")
                continue
            wanted, seen = set(members) - {node}, set(link.peers)
            if network.kind == "full-mesh" and wanted != seen:
                text = f"{', '.join(sorted(seen)) or 'none'}; expected one cable to each of {', '.join(sorted(wanted))}"
                yield Problem(at, text)
            yield from _cables(sections.nodes[node], name, at)
        if network.kind == "ring":
            yield from _ring(sections.nodes, name, members)


def _ring(nodes: Mapping[str, Node], network: str, members: list[str]) -> Iterator[Problem]:
    """Each node of a ring is cabled to two others, which are cabled to it, and one way around leads past all."""
    peers = {name: set(nodes[name].links[network].peers) for name in members}
    sound = True
    for name, seen in peers.items():
        at: Location = ("nodes", name, "links", network, "peers")
        if len(seen) != 2 or not seen <= set(members) - {name}:
            sound = False
            others = ", ".join(sorted(set(members) - {name})) or "none: there is no other"
            yield Problem(at, f"{', '.join(sorted(seen)) or 'none'}; expected cables to two of {others}")
            continue
        for other in sorted(seen):
            if name not in peers[other]:
                sound = False
                yield Problem(at, f"{other}, which has no cable to {name}; expected both ends of it")
    if not sound or not members:
        return
    around, following = [members[0]], min(peers[members[0]])
    while following != members[0]:
        (onward,) = peers[following] - {around[-1]}
        around.append(following)
        following = onward
    if len(around) < len(members):
        text = f"{' - '.join(around)} is a ring without {', '.join(sorted(set(members) - set(around)))}"
        yield Problem(("networks", network, "kind"), f"{text}; expected one ring, or a network for each")


def _cables(node: Node, mesh: str, at: Location) -> Iterator[Problem]:
    """Each cable of a mesh ends in an interface of its own."""
    taken = {link.interface: network for network, link in node.links.items()}
    for peer, interface in node.links[mesh].peers.items():
        if interface in taken:
            text = f"{interface} is also the interface to {taken[interface]}; expected another"
            yield Problem((*at, peer), text)
        taken.setdefault(interface, peer)


def _host_cards(sections: Sections) -> Iterator[Problem]:
    """The accelerators of a lab's machine are each one node's, and the engine can be told which."""
    taken: dict[int, str] = {}
    for name, node in sections.nodes.items():
        at: Location = ("nodes", name, "host_cards")
        if not node.host_cards:
            continue
        if sections.kind != "lab":
            yield Problem(at, "accelerators of a lab's machine; expected none on hardware, whose nodes have their own")
            continue
        if len(node.host_cards) != len(node.cards):
            text = f"{len(node.host_cards)} of the machine's for {len(node.cards)} of {name}"
            yield Problem(at, f"{text}; expected an index for each")
        for index in node.host_cards:
            if index in taken:
                yield Problem(at, f"{index}, which is {taken[index]}'s; expected each of the machine's once")
            taken.setdefault(index, name)
        engine = sections.engines.get(node.accelerator.kind)
        lacking = [key for key in ("device_environment", "sampled_as") if engine and getattr(engine, key) is None]
        if lacking:
            text = f"a choice of the machine's, which kind {node.accelerator.kind} cannot be given"
            yield Problem(at, f"{text}; expected {' and '.join(lacking)} in the engine map")


def _boot(sections: Sections) -> Iterator[Problem]:
    boot = sections.boot
    for name, node in sections.nodes.items():
        if isinstance(node.power, WakeOnLan) and boot is None:
            yield Problem(("nodes", name, "power", "by"), "wake-on-lan without a boot section; expected one")
    if boot is None:
        return
    if sections.kind == "lab":
        yield Problem(("boot",), "a boot section; expected none in a lab, whose nodes do not boot")
    for name, node in sections.nodes.items():
        if node.architecture != "x86_64":
            text = f"{node.architecture} beside a boot section, whose image is for x86_64"
            at: Location = ("nodes", name, "architecture")
            yield Problem(at, f"{text}; expected none: let the nodes boot by themselves, and join with salt-minion")
    if sections.control and "interface" not in sections.control.model_fields_set:
        text = f"nothing; expected the one interface that boots the nodes, such as enp3s0, or {UNKNOWN}"
        yield Problem(("control", "interface"), text)
    stranger = sections.stranger("nodes", boot.canary, "node") if boot.canary is not None else None
    if stranger:
        yield Problem(("boot", "canary"), stranger)


def _sources(sections: Sections) -> Iterator[Problem]:
    for pattern, source in sections.sources.items():
        at: Location = ("sources", pattern)
        if source.basis in ("datasheet", "standard") and source.url is None:
            yield Problem((*at, "url"), f"nothing, on the basis {source.basis}; expected where that can be read")
        if not any(covers(pattern, key) for key in sections.keys):
            yield Problem(at, "no key of this profile is meant; expected a key such as nodes.*.cores")
    if sections.kind != "hardware":
        return
    sourced = sections.names("sources")
    bare: dict[str, str] = {}
    for number in HARDWARE_NUMBERS:
        for key in sections.keys:
            itself = covers(number, key) and key.count(".") == number.count(".")
            if itself and not any(covers(pattern, key) for pattern in sourced):
                bare.setdefault(number, key)
    for number, key in bare.items():
        text = f"a number of hardware without a source; expected an entry such as sources.{number}"
        yield Problem(tuple(key.split(".")), text)


def covers(pattern: str, key: str) -> bool:
    """Return whether a source's key covers a key of the profile: itself, or what is above it.

    Parameters
    ----------
    pattern : str
        Key with dots, in which "*" stands for one part, such as "nodes.*.memory".
    key : str
        Key of the profile with dots.
    """
    parts = [r"[^.]+" if part == "*" else re.escape(part) for part in pattern.split(".")]
    return re.match(r"\.".join(parts) + r"(\.|$)", key) is not None


def open_points(profile: Profile) -> list[Problem]:
    """Return what has to be filled in before anything is deployed on a profile.

    A profile may describe machines whose MACs nobody has read yet. It cannot boot them.

    Parameters
    ----------
    profile : Profile
        A profile that was read.

    Returns
    -------
    list[Problem]
        One for every MAC address or interface that is not known yet; empty where nothing boots over the network.
    """
    if profile.boot is None:
        return []
    network = profile.control.network
    found = []
    if profile.control.interface is None:
        text = f"{UNKNOWN}; expected the one interface of the control node that boots the nodes"
        found.append(profile.problem(("control", "interface"), text))
    for name, node in profile.nodes.items():
        if node.links[network].mac is None:
            text = f"{UNKNOWN}; expected the MAC address of {name}, which netboot knows it by"
            found.append(profile.problem(("nodes", name, "links", network, "mac"), text))
    return found


def refuse_open(profile: Profile) -> None:
    """Raise when something has to be filled in before anything is deployed.

    Parameters
    ----------
    profile : Profile
        A profile that was read.

    Raises
    ------
    ProfileError
        With each open point, its file and line.
    """
    found = open_points(profile)
    if found:
        raise ProfileError(profile.path, found)


def assumptions(profile: Profile) -> dict[str, str]:
    """Return the keys whose numbers are assumed, with what is said of each.

    Parameters
    ----------
    profile : Profile
        A profile that was read.

    Returns
    -------
    dict[str, str]
        Key -> the sentence of its source.
    """
    return {key: source.says for key, source in profile.sources.items() if source.basis == "assumed"}


def source_of(sources: Mapping[str, object], key: str) -> str | None:
    """Return the entry that covers a key most closely, or None.

    Parameters
    ----------
    sources : Mapping[str, object]
        Entries of a profile's `sources`: key, with "*" for one part of it -> source.
    key : str
        Key of the profile with dots.

    Returns
    -------
    str or None
        The longest pattern that covers the key, of two as long the one with fewer "*".
    """
    found = [pattern for pattern in sources if covers(pattern, key)]
    return max(found, key=lambda pattern: (pattern.count("."), -pattern.count("*")), default=None)
