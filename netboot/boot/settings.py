"""Take from a profile the settings of the boot service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bottleneck.profile.types import Profile
from netboot.boot.progress_report import deadlines

MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


@dataclass(frozen=True)
class BootNode:
    """A node as it boots: the interface on the control node's network, and who it will be."""

    name: str
    minion_id: str
    mac: str
    address: str
    interface: str


@dataclass(frozen=True)
class Settings:
    """One cluster's boot service."""

    profile: str
    address: str
    prefix_length: int
    subnet: str
    interface: str
    port: int
    dhcp: Literal["serve", "proxy"]
    deadlines_seconds: Mapping[str, float]
    nodes: Mapping[str, BootNode]
    kernel_line: tuple[str, ...]

    @property
    def url(self) -> str:
        """The address at which the boot service answers."""
        return f"http://{self.address}:{self.port}"

    def by_mac(self, mac: str) -> BootNode | None:
        """Return the node that boots with `mac`."""
        return next((node for node in self.nodes.values() if node.mac == mac), None)

    @classmethod
    def of(cls, profile: Profile) -> Settings:
        """Return the settings that `profile` asks for.

        Raises
        ------
        ValueError
            When the profile's nodes do not boot over the network.
        """
        control = profile.control
        network = profile.networks[control.network]
        boot = profile.boot
        if boot is None:
            raise ValueError(f"profile {profile.name} has no section boot: its nodes boot by themselves")
        # A node whose MAC address is not filled in yet is a machine like any other that is unknown.
        nodes = {
            name: BootNode(name, node.hostname, link.mac, link.address, link.interface)
            for name, node in profile.nodes.items()
            for link in [node.links[control.network]]
            if link.mac is not None
        }
        return cls(
            profile=profile.name,
            address=control.address,
            prefix_length=network.prefix_length,
            subnet=network.subnet,
            # A lab's control node has a bridge that is named after the network.
            interface=control.interface or control.network[:15],
            port=boot.port,
            dhcp=boot.dhcp,
            deadlines_seconds=deadlines({str(stage): seconds for stage, seconds in boot.deadlines.items()}),
            nodes=nodes,
            kernel_line=tuple(boot.kernel_line),
        )


def plain_mac(text: str) -> str | None:
    """Return a MAC address as the profile writes it, from hyphens or capitals; None when it is none."""
    mac = text.strip().lower().replace("-", ":")
    return mac if MAC.fullmatch(mac) else None
