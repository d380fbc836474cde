"""Read AMD graphics cards and the NPU of an AMD processor, by the drivers amdgpu and amdxdna.

Files: the kernel's Documentation/gpu/amdgpu/thermal.rst and driver-misc.rst; `gpu_metrics` by `struct
gpu_metrics_v3_0` of drivers/gpu/drm/amd/include/kgd_pp_interface.h, which the chips of Ryzen AI have; the NPU's times
by Documentation/ABI/testing/sysfs-devices-power.

Not taken from `gpu_metrics`: the memory's traffic, in MB/s in 16 bits, which end at 65.5 GB/s where the memory of a
Ryzen AI Max carries 256; and how busy the NPU is, whose unit depends on the firmware's version.
"""

import glob
import os
import struct
from typing import Any

from card_files import CardFiles, Row, marked_frequency, throttled
from readers import Handle

AMDGPU: tuple[Row, ...] = (
    ("device/gpu_busy_percent", "busy_ratio", 1e-2),
    ("device/mem_busy_percent", "memory_busy_ratio", 1e-2),
    ("device/mem_info_vram_used", "memory_used_bytes", 1),
    ("device/mem_info_vram_total", "memory_total_bytes", 1),
    ("device/mem_info_gtt_used", "shared_memory_used_bytes", 1),
    ("device/hwmon/hwmon*/freq1_input", "frequency_hertz", 1),
    ("device/hwmon/hwmon*/freq2_input", "memory_frequency_hertz", 1),
    # The first where the chip averages, the second where it tells the moment.
    ("device/hwmon/hwmon*/power1_average", "power_watts", 1e-6),
    ("device/hwmon/hwmon*/power1_input", "power_watts", 1e-6),
    ("device/hwmon/hwmon*/power1_cap", "power_limit_watts", 1e-6),
    # Channel 2 is the hottest spot, 1 the edge of the chip: the spot is what throttles.
    ("device/hwmon/hwmon*/temp2_input", "temperature_celsius", 1e-3),
    ("device/hwmon/hwmon*/temp1_input", "temperature_celsius", 1e-3),
    ("device/hwmon/hwmon*/temp3_input", "memory_temperature_celsius", 1e-3),
)
# Clocks where the monitor has none, as for the memory of a processor's graphics part.
MARKED = {"frequency_hertz": "device/pp_dpm_sclk", "memory_frequency_hertz": "device/pp_dpm_mclk"}
AMDXDNA: tuple[Row, ...] = (("device/power/runtime_suspended_time", "idle_s", 1e-3),)

METRICS_HEADER = struct.Struct("<HBB")
METRICS_BYTES, METRICS_VERSION = 264, (3, 0)
# Offsets in bytes, worked out from the structure: mW, MHz, and counters that grow while a limit holds the clock.
NPU_POWER_OFFSET, NPU_CLOCK_OFFSET = 112, 180
RESIDENCIES = struct.Struct("<7I")
RESIDENCIES_OFFSET = 228
RESIDENCY_NAMES = ("prochot", "spl", "fppt", "sppt", "thm_core", "thm_gfx", "thm_soc")
# SPL, fast and slow PPT are limits of the package's power.
GROUPS = {
    "spl": "power",
    "fppt": "power",
    "sppt": "power",
    "prochot": "heat",
    "thm_core": "heat",
    "thm_gfx": "heat",
    "thm_soc": "heat",
}
ABSENT = 0xFFFF


class Metrics:
    """The `gpu_metrics` of a chip, of the one version that is known here."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._before: tuple[int, ...] | None = None
        self.known = self._content() is not None

    def _content(self) -> bytes | None:
        try:
            with open(self._path, "rb", buffering=0) as file:
                content = file.read(METRICS_BYTES)
        except OSError:
            return None
        if len(content) < METRICS_BYTES or METRICS_HEADER.unpack_from(content)[1:] != METRICS_VERSION:
            return None
        return content

    def throttling(self) -> dict[str, Any]:
        """Return which limits lowered the clock since the last reading; nothing in the first."""
        content = self._content() if self.known else None
        if content is None:
            return {}
        now = RESIDENCIES.unpack_from(content, RESIDENCIES_OFFSET)
        before, self._before = self._before, now
        if before is None:
            return {}
        grown = (name for name, old, new in zip(RESIDENCY_NAMES, before, now, strict=True) if new != old)
        return throttled(grown, GROUPS)

    def npu(self) -> dict[str, Any]:
        """Return power and clock of the NPU on the same chip."""
        content = self._content() if self.known else None
        if content is None:
            return {}
        found = {}
        for key, offset, factor in (
            ("power_watts", NPU_POWER_OFFSET, 1e-3),
            ("frequency_hertz", NPU_CLOCK_OFFSET, 1e6),
        ):
            (value,) = struct.unpack_from("<H", content, offset)
            if value != ABSENT:
                found[key] = value * factor
        return found


class AmdCard:
    """One card of amdgpu."""

    def __init__(self, folder: str, driver: str) -> None:
        self._files = CardFiles(folder, driver, AMDGPU)
        self._marked = {key: Handle(os.path.join(folder, path)) for key, path in MARKED.items()}
        self._metrics = Metrics(os.path.join(folder, "device/gpu_metrics"))
        self.empty = self._files.empty

    def sample(self) -> dict[str, Any]:
        """Return the values now."""
        found = self._files.sample()
        for key, handle in self._marked.items():
            if key not in found:
                value = marked_frequency(handle.read())
                if value is not None:
                    found[key] = value
        return {**found, **self._metrics.throttling()}


class Npu:
    """One NPU of amdxdna; the graphics part of the same chip tells its power."""

    def __init__(self, folder: str, driver: str, graphics: str = "/sys/class/drm") -> None:
        self._files = CardFiles(folder, driver, AMDXDNA)
        found = [Metrics(path) for path in sorted(glob.glob(os.path.join(graphics, "card[0-9]*/device/gpu_metrics")))]
        self._metrics = next((metrics for metrics in found if metrics.known), None)
        self.empty = self._files.empty

    def sample(self) -> dict[str, Any]:
        """Return the values now."""
        return {**self._files.sample(), **(self._metrics.npu() if self._metrics else {})}
