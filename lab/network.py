"""The lab's wires: which interfaces there are, and the `ip` and `tc` lines that make them.

Nothing is made in the host's own network namespace. A switch is a bridge inside the
control node's namespace; a point-to-point network is one veth pair between two nodes,
a full mesh one between every two. So the wires end with the nodes, without a list of what to take down.
"""

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from bottleneck.profile import Profile
from lab.layout import CONTROL, LabError

_NAME_LENGTH = 15  # the kernel's limit for an interface name
_ETHERNET_HEADER_BYTES = 18
# What passes a shaper at once after a pause, in time at its rate: a wire lets nothing pass faster, but a timer wakes
# late.
BURST_SECONDS = 100e-6
# TCP on the node itself fills an interface's queue, and hardly ever has it drop.
_QUEUE_BYTES = 8 * 2**20
EGRESS_PORT = 3128


@dataclass(frozen=True)
class Port:
    """One end of a wire, in the namespace of `place`; `peer` is the node at the other end, empty on a switch."""

    network: str
    place: str
    interface: str
    mtu_bytes: int
    rate_bytes_per_second: float | None
    peer: str = ""


@dataclass(frozen=True)
class Wire:
    """A veth pair; the far end carries a node's address, the near end too unless it is a switch port."""

    near: Port
    far: Port
    near_mac: str | None
    far_mac: str | None


@dataclass(frozen=True)
class Switch:
    """A bridge in the control node's namespace."""

    network: str
    interface: str
    mtu_bytes: int
    address: str | None  # the control node's own, on the network it is part of


@dataclass(frozen=True)
class Wiring:
    """All wires of a lab, and each node's addresses as (interface, address/prefix)."""

    switches: tuple[Switch, ...]
    wires: tuple[Wire, ...]
    addresses: dict[str, tuple[tuple[str, str], ...]]

    def ports(self) -> list[Port]:
        """Return both ends of every wire."""
        return [port for wire in self.wires for port in (wire.near, wire.far)]


def plan_wiring(profile: Profile) -> Wiring:
    """Lay out the wires of `profile`.

    Raises
    ------
    LabError
        When a network cannot be built, such as a point-to-point one with three ends.
    """
    switches: list[Switch] = []
    wires: list[Wire] = []
    addresses: dict[str, list[tuple[str, str]]] = {node: [] for node in profile.nodes}
    for index, (name, network) in enumerate(profile.networks.items()):
        prefix = network.prefix_length
        mtu, rate = network.mtu_bytes, network.rate_bytes_per_second
        members = [(node, spec.links[name]) for node, spec in profile.nodes.items() if name in spec.links]
        if profile.control.network == name:
            # As a node that boots gets one address by DHCP; the network state gives the others.
            for node, link in members:
                addresses[node].append((link.interface, f"{link.address}/{prefix}"))
        if network.kind == "switch":
            is_own = profile.control.network == name
            interface = (profile.control.interface if is_own else None) or name[:_NAME_LENGTH]
            switches.append(Switch(name, interface, mtu, f"{profile.control.address}/{prefix}" if is_own else None))
            for node, link in members:
                near = Port(name, CONTROL, f"{node[: _NAME_LENGTH - 3]}.{index}", mtu, rate)
                far = Port(name, node, link.interface, mtu, rate)
                wires.append(Wire(near, far, None, link.mac))
            continue
        if network.kind == "full-mesh":
            # The address is the node's own, and it routes each peer's over their cable: the network state does that.
            for (first, first_link), (second, second_link) in combinations(members, 2):
                near = Port(name, first, first_link.peers[second], mtu, rate, second)
                far = Port(name, second, second_link.peers[first], mtu, rate, first)
                wires.append(Wire(near, far, None, None))
            continue
        if len(members) != 2:
            raise LabError(f"network {name} is point-to-point and has {len(members)} nodes; expected 2")
        (first, first_link), (second, second_link) = members
        near = Port(name, first, first_link.interface, mtu, rate, second)
        far = Port(name, second, second_link.interface, mtu, rate, first)
        wires.append(Wire(near, far, first_link.mac, second_link.mac))
    if not any(switch.address for switch in switches):
        raise LabError(f"the control node's network {profile.control.network} must be a switch in a lab")
    return Wiring(tuple(switches), tuple(wires), {node: tuple(pairs) for node, pairs in addresses.items()})


