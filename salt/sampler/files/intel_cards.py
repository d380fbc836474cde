"""Read Intel graphics cards, by the drivers i915 and xe.

Files: Documentation/ABI/testing/sysfs-driver-intel-{i915,xe}-hwmon of the kernel; the clocks and reasons from
drivers/gpu/drm/i915/gt/intel_gt_sysfs_pm.c, drivers/gpu/drm/xe/xe_gt_{freq,idle,throttle}.c. Neither driver counts the
traffic of the card's memory, nor tells in files how much of it is used.
"""

from typing import Any

from card_files import CardFiles, Reasons, Row

TABLES: dict[str, tuple[Row, ...]] = {
    "i915": (
        ("gt/gt0/rc6_residency_ms", "idle_s", 1e-3),
        ("gt/gt0/rps_act_freq_mhz", "frequency_hertz", 1e6),
        ("gt/gt0/rps_RP0_freq_mhz", "frequency_limit_hertz", 1e6),
        ("device/hwmon/hwmon*/energy1_input", "energy_joules", 1e-6),
        ("device/hwmon/hwmon*/power1_max", "power_limit_watts", 1e-6),
        ("device/hwmon/hwmon*/temp1_input", "temperature_celsius", 1e-3),
    ),
    "xe": (
        ("device/tile0/gt0/gtidle/idle_residency_ms", "idle_s", 1e-3),
        ("device/tile0/gt0/freq0/act_freq", "frequency_hertz", 1e6),
        ("device/tile0/gt0/freq0/rp0_freq", "frequency_limit_hertz", 1e6),
        ("device/tile0/physical_vram_size_bytes", "memory_total_bytes", 1),
        # Channel 1 is the whole card, 2 its package: some cards have but one of them.
        ("device/hwmon/hwmon*/energy1_input", "energy_joules", 1e-6),
        ("device/hwmon/hwmon*/energy2_input", "energy_joules", 1e-6),
        ("device/hwmon/hwmon*/power1_max", "power_limit_watts", 1e-6),
        ("device/hwmon/hwmon*/power2_max", "power_limit_watts", 1e-6),
        ("device/hwmon/hwmon*/temp2_input", "temperature_celsius", 1e-3),
        ("device/hwmon/hwmon*/temp3_input", "memory_temperature_celsius", 1e-3),
    ),
}
REASON_FILES = {
    "i915": ("gt/gt0/throttle_reason_*",),
    "xe": ("device/tile0/gt0/freq0/throttle/reason_*",),
}
# PL1, PL2 and PL4 are limits of power over a long, a short and no time; VR TDC is the current of the regulator.
GROUPS = {
    "pl1": "power",
    "pl2": "power",
    "pl4": "power",
    "vr_tdc": "power",
    "thermal": "heat",
    "prochot": "heat",
    "ratl": "heat",
    "vr_thermalert": "heat",
    "soc_thermal": "heat",
    "soc_avg_thermal": "heat",
    "mem_thermal": "heat",
    "vr_thermal": "heat",
}


class IntelCard:
    """One card of i915 or xe."""

    def __init__(self, folder: str, driver: str) -> None:
        self._files = CardFiles(folder, driver, TABLES[driver])
        self._reasons = Reasons(folder, REASON_FILES[driver], GROUPS)
        self.empty = self._files.empty

    def sample(self) -> dict[str, Any]:
        """Return the values now."""
        found = self._files.sample()
        if not found.get("power_limit_watts", 1):
            del found["power_limit_watts"]  # zero: there is no limit
        return {**found, **self._reasons.sample()}
