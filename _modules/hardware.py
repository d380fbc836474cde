"""
Read a node's hardware from the kernel: accelerators and how they are attached, USB4, links, firmware, temperatures.

Reads files of ``/sys`` and the kernel's log alone, so it needs no tool of a vendor, and reports
facts: whether they are right is for ``cluster doctor`` to judge, which knows the profile.
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import usb4_registers

__virtualname__ = "hardware"

# Display controllers, processing accelerators, and signal processors, which AMD's NPU calls itself.
ACCELERATOR_CLASSES = ("0x03", "0x12", "0x1180")
_DEVICE = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_MEMORY_BAR = 0x200
# What drivers log of firmware that is not there: the kernel itself, Debian's kernel, i915 and xe.
_FIRMWARE_MISSING = (
    re.compile(r"Direct firmware load for (\S+) failed with error -2"),
    re.compile(r"firmware: failed to load (\S+) \(-2\)"),
    re.compile(r"[Ff]irmware (\S+): fetch failed"),
)
# What drivers log when they give a device up.
_DEVICE_GIVEN_UP = re.compile(
    r"declaring it wedged|Fatal error during GPU init|GuC initialization failed|probe with driver \S+ failed"
    r"|probe of \S+ failed with error"
)
_LOG_BYTES, _MOST_LINES = 8192, 20


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
        "usb4_hosts": usb4_hosts(root),
        "links": links(root),
        "kernel_log": kernel_log(root),
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
                "lanes": min((_number(device / f"{way}_lanes") or 1 for way in ("rx", "tx")), default=1),
            }
        )
    return found


def usb4_hosts(root: str = "/") -> list[dict[str, Any]]:
    """
    Return the node's own USB4 host interfaces, with how long each holds interrupts back at most.

    ``interrupt_interval_seconds`` is None where the registers cannot be read: without root, on a host
    that sleeps, or where the kernel keeps the device's memory to its driver.

    CLI Example:

    .. code-block:: bash

        salt '*' hardware.usb4_hosts
    """
    found = []
    for device in _usb4_host_devices(root):
        driver = device / "driver"
        words = usb4_registers.interrupt_steps(str(device))
        found.append(
            {
                "address": device.name,
                "driver": driver.resolve().name if driver.exists() else None,
                "interrupt_interval_seconds": max(words) * usb4_registers.STEP_SECONDS if words else None,
            }
        )
    return found


def set_usb4_interrupt_interval(seconds: float, root: str = "/") -> list[dict[str, Any]]:
    """
    Have every USB4 host interface hold interrupts back no longer than this; return what they say then.

    The kernel sets 128 us when its driver starts or the machine wakes, and has no setting for it; 8 us halve
    the latency of small messages, for more interrupts. It holds until the driver starts again.

    CLI Example:

    .. code-block:: bash

        salt '*' hardware.set_usb4_interrupt_interval 8e-6

    seconds
        between 0 (not at all) and 0.016, in steps of 256 ns
    """
    steps = round(float(seconds) / usb4_registers.STEP_SECONDS)
    if not 0 <= steps <= usb4_registers.MOST_STEPS:
        most = usb4_registers.MOST_STEPS * usb4_registers.STEP_SECONDS
        raise ValueError(f"seconds is {seconds}; expected between 0 and {most}")
    devices = _usb4_host_devices(root)
    if not devices:
        raise RuntimeError("this node has no USB4 host interface: see hardware.usb4_hosts")
    for device in devices:
        if not usb4_registers.interrupt_steps(str(device), steps):
            raise RuntimeError(
                f"the registers of {device.name} cannot be written: root, an awake device and a kernel without"
                " IO_STRICT_DEVMEM or lockdown are needed"
            )
    return usb4_hosts(root)


def links(root: str = "/") -> dict[str, dict[str, Any]]:
    """
    Return the network interfaces by name: largest packet in bytes, state, speed in bits per second, driver.

    CLI Example:

    .. code-block:: bash

        salt '*' hardware.links
    """
    found = {}
    for device in sorted((pathlib.Path(root) / "sys/class/net").glob("*")):
        if device.name == "lo" or not (device / "mtu").exists():
            continue
        driver, megabits = device / "device/driver", _number(device / "speed")
        found[device.name] = {
            "mtu_bytes": _number(device / "mtu"),
            "state": _text(device / "operstate"),
            # An interface that does not know its speed says -1, or refuses.
            "bits_per_second": megabits * 1e6 if megabits and megabits > 0 else None,
            "driver": driver.resolve().name if driver.exists() else None,
        }
    return found


def kernel_log(root: str = "/") -> dict[str, Any]:
    """
    Return firmware files that drivers did not find, and devices they gave up, from the kernel's log.

    ``complete`` is False when the log no longer begins at the boot: then an empty list proves nothing.

    CLI Example:

    .. code-block:: bash

        salt '*' hardware.kernel_log
    """
    missing: list[str] = []
    given_up: list[str] = []
    first: int | None = None
    for number, line in _log_lines(pathlib.Path(root) / "dev/kmsg"):
        first = number if first is None else first
        for pattern in _FIRMWARE_MISSING:
            match = pattern.search(line)
            if match and match[1] not in missing:
                missing.append(match[1])
        if _DEVICE_GIVEN_UP.search(line):
            given_up.append(line)
    return {
        "complete": first == 0,
        "firmware_missing": missing[:_MOST_LINES],
        "given_up": given_up[:_MOST_LINES],
    }


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


def _usb4_host_devices(root: str) -> list[pathlib.Path]:
    devices = sorted((pathlib.Path(root) / "sys/bus/pci/devices").glob("*"))
    return [device for device in devices if (_text(device / "class") or "") == usb4_registers.HOST_CLASS]


def _log_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Return each record of the kernel's log: its number and its text; nothing without the right to read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    rest = b""
    try:
        while True:
            try:
                content = os.read(descriptor, _LOG_BYTES)
            except BrokenPipeError:
                continue  # a record was overwritten before it was read
            except OSError:
                break  # no further record
            if not content:
                break
            # The device gives one record a read; a plain file gives what fits.
            *lines, rest = (rest + content).split(b"\n")
            for line in lines:
                head, semicolon, text = line.decode("utf-8", "replace").partition(";")
                fields = head.split(",")
                if semicolon and len(fields) >= 2 and fields[1].isdigit():
                    yield int(fields[1]), text
    finally:
        os.close(descriptor)


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
