"""The stages of a boot, from power-on to the first token: how long each may take, and why one has not come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

from bottleneck.profile.boot_types import Stage as BootStage

BOOT_STAGES: Final[tuple[BootStage, ...]] = get_args(BootStage)


@dataclass(frozen=True)
class StageRules:
    """Rules by which a stage of a boot is judged.

    Attributes
    ----------
    deadline_seconds
        How long it may take after the one before it.
    cause
        Why it has most likely not come, as a sentence for the person.
    reported
        Whether the node itself reports it; the other stages are seen from the control node.
    """

    deadline_seconds: float
    cause: str
    reported: bool = False


# The deadlines are three to four times what a virtual machine without hardware virtualisation took (the figures are in
# doc/reference/boot.md); firmware of real boards trains its memory for up to minutes before it asks for an address.
STAGES: Final[dict[BootStage, StageRules]] = {
    "dhcp": StageRules(
        300.0,
        "no DHCP request came from its MAC address: is it switched on, cabled to this network, and set to netboot?",
    ),
    "script": StageRules(
        60.0,
        "it was given an address and has not asked for its boot script: firmware that does not load iPXE, "
        "a wrong architecture, or another DHCP server that answered first",
    ),
    "kernel": StageRules(
        60.0,
        "it has its boot script and has not fetched its kernel: iPXE lost the network or the image is missing",
    ),
    "initramfs": StageRules(
        60.0,
        "the kernel was fetched and its first program has not reported: a kernel that does not run on this "
        "machine, or no driver for its network card",
        reported=True,
    ),
    "image": StageRules(
        180.0,
        "the root image was not unpacked: a slow or broken transfer, or too little memory for it",
        reported=True,
    ),
    "systemd": StageRules(
        60.0,
        "the root image is in place and systemd has not come up: look at the node's console",
        reported=True,
    ),
    "minion": StageRules(
        90.0,
        "systemd runs and the node has not made its Salt key: is cluster-enrol.service failed?",
        reported=True,
    ),
    "enrolled": StageRules(
        60.0,
        "the node's key is made and no valid claim for it has arrived",
    ),
    "applied": StageRules(
        900.0,
        "the node is enrolled and its states are not applied: is its minion connected to the master?",
    ),
    "engine_ready": StageRules(
        900.0,
        "the deployment was started and the node's worker is not ready: see cluster logs",
    ),
    "first_token": StageRules(
        300.0,
        "the engine is ready and no token was made: send a request (cluster bench)",
    ),
}

# Under way with the nonce that the script brought: it has to hold for as long as all of them may take.
NONCE_STAGES: Final[tuple[BootStage, ...]] = BOOT_STAGES[
    BOOT_STAGES.index("kernel") : BOOT_STAGES.index("enrolled") + 1
]


def nonce_lifetime_seconds(deadlines: Mapping[str, float]) -> float:
    """Return how long the nonce of a boot script holds: a node that is inside every deadline is never refused.

    Parameters
    ----------
    deadlines : mapping
        How long each stage may take, seconds.
    """
    return sum(deadlines[stage] for stage in NONCE_STAGES)


__all__ = ["BOOT_STAGES", "NONCE_STAGES", "STAGES", "BootStage", "StageRules", "nonce_lifetime_seconds"]
