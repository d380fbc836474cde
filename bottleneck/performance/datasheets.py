"""Accelerators by name, from their vendors' datasheets, for predictions about machines that are not at hand."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bottleneck.performance.efficiencies import efficiency
from bottleneck.performance.served import Accelerator


@dataclass(frozen=True)
class Datasheet:
    """Rates that a vendor states.

    Attributes
    ----------
    flops_per_second : float
        Dense products of 16-bit floats.
    launch_seconds : float
        Start of one kernel; an estimate.
    source : str
        Where the numbers are from.
    named : tuple of str
        What it is called in a profile, small letters and digits alone: any of these is in its model's name.
    """

    name: str
    memory_bytes: int
    memory_bytes_per_second: float
    flops_per_second: float
    launch_seconds: float
    source: str
    named: tuple[str, ...]

    def accelerator(self) -> Accelerator:
        """Return what probes would find on it."""
        return Accelerator(
            self.name,
            self.memory_bytes_per_second * efficiency("datasheet_memory").value,
            self.flops_per_second * efficiency("datasheet_arithmetic").value,
            self.launch_seconds,
        )


DATASHEETS: dict[str, Datasheet] = {
    "h200": Datasheet("NVIDIA H200 SXM", 141 * 10**9, 4.8e12, 989.5e12, 7.5e-6, "NVIDIA H200 datasheet", ("h200",)),
    "h100": Datasheet("NVIDIA H100 SXM", 80 * 10**9, 3.35e12, 989.5e12, 7.5e-6, "NVIDIA H100 datasheet", ("h100",)),
    "a100": Datasheet("NVIDIA A100 SXM 80GB", 80 * 10**9, 2.039e12, 312e12, 7.5e-6, "NVIDIA A100 datasheet", ("a100",)),
    "arc-a770": Datasheet(
        "Intel Arc A770 16GB",
        16 * 2**30,
        560e9,
        137.6e12,
        15e-6,
        "Intel ARK: 560 GB/s; 512 XMX at 2.1 GHz",
        ("arca770",),
    ),
    "ryzen-ai-max": Datasheet(
        "AMD Ryzen AI Max+ 395",
        96 * 10**9,
        256e9,
        59.4e12,
        15e-6,
        "AMD: LPDDR5X-8000, 256 bit; 40 CU at 2.9 GHz",
        ("ryzenaimax", "gfx1151", "radeon8060s"),
    ),
}


def datasheet_of(model: str) -> Datasheet | None:
    """Return the datasheet of an accelerator; None without one.

    Parameters
    ----------
    model : str
        What a profile calls it, such as Intel Arc A770 16 GB.
    """
    plain = re.sub(r"[^a-z0-9]", "", model.lower())
    return next((each for each in DATASHEETS.values() if any(name in plain for name in each.named)), None)
