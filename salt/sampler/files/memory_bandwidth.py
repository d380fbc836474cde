"""Read the bytes that the memory controller moved, where the machine counts them.

Intel's desktop memory controllers have free-running counters (the kernel's PMUs ``uncore_imc_free_running*``, or
``uncore_imc`` with ``data_reads``); servers may have resource control mounted. Elsewhere the part is absent.
"""

import ctypes
import glob
import os
import platform
import struct
from typing import NamedTuple

from readers import Handle

SYSTEM_CALL = {"x86_64": 298, "aarch64": 241}
UNIT_BYTES = {"MiB": 1 << 20, "KiB": 1 << 10, "Bytes": 1}
READ, WRITTEN = "read_bytes", "write_bytes"
EVENTS = {"data_read": READ, "data_reads": READ, "data_write": WRITTEN, "data_writes": WRITTEN}
ATTRIBUTE_BYTES = 128


class Counter(NamedTuple):
    """A counter of memory traffic: its key in a sample, bytes a count, and how the kernel opens it."""

    key: str
    bytes_each: float
    kind: int
    configuration: int
    core: int


def event_configuration(text: str) -> int:
    """Return the number that selects an event, from the PMU's ``event=0xff,umask=0x20``."""
    fields = dict(part.partition("=")[::2] for part in text.strip().split(","))
    return int(fields.get("event", "0"), 0) | int(fields.get("umask", "0"), 0) << 8


def counters(directory: str = "/sys/bus/event_source/devices") -> list[Counter]:
    """Return every counter of memory traffic."""
    found = []
    for device in sorted(glob.glob(os.path.join(directory, "uncore_imc*"))):
        kind, cores = _text(device, "type"), _text(device, "cpumask")
        for event, key in EVENTS.items():
            text, scale = _text(device, "events", event), _text(device, "events", event + ".scale")
            unit = UNIT_BYTES.get(_text(device, "events", event + ".unit") or "")
            if kind is not None and text is not None and scale is not None and unit is not None:
                core = int((cores or "0").split(",")[0].split("-")[0])
                found.append(Counter(key, float(scale) * unit, int(kind), event_configuration(text), core))
    return found


def _text(*parts: str) -> str | None:
    try:
        with open(os.path.join(*parts), encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None


def open_counter(kind: int, configuration: int, pid: int = -1, core: int = 0) -> int | None:
    """Open a counter of the kernel's performance events; return its descriptor, or None where that is not allowed."""
    number = SYSTEM_CALL.get(platform.machine())
    if number is None:
        return None
    attributes = struct.pack("=IIQ", kind, ATTRIBUTE_BYTES, configuration).ljust(ATTRIBUTE_BYTES, b"\0")
    call = ctypes.CDLL(None, use_errno=True).syscall
    arguments = (ctypes.c_int(pid), ctypes.c_int(core), ctypes.c_int(-1), ctypes.c_ulong(0))
    descriptor = int(call(ctypes.c_long(number), ctypes.create_string_buffer(attributes, ATTRIBUTE_BYTES), *arguments))
    return descriptor if descriptor >= 0 else None


class MemoryBandwidth:
    """Cumulative bytes of the memory controllers."""

    def __init__(
        self, directory: str = "/sys/bus/event_source/devices", resource_control: str = "/sys/fs/resctrl"
    ) -> None:
        self._open: list[tuple[str, float, int]] = []
        for key, factor, kind, configuration, core in counters(directory):
            descriptor = open_counter(kind, configuration, core=core)
            if descriptor is not None:
                self._open.append((key, factor, descriptor))
        domains = glob.glob(os.path.join(resource_control, "mon_data", "mon_L3_*", "mbm_total_bytes"))
        self._domains = [] if self._open else [Handle(path) for path in sorted(domains)]

    def sample(self) -> dict[str, float] | None:
        """Return the counters, or None where the machine has none."""
        result: dict[str, float] = {}
        for key, factor, descriptor in self._open:
            count = struct.unpack("=Q", os.read(descriptor, 8))[0]
            result[key] = result.get(key, 0.0) + count * factor
        for handle in self._domains:
            text = handle.read()
            if text and text.strip().isdigit():
                result["total_bytes"] = result.get("total_bytes", 0) + int(text)
        return result or None
