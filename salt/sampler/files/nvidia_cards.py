"""Read NVIDIA cards by NVML, where its Python module (`nvidia-ml-py`) is: in the sampler's Python or in the engine's.

Names and units: the NVML API reference. `nvmlDeviceGetPcieThroughput` is left alone: it measures over 20 ms, in which
it does not return.
"""

import glob
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from card_files import throttled

ENGINE_DIRECTORY = "/opt/cluster/engine"
# Bits of the clocks' event reasons, from nvml.h. A clock that is low since nothing runs, or that was asked for, is not
# throttled.
REASONS = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
    0x200: "board_limit",
    0x400: "reliability",
}
GROUPS = {
    "sw_power_cap": "power",
    "hw_power_brake": "power",
    "board_limit": "power",
    "sw_thermal_slowdown": "heat",
    "hw_thermal_slowdown": "heat",
}
# Bytes per second of a lane by PCIe generation: transfers of the specifications, before their coding.
LANE_RATES = {1: 2.5e9 / 8, 2: 5e9 / 8, 3: 8e9 / 8, 4: 16e9 / 8, 5: 32e9 / 8, 6: 64e9 / 8}


def find_module(engine_directory: str = ENGINE_DIRECTORY) -> ModuleType | None:
    """Return NVML's Python module, or None where there is none."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        pass
    # It is one file of plain Python, so the engine's copy serves another Python as well.
    for path in sorted(glob.glob(os.path.join(engine_directory, "lib/python3*/site-packages/pynvml.py"))):
        specification = importlib.util.spec_from_file_location("pynvml", path)
        if specification is not None and specification.loader is not None:
            module = importlib.util.module_from_spec(specification)
            # It looks itself up there while it is being read.
            sys.modules["pynvml"] = module
            try:
                specification.loader.exec_module(module)
            except Exception:
                # Whatever is wrong with a copy of somebody's: a node without its cards' samples has the others.
                del sys.modules["pynvml"]
                traceback.print_exc()
                continue
            return module
    return None


def nvidia_cards(module: ModuleType | None) -> dict[str, "NvidiaCard"]:
    """Return the cards by name (`nvidia0`, ...); none without the module, the driver, or a card."""
    if module is None:
        return {}
    try:
        module.nvmlInit()
        count = module.nvmlDeviceGetCount()
    except (module.NVMLError, OSError):
        return {}
    found = {}
    for index in range(count):
        try:
            found[f"nvidia{index}"] = NvidiaCard(module, module.nvmlDeviceGetHandleByIndex(index))
        except module.NVMLError:
            continue
    return found


class NvidiaCard:
    """One card of NVML; what it refuses the first time is not asked again."""

    empty = False

    def __init__(self, module: ModuleType, handle: object) -> None:
        self._nvml = module
        self._handle = handle
        self._asked: list[Callable[[], dict[str, Any]]] = [
            self._use,
            self._clocks,
            self._energy,
            self._power,
            self._limit,
            self._heat,
            self._memory,
            self._reasons,
            self._bus,
        ]

    def sample(self) -> dict[str, Any]:
        """Return the values now."""
        found: dict[str, Any] = {"driver": "nvidia"}
        for ask in list(self._asked):
            try:
                found.update(ask())
            except self._nvml.NVMLError as error:
                # A card that is lost for a moment is asked again; one that cannot tell is not.
                if error.value in (self._nvml.NVML_ERROR_NOT_SUPPORTED, self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                    self._asked.remove(ask)
            except AttributeError:  # a module older than the function
                self._asked.remove(ask)
        return found

    def _use(self) -> dict[str, Any]:
        rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
        return {"busy_ratio": rates.gpu / 100, "memory_busy_ratio": rates.memory / 100}

    def _clocks(self) -> dict[str, Any]:
        clock, most = self._nvml.nvmlDeviceGetClockInfo, self._nvml.nvmlDeviceGetMaxClockInfo
        return {
            "frequency_hertz": clock(self._handle, self._nvml.NVML_CLOCK_SM) * 1e6,
            "memory_frequency_hertz": clock(self._handle, self._nvml.NVML_CLOCK_MEM) * 1e6,
            "frequency_limit_hertz": most(self._handle, self._nvml.NVML_CLOCK_SM) * 1e6,
        }

    def _energy(self) -> dict[str, Any]:
        return {"energy_joules": self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3}

    def _power(self) -> dict[str, Any]:
        return {"power_watts": self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3}

    def _limit(self) -> dict[str, Any]:
        return {"power_limit_watts": self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1e3}

    def _heat(self) -> dict[str, Any]:
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        return {"temperature_celsius": float(self._nvml.nvmlDeviceGetTemperature(self._handle, sensor))}

    def _memory(self) -> dict[str, Any]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return {"memory_used_bytes": memory.used, "memory_total_bytes": memory.total}

    def _reasons(self) -> dict[str, Any]:
        # The newer name came with driver 535; the older stays.
        mask = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        return throttled((name for bit, name in REASONS.items() if mask & bit), GROUPS)

    def _bus(self) -> dict[str, Any]:
        found = {}
        for key, generation, lanes in (
            (
                "bus_bytes_per_second",
                self._nvml.nvmlDeviceGetCurrPcieLinkGeneration,
                self._nvml.nvmlDeviceGetCurrPcieLinkWidth,
            ),
            (
                "bus_limit_bytes_per_second",
                self._nvml.nvmlDeviceGetMaxPcieLinkGeneration,
                self._nvml.nvmlDeviceGetMaxPcieLinkWidth,
            ),
        ):
            rate = LANE_RATES.get(generation(self._handle))
            if rate:
                found[key] = rate * lanes(self._handle)
        return found
