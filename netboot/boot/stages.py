"""The stages of a boot, from power-on to the first token, and how long each may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

from bottleneck.profile.boot_types import Stage as BootStage

BOOT_STAGES: Final[tuple[BootStage, ...]] = get_args(BootStage)

# Three to four times what a virtual machine without hardware virtualisation took (doc/reference/boot.md has the
# figures); firmware of real boards trains its memory for up to minutes before it asks for an address.
DEADLINES_SECONDS: Final[dict[str, float]] = {
    "dhcp": 300.0,
    "script": 60.0,
    "kernel": 60.0,
    "initramfs": 60.0,
    "image": 180.0,
    "systemd": 60.0,
    "minion": 90.0,
    "enrolled": 60.0,
    "applied": 900.0,
    "engine_ready": 900.0,
    "first_token": 300.0,
}

# Under way with the nonce that the script brought: it has to hold for as long as all of them may take.
NONCE_STAGES: Final[tuple[BootStage, ...]] = ("kernel", "initramfs", "image", "systemd", "minion", "enrolled")


def nonce_lifetime_seconds(deadlines: Mapping[str, float]) -> float:
    """Return how long the nonce of a boot script holds: a node that is inside every deadline is never refused.

    Parameters
    ----------
    deadlines : mapping
        How long each stage may take, seconds.
    """
    return sum(deadlines[stage] for stage in NONCE_STAGES)


__all__ = ["BOOT_STAGES", "DEADLINES_SECONDS", "NONCE_STAGES", "BootStage", "nonce_lifetime_seconds"]