def link_lines(wiring: Wiring, inits: Mapping[str, int]) -> dict[str, list[str]]:
    """Return, for each namespace, the `ip` lines that make its wires (both ends of each)."""
    lines: dict[str, list[str]] = {place: ["link set lo up"] for place in inits}
    for switch in wiring.switches:
        lines[CONTROL].append(f"link add name {switch.interface} mtu {switch.mtu_bytes} type bridge forward_delay 0")
    for wire in wiring.wires:
        near, far = wire.near, wire.far
        lines[near.place].append(
            f"link add name {near.interface} mtu {near.mtu_bytes}{_mac(wire.near_mac)} type veth "
            f"peer name {far.interface} mtu {far.mtu_bytes}{_mac(wire.far_mac)} netns {inits[far.place]}"
        )
    return lines


def address_lines(wiring: Wiring) -> dict[str, list[str]]:
    """Return, for each namespace, the `ip` lines that give addresses and bring the wires up."""
    lines: dict[str, list[str]] = {CONTROL: []}
    bridges = {switch.network: switch.interface for switch in wiring.switches}
    for wire in wiring.wires:
        if wire.near.place == CONTROL:
            lines[CONTROL].append(f"link set {wire.near.interface} master {bridges[wire.near.network]} up")
    for switch in wiring.switches:
        if switch.address:
            lines[CONTROL].append(f"addr add {switch.address} brd + dev {switch.interface}")
        lines[CONTROL].append(f"link set {switch.interface} up")
    for node, pairs in wiring.addresses.items():
        lines[node] = [line for interface, address in pairs for line in _raise(interface, address)]
    return lines


def shape_line(interface: str, rate_bytes_per_second: float | None, mtu_bytes: int) -> str:
    """Return the `tc` line that holds what leaves `interface` to a rate; None lifts it.

    The bucket holds one packet and what passes in 100 microseconds: whatever it holds passes at once after every
    pause, and a larger one would let the small messages of a decode step through as if there were no limit. The queue
    is long enough not to drop.
    """
    if rate_bytes_per_second is None:
        return f"qdisc replace dev {interface} root noqueue"
    rate, packet = round(rate_bytes_per_second), mtu_bytes + _ETHERNET_HEADER_BYTES
    burst = packet + round(rate * BURST_SECONDS)
    limit = burst + _QUEUE_BYTES
    return f"qdisc replace dev {interface} root tbf rate {rate}bps burst {burst} limit {limit}"


def shape_lines(ports: Iterable[Port]) -> dict[str, list[str]]:
    """Return, for each namespace, the `tc` lines that shape its ends of the wires."""
    lines: dict[str, list[str]] = {}
    for port in ports:
        lines.setdefault(port.place, []).append(shape_line(port.interface, port.rate_bytes_per_second, port.mtu_bytes))
    return lines


def apply_lines(tool: str, lines: Mapping[str, Iterable[str]], inits: Mapping[str, int]) -> None:
    """Run batches of `ip` or `tc` lines, each in the network namespace of its place.

    Raises
    ------
    LabError
        With the tool's own words when a line fails.
    """
    for place, batch in lines.items():
        text = "".join(f"{line}\n" for line in batch)
        finished = subprocess.run(
            ["nsenter", "--target", str(inits[place]), "--net", tool, "-batch", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode != 0:
            raise LabError(f"{tool} failed in {place}: {' '.join(finished.stderr.split())}")


def hosts_text(profile: Profile) -> str:
    """Return /etc/hosts for every node of the lab: each name once, on the control node's network."""
    lines = ["127.0.0.1 localhost", f"{profile.control.address} {_names(profile.control.hostname, CONTROL)}"]
    for name, node in profile.nodes.items():
        links = node.links
        link = links.get(profile.control.network) or next(iter(links.values()))
        lines.append(f"{link.address} {_names(node.hostname, name)}")
    return "".join(f"{line}\n" for line in lines)


def _names(hostname: str, name: str) -> str:
    return " ".join(dict.fromkeys((hostname, name)))


def _raise(interface: str, address: str) -> list[str]:
    return [f"addr add {address} brd + dev {interface}", f"link set {interface} up"]


def _mac(mac: str | None) -> str:
    return f" address {mac}" if mac else ""
