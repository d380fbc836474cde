"""The stages of a boot, from power-on to the first token, and how long each may take."""

from __future__ import annotations

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

__all__ = ["BOOT_STAGES", "DEADLINES_SECONDS", "BootStage"]
