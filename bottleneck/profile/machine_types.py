"""The machines of a profile: control node, networks, nodes, what computes and how it is switched on."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from bottleneck.profile.value_types import (
    Address,
    Architecture,
    Count,
    HostName,
    InterfaceName,
    MacAddress,
    Name,
    Port,
    Rate,
    RdmaDevice,
    Section,
    Size,
    Subnet,
)

UNKNOWN = "unknown"
# Bytes a second of one lane and one direction, by generation of PCI Express: transfers a second times the share of
# payload in the line code (8b/10b, 128b/130b, for 6.0 the 242 of 256 bytes of a flit), over 8 bits.
_LANE_BYTES_PER_SECOND = {
    1: 2.5e9 * 8 / 10 / 8,
    2: 5e9 * 8 / 10 / 8,
    3: 8e9 * 128 / 130 / 8,
    4: 16e9 * 128 / 130 / 8,
    5: 32e9 * 128 / 130 / 8,
    6: 64e9 * 242 / 256 / 8,
}


def _unless_unknown(value: object) -> object:
    return None if value == UNKNOWN else value


class Control(Section):
    """The control node: it boots, configures and watches the others."""

    hostname: HostName = Field(description="Its name on the cluster's networks.")
    label: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        default=None, description="The name people use, where that is no DNS label: control_0_1 for control-0-1."
    )
    network: Name = Field(description="The network that Salt and the engine's API use; every node is on it.")
    address: Address = Field(description="Its address on that network.")
    interface: Annotated[InterfaceName | None, BeforeValidator(_unless_unknown)] = Field(
        default=None, description="Its interface on that network, or `unknown`; nodes are booted over it alone."
    )
    gateway_port: Port = Field(
        default=8000, description="Port of the gateway there: where clients ask, whatever is deployed."
    )

    @property
    def gateway_url(self) -> str:
        """The address of the API, whatever is deployed."""
        return f"http://{self.address}:{self.gateway_port}/v1"


class Network(Section):
    """A network of the cluster."""

    kind: Literal["switch", "point-to-point", "full-mesh", "ring"] = Field(
        description="A switch, a cable between two nodes, a cable between every two of its nodes, or a ring: each node"
        " is cabled to two neighbours, which pass on what is for the others."
    )
    subnet: Subnet = Field(description="Every address on it lies in this range.")
    rate_bytes_per_second: Rate = Field(alias="rate", description="What a link of it can carry one way.")
    mtu_bytes: Annotated[int, Field(ge=576, le=65535)] = Field(
        alias="mtu", description="Largest packet in bytes, the same on all its interfaces."
    )
    medium: str = Field(default="", description="What it is made of, for people: 2.5GBASE-T, USB4.")

    @property
    def prefix_length(self) -> int:
        """Number of network bits of the subnet."""
        return ipaddress.IPv4Network(self.subnet).prefixlen


class Link(Section):
    """A node's interface on a network."""

    interface: InterfaceName = Field(
        description="The interface's name on the node; on a full mesh, the one made to hold its address."
    )
    mac: Annotated[MacAddress | None, BeforeValidator(_unless_unknown)] = Field(
        default=None,
        description="Its MAC address, in quotes; netboot knows the node by the one on the control network, where"
        " `unknown` stands until it is filled in. Other links of hardware need none.",
    )
    address: Address = Field(description="Its address, inside the network's subnet.")
    peers: dict[Name, InterfaceName] = Field(
        default={}, description="On a full mesh or a ring: other node -> the interface whose cable leads there."
    )
    rdma: list[RdmaDevice] = Field(
        default=[],
        description="RDMA devices that ranks use on it, such as rocep1s0f0 or mlx5_0:1; a cable may have several. Left"
        " out, the engine looks for them itself.",
    )


class Pcie(Section):
    """Attachment of an accelerator."""

    generation: Annotated[int, Field(ge=1, le=6)] = Field(description="Generation of PCI Express.")
    lanes: Literal[1, 2, 4, 8, 16] = Field(description="Lanes.")

    @property
    def bandwidth_bytes_per_second(self) -> float:
        """The rate one way, after the line code and before packet headers."""
        return _LANE_BYTES_PER_SECOND[self.generation] * self.lanes


