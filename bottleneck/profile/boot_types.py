"""Types of how a profile's nodes boot over the network, and where the profile's numbers are from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bottleneck.profile.value_types import Count, Duration, Name, Port, Section, with_unit
from bottleneck.units import shown

# In the order of a boot; the boot service keeps a record of each.
Stage = Literal[
    "dhcp",
    "script",
    "kernel",
    "initramfs",
    "image",
    "systemd",
    "minion",
    "enrolled",
    "applied",
    "engine_ready",
    "first_token",
]


def _kernel_argument(text: str) -> str:
    # The line is put together with spaces, inside an iPXE script where ${ begins a variable.
    if not text or any(character.isspace() or not character.isprintable() for character in text) or "${" in text:
        raise ValueError(f"{shown(text)}; expected one argument of the kernel without spaces or iPXE variables")
    if text.startswith("cluster."):
        raise ValueError(f"{shown(text)}; expected none that begins with cluster., the boot service sets those")
    return text


KernelArgument = Annotated[str, AfterValidator(_kernel_argument)]


class Image(Section):
    """Additions to the base recipe in the nodes' shared image."""

    suite: Name = Field(default="trixie", description="Debian release.")
    kernel: Name = Field(default="linux-image-amd64", description="Debian package of the kernel.")
    components: list[Literal["main", "contrib", "non-free", "non-free-firmware"]] = Field(
        default=["main"], description="Parts of the Debian archive that packages come from."
    )
    packages: list[Name] = Field(default=[], description="Further Debian packages, such as firmware.")
    layers: dict[Name, list[Name]] = Field(
        default={}, description="Layer name -> Debian packages of a layer of its own, such as an accelerator's driver."
    )
    modules: list[Name] = Field(default=[], description="Kernel modules to load at boot.")


class Boot(Section):
    """Settings of nodes that boot over the network."""

    dhcp: Literal["serve", "proxy"] = Field(
        default="serve", description="Answer DHCP on the cluster's interface, or add to a DHCP server that is there."
    )
    port: Port = Field(default=8069, description="Port of the boot service on the control node.")
    image: Image = Field(default_factory=Image, description="What the image holds.")
    kernel_line: list[KernelArgument] = Field(default=[], description="Arguments of the kernel, one an entry.")
    deadlines: dict[Stage, Duration] = Field(
        default={}, description="Stage -> how long it may take, where the boot service's own limit does not fit."
    )
    canary: Name | None = Field(
        default=None, description="The node that gets a new image or profile first; left out, the first one."
    )
    drain_seconds: Duration = with_unit(
        "5 min", "drain", "How long requests under way may take to end before a node is booted again."
    )
    return_seconds: Duration = with_unit(
        "15 min", "return", "How long a node may take from its reboot until its states are applied."
    )
    attempts: Count = Field(default=1, description="Reboots of a node before its image counts as broken.")


class Source(Section):
    """Origin of a number of the hardware."""

    basis: Literal["datasheet", "standard", "measured", "computed", "chosen", "assumed"] = Field(
        description="What it rests on: a maker's data, a standard, a measurement, arithmetic, our choice, or nothing"
        " better yet; `cluster profile check` lists what is assumed."
    )
    says: Annotated[str, Field(min_length=1)] = Field(description="What it says there, or how it was found.")
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        default=None, description="Where that can be read; a datasheet or standard needs it."
    )
