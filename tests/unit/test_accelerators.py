"""The readers of accelerators over made-up trees and a made-up NVML: recorded from no card.

The trees have the files, names and units that the kernel documents or its drivers create; each reader's module says
where. The NVML here is a stand-in with the names of `nvidia-ml-py`, so what it proves is how its answers are used.
"""

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.tree import write

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import accelerator
import amd_cards
import card_files
import nvidia_cards
import sample_schema

(FIELDS,) = (set(part.fields) for part in sample_schema.PARTS if part.key == "accelerator")


def card(root: Path, driver: str, files: Mapping[str, object], name: str = "card0", kind: str = "drm") -> Path:
    """Make the folder of a device with its driver."""
    folder = root / kind / name
    for path, text in files.items():
        write(folder / path, f"{text}\n")
    (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
    (folder / "device").mkdir(parents=True, exist_ok=True)
    (folder / "device/driver").symlink_to(root / "drivers" / driver)
    return folder


def sample(root: Path, cards: list[str] | None = None) -> dict[str, Any]:
    found = accelerator.Accelerators(str(root), cards, lambda: None).sample() or {}
    for values in found.values():
        assert set(values) <= FIELDS, "every key is in the schema"
    return found


I915 = {
    "gt/gt0/rc6_residency_ms": 1500,
    "gt/gt0/rps_act_freq_mhz": 2100,
    "gt/gt0/rps_RP0_freq_mhz": 2400,
    "device/hwmon/hwmon3/energy1_input": 2500000,
    "device/hwmon/hwmon3/power1_max": 190000000,
    "device/hwmon/hwmon3/temp1_input": 71000,
    "gt/gt0/throttle_reason_status": 1,
    "gt/gt0/throttle_reason_pl1": 1,
    "gt/gt0/throttle_reason_thermal": 0,
    "gt/gt0/throttle_reason_vr_tdc": 1,
}


def test_an_arc_card_at_its_power_limit(tmp_path: Path) -> None:
    card(tmp_path, "i915", I915)
    (tmp_path / "drm/card0-HDMI-A-1").mkdir()
    assert sample(tmp_path) == {
        "card0": {
            "driver": "i915",
            "idle_s": 1.5,
            "frequency_hertz": 2.1e9,
            "frequency_limit_hertz": 2.4e9,
            "energy_joules": 2.5,
            "power_limit_watts": 190.0,
            "temperature_celsius": 71.0,
            "power_throttled": 1,
            "heat_throttled": 0,
            "throttle_reasons": "pl1 vr_tdc",
        }
    }


def test_a_limit_of_zero_is_no_limit_and_a_driver_without_reasons_tells_none(tmp_path: Path) -> None:
    card(tmp_path, "i915", {"gt/gt0/rps_act_freq_mhz": 600, "device/hwmon/hwmon0/power1_max": 0})
    assert sample(tmp_path) == {"card0": {"driver": "i915", "frequency_hertz": 6e8}}


def test_a_card_of_xe_that_is_hot(tmp_path: Path) -> None:
    files = {
        "device/tile0/gt0/gtidle/idle_residency_ms": 200,
        "device/tile0/gt0/freq0/act_freq": 1800,
        "device/tile0/gt0/freq0/rp0_freq": 2850,
        "device/tile0/physical_vram_size_bytes": 12 << 30,
        "device/hwmon/hwmon1/energy2_input": 7000000,
        "device/hwmon/hwmon1/power2_max": 120000000,
        "device/hwmon/hwmon1/temp2_input": 95000,
        "device/hwmon/hwmon1/temp3_input": 88000,
        "device/tile0/gt0/freq0/throttle/status": 1,
        "device/tile0/gt0/freq0/throttle/reason_thermal": 1,
        "device/tile0/gt0/freq0/throttle/reason_pl2": 0,
    }
    card(tmp_path, "xe", files)
    found = sample(tmp_path)["card0"]
    assert (found["energy_joules"], found["power_limit_watts"]) == (7.0, 120.0), "of the package: the card tells none"
    assert (found["temperature_celsius"], found["memory_temperature_celsius"]) == (95.0, 88.0)
    assert (found["frequency_limit_hertz"], found["memory_total_bytes"]) == (2.85e9, 12 << 30)
    assert (found["heat_throttled"], found["power_throttled"], found["throttle_reasons"]) == (1, 0, "thermal")


def test_a_radeon_card(tmp_path: Path) -> None:
    files = {
        "device/gpu_busy_percent": 97,
        "device/mem_busy_percent": 61,
        "device/mem_info_vram_used": 10 << 30,
        "device/mem_info_vram_total": 16 << 30,
        "device/mem_info_gtt_used": 1 << 20,
        "device/hwmon/hwmon5/freq1_input": 2500000000,
        "device/hwmon/hwmon5/freq2_input": 1249000000,
        "device/hwmon/hwmon5/power1_average": 210000000,
        "device/hwmon/hwmon5/power1_cap": 263000000,
        "device/hwmon/hwmon5/temp1_input": 60000,
        "device/hwmon/hwmon5/temp2_input": 81000,
        "device/hwmon/hwmon5/temp3_input": 74000,
        "device/current_link_speed": "8.0 GT/s PCIe",
        "device/current_link_width": 4,
        "device/max_link_speed": "16.0 GT/s PCIe",
        "device/max_link_width": 16,
    }
    card(tmp_path, "amdgpu", files)
    found = sample(tmp_path)["card0"]
    assert (found["busy_ratio"], found["memory_busy_ratio"]) == (0.97, 0.61)
    assert (found["frequency_hertz"], found["memory_frequency_hertz"]) == (2.5e9, 1.249e9)
    assert (found["temperature_celsius"], found["memory_temperature_celsius"]) == (81.0, 74.0)
    assert (found["power_watts"], found["power_limit_watts"]) == (210.0, 263.0)
    assert (found["bus_bytes_per_second"], found["bus_limit_bytes_per_second"]) == (4e9, 32e9)
    assert "power_throttled" not in found, "nothing says so without gpu_metrics"


def metrics(residencies: tuple[int, ...] = (0,) * 7, version: tuple[int, int] = (3, 0)) -> bytes:
    """Return a `gpu_metrics` as struct gpu_metrics_v3_0 lays it out."""
    content = bytearray(264)
    struct.pack_into("<HBB", content, 0, 264, *version)
    struct.pack_into("<H", content, 112, 2500)  # average_ipu_power, mW
    struct.pack_into("<H", content, 180, 1800)  # average_ipuclk_frequency, MHz
    struct.pack_into("<7I", content, 228, *residencies)
    return bytes(content)


def ryzen(root: Path) -> Path:
    """Make the graphics part of a Ryzen AI Max, and its NPU."""
    files = {
        "device/gpu_busy_percent": 50,
        "device/hwmon/hwmon2/power1_input": 55000000,
        "device/pp_dpm_sclk": "0: 600Mhz \n1: 2100Mhz *\n2: 2900Mhz ",
        "device/pp_dpm_mclk": "0: 400Mhz \n1: 800Mhz \n2: 1000Mhz *",
    }
    folder = card(root, "amdgpu", files, "card1")
    (folder / "device/gpu_metrics").write_bytes(metrics())
    card(root, "amdxdna", {"device/power/runtime_suspended_time": 90000}, "accel0", "accel")
    return folder / "device/gpu_metrics"


def test_a_ryzen_ai_max_says_which_limit_grew_since_the_last_reading(tmp_path: Path) -> None:
    path = ryzen(tmp_path)
    found = accelerator.Accelerators(str(tmp_path), None, lambda: None)
    first = found.sample()
    assert first is not None
    assert (first["card1"]["frequency_hertz"], first["card1"]["memory_frequency_hertz"]) == (2.1e9, 1e9)
    assert first["card1"]["power_watts"] == 55.0
    assert "power_throttled" not in first["card1"], "one reading of a counter says nothing"
    path.write_bytes(metrics((0, 12, 0, 7, 0, 0, 0)))
    second = (found.sample() or {})["card1"]
    assert (second["power_throttled"], second["heat_throttled"], second["throttle_reasons"]) == (1, 0, "spl sppt")
    third = (found.sample() or {})["card1"]
    assert (third["power_throttled"], third["throttle_reasons"]) == (0, "")


def test_the_npu_has_its_sleep_of_its_driver_and_its_power_of_the_graphics_part(tmp_path: Path) -> None:
    ryzen(tmp_path)
    assert sample(tmp_path)["accel0"] == {
        "driver": "amdxdna",
        "idle_s": 90.0,
        "power_watts": 2.5,
        "frequency_hertz": 1.8e9,
    }


@pytest.mark.parametrize("content", [b"", metrics()[:40], metrics(version=(1, 3)), metrics(version=(3, 1))])
def test_metrics_of_another_version_are_not_guessed_at(tmp_path: Path, content: bytes) -> None:
    ryzen(tmp_path).write_bytes(content)
    found = amd_cards.Metrics(str(tmp_path / "drm/card1/device/gpu_metrics"))
    assert not found.known
    assert (found.throttling(), found.npu()) == ({}, {})
    assert sample(tmp_path)["accel0"] == {"driver": "amdxdna", "idle_s": 90.0}


def test_files_that_are_empty_or_odd_are_absent(tmp_path: Path) -> None:
    files = {"device/gpu_busy_percent": "", "device/mem_info_vram_used": 1024, "device/pp_dpm_mclk": "busy"}
    card(tmp_path, "amdgpu", files, "card1")
    assert sample(tmp_path) == {"card1": {"driver": "amdgpu", "memory_used_bytes": 1024}}
    assert sample(tmp_path / "absent") == {}
    assert card_files.bus_rate("Unknown", "16") is None and card_files.bus_rate(None, "16") is None


def test_a_display_of_a_server_board_is_no_accelerator(tmp_path: Path) -> None:
    card(tmp_path, "ast", {"device/vendor": "0x1a03"})
    assert sample(tmp_path) == {}


def test_a_node_of_several_on_a_host_reads_its_own_cards(tmp_path: Path) -> None:
    for name in ("card0", "card1"):
        card(tmp_path, "i915", {"gt/gt0/rps_act_freq_mhz": 600}, name)
    assert list(sample(tmp_path, ["card1"])) == ["card1"]


# -- NVML


class FakeError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


NOT_SUPPORTED, LOST = 3, 15


def fake_nvml(cards: int = 1, mask: int = 0, **refused: int) -> Any:
    """Return a stand-in for the module `pynvml`; `refused` gives functions the error they end with."""
    module = ModuleType("fake_pynvml")
    calls: list[str] = []
    answers: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlDeviceGetCount": cards,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=98, memory=74),
        "nvmlDeviceGetClockInfo": {1: 1755, 2: 2619},
        "nvmlDeviceGetMaxClockInfo": {1: 1980, 2: 2619},
        "nvmlDeviceGetTotalEnergyConsumption": 123456,
        "nvmlDeviceGetPowerUsage": 640500,
        "nvmlDeviceGetEnforcedPowerLimit": 700000,
        "nvmlDeviceGetTemperature": 58,
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=70 << 30, total=80 << 30),
        "nvmlDeviceGetCurrentClocksThrottleReasons": mask,
        "nvmlDeviceGetCurrPcieLinkGeneration": 5,
        "nvmlDeviceGetCurrPcieLinkWidth": 16,
        "nvmlDeviceGetMaxPcieLinkGeneration": 5,
        "nvmlDeviceGetMaxPcieLinkWidth": 16,
    }

    def function(name: str, answer: Any) -> Any:
        def ask(*arguments: Any) -> Any:
            calls.append(name)
            if name in refused:
                raise FakeError(refused[name])
            return answer[arguments[1]] if isinstance(answer, dict) else answer

        return ask

    for name, answer in answers.items():
        setattr(module, name, function(name, answer))
    names = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
    for name, number in {
        **names,
        "NVML_ERROR_NOT_SUPPORTED": NOT_SUPPORTED,
        "NVML_ERROR_FUNCTION_NOT_FOUND": 13,
    }.items():
        setattr(module, name, number)
    setattr(module, "NVMLError", FakeError)  # noqa: B010 (a module has no such attribute for the type checker)
    setattr(module, "calls", calls)  # noqa: B010
    return module