class Accelerator(Section):
    """The device of a node that computes."""

    kind: Name = Field(description="An entry of engines.yaml, which says how vLLM is installed and started for it.")
    model: str = Field(default="", description="What it is, for people: Intel Arc A770 16 GB.")
    count: Count = Field(default=1, description="How many the node has; each takes one rank.")
    memory_bytes: Size = Field(alias="memory", description="What weights, KV cache and buffers of one rank may take.")
    memory_bandwidth_bytes_per_second: Rate | None = Field(
        default=None, alias="memory_bandwidth", description="What its memory gives on paper; probes measure it."
    )
    pcie: Pcie | None = Field(default=None, description="How it is attached; left out for one on the processor's chip.")
    interconnect_bytes_per_second: Rate | None = Field(
        default=None, alias="interconnect", description="Between the accelerators of one node, one way."
    )
    shares_host_memory: bool | None = Field(
        default=None,
        description="Whether its memory is part of the node's main memory; left out, as the engine map says of its"
        " kind.",
    )
    driver: Name | None = Field(default=None, description="The kernel driver that it has to be bound to.")


class WakeOnLan(Section):
    """Switched on by a magic packet, which the control node sends to the node's MAC; switched off by Salt."""

    by: Literal["wake-on-lan"] = Field(description="`wake-on-lan`.")


class Ipmi(Section):
    """Switched by its board management controller, through ipmitool on the control node."""

    by: Literal["ipmi"] = Field(description="`ipmi`.")
    address: Address = Field(description="The controller's address.")
    user: Annotated[str, Field(min_length=1)] = Field(description="The user to log in as.")
    secret: Name = Field(
        description="File of the password under /etc/cluster/secrets on the control node, readable by its owner alone."
    )


class PowerCommand(Section):
    """Switched by a command on the control node."""

    by: Literal["command"] = Field(description="`command`.")
    cycle: list[str] = Field(min_length=1, description="Program and arguments that switch it off and on again.")


class ByHand(Section):
    """Switched by a person, who reads what to do."""

    by: Literal["hand"] = Field(description="`hand`.")
    instructions: Annotated[str, Field(min_length=1)] = Field(description="What the person reads.")


Power = Annotated[WakeOnLan | Ipmi | PowerCommand | ByHand, Field(discriminator="by")]


def _plain_line(text: str) -> str:
    if "\n" in text.strip():
        raise ValueError("several lines; expected one")
    return text.strip()


Line = Annotated[str, AfterValidator(_plain_line)]


class Node(Section):
    """A compute node."""

    hostname: HostName = Field(description="Its name, and its Salt minion id.")
    board: Line = Field(default="", description="Its mainboard or machine, for people.")
    processor: Line = Field(default="", description="Its processor, for people.")
    firmware: Literal["uefi", "bios"] | None = Field(default=None, description="How its firmware boots.")
    architecture: Architecture = Field(default="x86_64", description="Of its processor.")
    cores: Count = Field(description="CPU cores that are its own.")
    memory_bytes: Size = Field(alias="memory", description="Main memory.")
    accelerator: Accelerator = Field(description="What computes on it.")
    further_accelerators: list[Accelerator] = Field(
        default=[],
        description="Unlike ones of the same kind beside it; all are counted as the driver does, from 0 (NVIDIA: by"
        " PCI address).",
    )
    host_cards: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        description="In a lab: which of this machine's own accelerators are the node's, by the driver's index (NVIDIA:"
        " NVML's, by PCI address). Its workers and probes see no other, and its sampler reads no other.",
    )
    unused: Line = Field(default="", description="What else on it could compute, and why it does not.")
    power: Power | None = Field(
        default=None, description="How it is switched off and on when Salt cannot; left out, by hand."
    )
    links: dict[Name, Link] = Field(min_length=1, description="Network name -> its interface there.")

    @property
    def cards(self) -> list[Accelerator]:
        """Every single accelerator, as the driver counts them."""
        return [each for each in (self.accelerator, *self.further_accelerators) for _ in range(each.count)]
