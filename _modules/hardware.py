"""
Read a node's hardware from the kernel: accelerators and how they are attached, USB4, firmware, temperatures.

Reads files of ``/sys`` alone, so it needs no tool of a vendor, and reports facts: whether they are
right is for ``cluster doctor`` to judge, which knows the profile.
"""

import os
import pathlib
import re
from typing import Any

__virtualname__ = "hardware"

# Display controllers, processing accelerators, and signal processors, which AMD's NPU calls itself.
ACCELERATOR_CLASSES = ("0x03", "0x12", "0x1180")
_DEVICE = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_MEMORY_BAR = 0x200


def __virtual__() -> str:
    return __virtualname__


def facts(root: str = "/") -> dict[str, Any]:
    """
    Return this node's hardware, as the kernel describes it.

    root
        folder that stands for ``/``

    CLI Example:

    .. code-block:: bash

        salt '*' hardware.facts
    """
    top = pathlib.Path(root)
    return {
        "accelerators": accelerators(root),
        "usb4": usb4(root),
        "firmware": firmware(root),
        "numa_nodes": len(list((top / "sys/devices/system/node").glob("node[0-9]*"))) or None,
        "cpus_online": _text(top / "sys/devices/system/cpu/online"),
        "temperatures_celsius": temperatures(root),
        "kernel": _text(top / "proc/sys/kernel/osrelease"),
    }


def accelerators(root: str = "/") -> list[dict[str, Any]]:
    """
    Return the accelerators: PCI address, driver, link, largest memory window, NUMA node, temperature.

    CLI Example:

    .. code-block:: bash

        salt '*' hardware.accelerators
    """
    found = []
    for device in sorted((pathlib.Path(root) / "sys/bus/pci/devices").glob("*")):
        kind = _text(device / "class") or ""
        if not kind.startswith(ACCELERATOR_CLASSES):
            continue
        driver = device / "driver"
        found.append(
            {
                "address": device.name,
                "vendor": _text(device / "vendor"),
                "device": _text(device / "device"),
                "class": kind,
                "driver": driver.resolve().name if driver.exists() else None,
                "link": _slot_link(device),
                "largest_window_bytes": _largest_window(device / "resource"),
                "memory_bytes": _number(device / "mem_info_vram_total"),
                "numa_node": _number(device / "numa_node"),
                "temperature_celsius": _hottest(device / "hwmon"),
            }
        )
    return found


def usb4(root: str = "/") -> list[dict[str, Any]]:
    """
    Return the hosts at the other end of USB4 cables, with the speed and lanes of each direction.

    CLI Example:

    .. code-block:: bash

        salt '*' hardware.usb4
    """
    found = []
    for device in sorted((pathlib.Path(root) / "sys/bus/thunderbolt/devices").glob("*")):
        # The machine itself ends in -0; other devices of a dock have no link attributes of a host.
        if device.name.endswith("-0") or not (device / "rx_speed").exists() or not (device / "unique_id").exists():
            continue
        found.append(
            {
                "name": device.name,
                "host": _text(device / "device_name"),
                "receive_bits_per_second": _gigabits(device / "rx_speed", device / "rx_lanes"),
                "transmit_bits_per_second": _gigabits(device / "tx_speed", device / "tx_lanes"),
            }
        )
    return found


def firmware(root: str = "/") -> dict[str, Any]:
    """
    Return the board and its firmware: vendor, version, date, and whether it booted by UEFI.

    CLI Example:

    .. code-block:: bash

        salt '*' hardware.firmware
    """
    top = pathlib.Path(root)
    names = {"board": "board_name", "vendor": "bios_vendor", "version": "bios_version", "date": "bios_date"}
    fields = {key: _text(top / "sys/class/dmi/id" / name) for key, name in names.items()}
    return {**fields, "uefi": (top / "sys/firmware/efi").is_dir()}


def temperatures(root: str = "/") -> dict[str, float]:
    """
    Return the hottest reading of each sensor chip, by the name its driver gives it.

    CLI Example:

    .. code-block:: bash

        salt '*' hardware.temperatures
    """
    found: dict[str, float] = {}
    for chip in sorted((pathlib.Path(root) / "sys/class/hwmon").glob("hwmon*")):
        values = [value for value in map(_number, chip.glob("temp*_input")) if value is not None]
        if values:
            name = _text(chip / "name") or chip.name
            found[name] = max(found.get(name, 0.0), max(values) / 1000)
    return found


def _slot_link(device: pathlib.Path) -> dict[str, Any] | None:
    """
    Return the link that the card has to the machine.

    A card with a switch of its own (Arc has one) shows a made-up link at the chip; what counts is the
    device right below the root port, which the path through ``/sys/devices`` names.
    """
    chain = [part for part in device.resolve().parts if _DEVICE.fullmatch(part)]
    if not chain:
        return None
    below_root = device.resolve()
    # chain[0] is the root port when there is one; a device on the root bus has no link.
    for _ in range(max(0, len(chain) - 2)):
        below_root = below_root.parent
    names = ("current_link_width", "max_link_width", "current_link_speed", "max_link_speed")
    lanes, most_lanes, speed, most_speed = (_text(below_root / name) for name in names)
    if not lanes:
        return None
    return {
        "device": below_root.name,
        "lanes": int(lanes),
        "most_lanes": int(most_lanes or lanes),
        "transfers_per_second": _transfers(speed),
        "most_transfers_per_second": _transfers(most_speed),
    }


def _largest_window(resource: pathlib.Path) -> int | None:
    """Return the size of the largest memory window; with Resizable BAR it holds all of the card's memory."""
    largest = 0
    for line in (_text(resource) or "").splitlines():
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            continue
        if flags & _MEMORY_BAR and end > start:
            largest = max(largest, end - start + 1)
    return largest or None


def _hottest(folder: pathlib.Path) -> float | None:
    values = [value for value in map(_number, folder.glob("hwmon*/temp*_input")) if value is not None]
    return max(values) / 1000 if values else None


def _gigabits(speed: pathlib.Path, lanes: pathlib.Path) -> float | None:
    found = re.match(r"([0-9.]+)", _text(speed) or "")
    return float(found[1]) * 1e9 * (_number(lanes) or 1) if found else None


def _transfers(text: str | None) -> float | None:
    found = re.match(r"([0-9.]+) GT/s", text or "")
    return float(found[1]) * 1e9 if found else None


def _number(path: pathlib.Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _text(path: pathlib.Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None if os.access(path, os.R_OK) else None
    except OSError:
        return None
