"""Read the node's accelerators once a batch, because a driver may ask the device: one small reader for each kind.

Which readers there are follows from the drivers that hold the devices; no vendor's tool is run. Over made-up files a
reading takes 10 to 20 us of the processor, once a second: 0.002 % of a core, beside what the driver itself does then.
"""

import glob
import os
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any, Protocol

from amd_cards import AmdCard, Npu
from intel_cards import IntelCard
from nvidia_cards import find_module, nvidia_cards


class Card(Protocol):
    """Facts of one card for its reader."""

    empty: bool

    def sample(self) -> dict[str, Any]:
        """Return the card's values now."""


GRAPHICS: dict[str, Callable[[str, str], Card]] = {"i915": IntelCard, "xe": IntelCard, "amdgpu": AmdCard}


class Accelerators:
    """Every accelerator of the node that a reader knows; with ``cards``, those of these names alone."""

    def __init__(
        self,
        directory: str = "/sys/class",
        cards: Collection[str] | None = None,
        nvml: Callable[[], ModuleType | None] = find_module,
    ) -> None:
        found: dict[str, Card] = {}
        graphics = os.path.join(directory, "drm")
        for name, folder, driver in _devices(graphics, "card"):
            reader = GRAPHICS.get(driver)
            if reader is not None:
                found[name] = reader(folder, driver)
        for name, folder, driver in _devices(os.path.join(directory, "accel"), "accel"):
            if driver == "amdxdna":
                found[name] = Npu(folder, driver, graphics)
        # The driver's own folder: loading NVML's module costs 30 ms, for nothing without it.
        if os.path.isdir("/proc/driver/nvidia") or nvml is not find_module:
            found.update(nvidia_cards(nvml()))
        self._cards = {
            name: card for name, card in found.items() if not card.empty and (cards is None or name in cards)
        }

    def sample(self) -> dict[str, dict[str, Any]] | None:
        """Return {card: values}, or None without a card."""
        return {name: card.sample() for name, card in self._cards.items()} or None


def _devices(directory: str, prefix: str) -> list[tuple[str, str, str]]:
    """Return name, folder and driver of each device of a class; card0-HDMI-A-1 is a connector."""
    found = []
    for folder in sorted(glob.glob(os.path.join(directory, prefix + "[0-9]*"))):
        name = os.path.basename(folder)
        if name.removeprefix(prefix).isdigit():
            found.append((name, folder, os.path.basename(os.path.realpath(os.path.join(folder, "device", "driver")))))
    return found