def test_an_nvidia_card_at_its_power_cap(tmp_path: Path) -> None:
    found = accelerator.Accelerators(str(tmp_path), None, lambda: fake_nvml(mask=0x4 | 0x1)).sample()
    assert found == {
        "nvidia0": {
            "driver": "nvidia",
            "busy_ratio": 0.98,
            "memory_busy_ratio": 0.74,
            "frequency_hertz": 1.755e9,
            "frequency_limit_hertz": 1.98e9,
            "memory_frequency_hertz": 2.619e9,
            "energy_joules": 123.456,
            "power_watts": 640.5,
            "power_limit_watts": 700.0,
            "temperature_celsius": 58.0,
            "memory_used_bytes": 70 << 30,
            "memory_total_bytes": 80 << 30,
            "power_throttled": 1,
            "heat_throttled": 0,
            "throttle_reasons": "sw_power_cap",
            "bus_bytes_per_second": 64e9,
            "bus_limit_bytes_per_second": 64e9,
        }
    }
    assert set(found["nvidia0"]) <= FIELDS


def test_what_a_card_does_not_support_is_asked_once_and_what_is_lost_is_asked_again() -> None:
    module = fake_nvml(nvmlDeviceGetTotalEnergyConsumption=NOT_SUPPORTED, nvmlDeviceGetPowerUsage=LOST)
    reader = nvidia_cards.nvidia_cards(module)["nvidia0"]
    for _ in range(2):
        found = reader.sample()
        assert "energy_joules" not in found and "power_watts" not in found
        assert found["temperature_celsius"] == 58.0
    assert module.calls.count("nvmlDeviceGetTotalEnergyConsumption") == 1
    assert module.calls.count("nvmlDeviceGetPowerUsage") == 2


def test_without_nvml_or_its_driver_there_are_no_cards(tmp_path: Path) -> None:
    assert nvidia_cards.nvidia_cards(None) == {}
    assert nvidia_cards.nvidia_cards(fake_nvml(nvmlInit=9)) == {}
    assert nvidia_cards.find_module(str(tmp_path)) is None or "pynvml" in sys.modules


def test_the_engines_copy_of_the_module_serves_the_samplers_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As NVML's module does, it asks for itself while it is read.
    text = "import sys\nsys.modules[__name__].NAME = 'the engine has it'\n"
    write(tmp_path / "lib/python3.13/site-packages/pynvml.py", text)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    module = nvidia_cards.find_module(str(tmp_path))
    assert module is not None and module.NAME == "the engine has it"


def test_a_broken_copy_of_the_module_ends_no_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "lib/python3.13/site-packages/pynvml.py", "raise KeyError('pynvml')\n")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_cards.find_module(str(tmp_path)) is None
