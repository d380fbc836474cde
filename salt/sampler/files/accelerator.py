"""Read accelerator counters from the kernel's files, once a batch, because a driver may ask the device.

One table says which file of which driver is what. Where a file is not there, its key is absent.
"""

import glob
import os
from typing import Any

from readers import Handle

MIB = 1 << 20
# driver: (pattern below /sys/class/drm/cardN, key, factor to base units)
FILES = {
    "i915": (
        ("gt/gt0/rc6_residency_ms", "idle_s", 1e-3),
        ("gt/gt0/rps_act_freq_mhz", "frequency_hertz", 1e6),
        ("device/hwmon/hwmon*/energy1_input", "energy_joules", 1e-6),
        ("device/hwmon/hwmon*/power1_max", "power_limit_watts", 1e-6),
    ),
    "xe": (
        ("device/tile0/gt0/gtidle/idle_residency_ms", "idle_s", 1e-3),
        ("device/tile0/gt0/freq0/act_freq", "frequency_hertz", 1e6),
        ("device/hwmon/hwmon*/energy1_input", "energy_joules", 1e-6),
        ("device/hwmon/hwmon*/power1_max", "power_limit_watts", 1e-6),
    ),
    "amdgpu": (
        ("device/gpu_busy_percent", "busy_ratio", 1e-2),
        ("device/mem_busy_percent", "memory_busy_ratio", 1e-2),
        ("device/mem_info_vram_used", "memory_used_bytes", 1),
        ("device/mem_info_vram_total", "memory_total_bytes", 1),
        ("device/mem_info_gtt_used", "shared_memory_used_bytes", 1),
        ("device/hwmon/hwmon*/freq1_input", "frequency_hertz", 1),
        ("device/hwmon/hwmon*/power1_average", "power_watts", 1e-6),
        ("device/hwmon/hwmon*/power1_cap", "power_limit_watts", 1e-6),
        ("device/hwmon/hwmon*/temp1_input", "temperature_celsius", 1e-3),
    ),
}


class Accelerators:
    """Every graphics card of the node whose driver is in the table."""

    def __init__(self, directory: str = "/sys/class/drm") -> None:
        self._cards: dict[str, tuple[str, list[tuple[str, float, Handle]]]] = {}
        self._buses: dict[str, dict[str, list[Handle]]] = {}
        for card in sorted(glob.glob(os.path.join(directory, "card[0-9]*"))):
            name = os.path.basename(card)
            driver = os.path.basename(os.path.realpath(os.path.join(card, "device", "driver")))
            if not name.removeprefix("card").isdigit() or driver not in FILES:
                continue  # card0-HDMI-A-1 is a connector
            found = [(glob.glob(os.path.join(card, path)), key, factor) for path, key, factor in FILES[driver]]
            handles = [(key, factor, Handle(paths[0])) for paths, key, factor in found if paths]
            if handles:
                self._cards[name] = (driver, handles)
                self._buses[name] = {
                    key: [Handle(os.path.join(card, "device", f"{when}_link_{part}")) for part in ("speed", "width")]
                    for key, when in (("bus_bytes_per_second", "current"), ("bus_limit_bytes_per_second", "max"))
                }

    def sample(self) -> dict[str, dict[str, Any]] | None:
        """Return {card: values}, or None without a card."""
        result: dict[str, dict[str, Any]] = {}
        for name, (driver, handles) in self._cards.items():
            result[name] = {"driver": driver}
            for key, factor, handle in handles:
                text = handle.read()
                try:
                    if text is not None:
                        result[name][key] = int(text) * factor
                except ValueError:
                    continue
            for key, (speed, width) in self._buses[name].items():
                rate = bus_rate(speed.read(), width.read())
                if rate:
                    result[name][key] = rate
        return result or None


def bus_rate(speed: str | None, width: str | None) -> float | None:
    """Return bytes per second of a PCIe link from the kernel's texts ("16.0 GT/s PCIe", "16"), or None.

    A transfer is a bit of a lane; what the line's coding takes is the same share on both sides of a comparison.
    """
    if speed is None or width is None:
        return None
    try:
        return float(speed.split()[0]) * 1e9 / 8 * int(width)
    except (IndexError, ValueError):
        return None
