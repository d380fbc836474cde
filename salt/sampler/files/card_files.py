"""Read what a driver tells of one card in files: numbers by a table, clocks by the marked line, reasons by name.

The readers of each vendor's cards are tables over this. Where a file is not there, its key is absent.
"""

import glob
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from readers import Handle

# Pattern below the card's folder, key of the sample, factor to base units.
Row = tuple[str, str, float]
_MARKED = re.compile(r"([0-9.]+)\s*Mhz\s*\*", re.IGNORECASE)


class CardFiles:
    """The files of one card, opened once; each key is read from the first of its patterns that is there."""

    def __init__(self, folder: str, driver: str, table: Iterable[Row]) -> None:
        self.driver = driver
        self._numbers: dict[str, tuple[float, Handle]] = {}
        for pattern, key, factor in table:
            paths = sorted(glob.glob(os.path.join(folder, pattern)))
            if paths and key not in self._numbers:
                self._numbers[key] = (factor, Handle(paths[0]))
        self._bus = {
            key: [Handle(os.path.join(folder, "device", f"{when}_link_{part}")) for part in ("speed", "width")]
            for key, when in (("bus_bytes_per_second", "current"), ("bus_limit_bytes_per_second", "max"))
        }

    @property
    def empty(self) -> bool:
        """Return whether nothing of the table was there."""
        return not self._numbers

    def sample(self) -> dict[str, Any]:
        """Return the values now, and the rates of the PCIe link."""
        found: dict[str, Any] = {"driver": self.driver}
        for key, (factor, handle) in self._numbers.items():
            value = number(handle.read())
            if value is not None:
                found[key] = value * factor
        for key, (speed, width) in self._bus.items():
            rate = bus_rate(speed.read(), width.read())
            if rate:
                found[key] = rate
        return found


class Reasons:
    """Files of a driver that hold 1 while the card lowers its clock for the reason in their name."""

    def __init__(self, folder: str, patterns: Iterable[str], groups: Mapping[str, str]) -> None:
        self._handles: dict[str, Handle] = {}
        for pattern in patterns:
            for path in sorted(glob.glob(os.path.join(folder, pattern))):
                name = os.path.basename(path).rpartition("reason_")[2]
                if name != "status":
                    self._handles.setdefault(name, Handle(path))
        self._groups = groups

    def sample(self) -> dict[str, Any]:
        """Return the reasons that hold now; nothing where the driver has no such file."""
        if not self._handles:
            return {}
        return throttled((name for name, handle in self._handles.items() if number(handle.read())), self._groups)


def throttled(reasons: Iterable[str], groups: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of a sample that says why the clock is lowered.

    ``groups`` says of a reason's name whether it is of ``power`` or of ``heat``; others stand by their name alone.
    """
    names = sorted(reasons)
    kinds = {groups.get(name) for name in names}
    return {
        "power_throttled": int("power" in kinds),
        "heat_throttled": int("heat" in kinds),
        "throttle_reasons": " ".join(names),
    }


def marked_frequency(text: str | None) -> float | None:
    """Return hertz of the line that the driver marks as the clock in use ("1: 1000Mhz *"), or None."""
    found = _MARKED.search(text or "")
    return float(found[1]) * 1e6 if found else None


def number(text: str | None) -> int | None:
    """Return the integer that a file holds, or None."""
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


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
