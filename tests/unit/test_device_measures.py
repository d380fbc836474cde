"""Measures on a device, on a made-up torch that notes where it was asked to compute; no card was there."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "probe" / "files"))

import device_measures
import engine_bench
from device_measures import Device, NoDeviceError


class Tensor:
    """Answers everything with itself, as far as the measures ask."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **keywords: self

    def __mul__(self, other: object) -> "Tensor":
        return self


class FakeTorch(ModuleType):
    """A made-up torch with a device `card`; `placed` is where its arrays went, `done` what was done in which order."""

    __version__ = "9.9+fake"
    bfloat16, float32, uint8, int8, float8_e4m3fn = "bf16", "f32", "u8", "i8", "f8"

    def __init__(self, available: bool = True, fp8: bool = False) -> None:
        super().__init__("torch")
        self.placed: list[str | None] = []
        self.done: list[str] = []
        self._fp8 = fp8
        self.card = SimpleNamespace(
            is_available=lambda: available,
            synchronize=lambda: self.done.append("wait"),
            get_device_name=lambda index: "Made-up card",
            mem_get_info=lambda: (8 * 2**30, 16 * 2**30),
        )

    def _array(self, *size: Any, device: str | None = None, dtype: Any = None) -> Tensor:
        self.placed.append(device)
        return Tensor()

    ones = randn = empty = _array

    def randint(self, low: int, high: int, size: Any, device: str | None = None, dtype: Any = None) -> Tensor:
        return self._array(device=device)

    def empty_like(self, other: Tensor) -> Tensor:
        return other

    def mm(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        self.done.append("mm")

    def add(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        self.done.append("add")

    def _int_mm(self, left: Tensor, right: Tensor) -> None:
        self.done.append("int_mm")

    def _scaled_mm(self, *arguments: Any, **keywords: Any) -> None:
        if not self._fp8:
            raise RuntimeError("torch._scaled_mm is only supported on newer cards\nwith a trace")
        self.done.append("fp8")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing takes time here, so nothing has to be called often."""
    monkeypatch.setattr(device_measures, "calls_for", lambda seconds, least: 2)
    monkeypatch.setattr(device_measures, "available_bytes", lambda: 2**30)


def test_everything_is_on_the_device_but_the_hosts_side_of_the_copies() -> None:
    torch = FakeTorch()
    device = Device(torch, "card")
    values, notes = device_measures.measure(device)
    assert set(torch.placed) == {"card", None}
    assert torch.placed.count(None) == 1, "the pinned buffer of the host, and nothing else"
    assert set(values) == {
        "memory_read_bytes_per_second",
        "memory_copy_bytes_per_second",
        "gemm_bf16_flops_per_second",
        "gemm_int8_flops_per_second",
        "kernel_dispatch_seconds",
        "host_to_device_bytes_per_second",
        "device_to_host_bytes_per_second",
    }
    assert notes == {"gemm_fp8": "not there: torch._scaled_mm is only supported on newer cards"}
    assert all(len(repeats) == device_measures.REPEATS for repeats in values.values())
    assert device.name == "Made-up card"


def test_a_format_is_measured_where_it_is_there() -> None:
    values, notes = device_measures.measure(Device(FakeTorch(fp8=True), "card"))
    assert "gemm_fp8_flops_per_second" in values and notes == {}


def test_a_repeat_begins_and_ends_with_nothing_in_the_queue() -> None:
    torch = FakeTorch()
    device_measures.launches(Device(torch, "card"), repeats=1)
    assert torch.done[-4:] == ["wait", "add", "add", "wait"]


@pytest.mark.parametrize("kind", ["xpu", "card"])
def test_without_the_device_nothing_is_measured_in_its_place(kind: str) -> None:
    torch = FakeTorch(available=False)
    with pytest.raises(NoDeviceError, match=rf"torch 9\.9\+fake has no device {kind}"):
        Device(torch, kind)
    assert torch.placed == []


def test_arrays_leave_most_of_the_devices_memory_free() -> None:
    assert Device(FakeTorch(), "card").array_bytes() == 2 * 2**30
    torch = FakeTorch()
    torch.card.mem_get_info = lambda: (80 * 2**30, 80 * 2**30)
    assert Device(torch, "card").array_bytes() == 4 * 10**9 // 4096 * 4096


# -- the engine's own bench


def bench(**changes: Any) -> str:
    """Return what `llama-bench -o json -p 512 -n 128` prints, as its source has the fields; the numbers are made up."""
    common = {
        "build_commit": "abc1234",
        "cpu_info": "A processor",
        "gpu_info": "Intel(R) Arc(tm) A770 Graphics (DG2)",
        "backends": "Vulkan",
        "model_type": "llama 8B Q4_0",
        "model_size": 4_000_000_000,
        "model_n_params": 8_000_000_000,
        "n_gpu_layers": 99,
    }
    prompt = {**common, "n_prompt": 512, "n_gen": 0, "samples_ts": [500.0, 510.0]}
    tokens = {**common, "n_prompt": 0, "n_gen": 128, "samples_ts": [40.0, 41.0]}
    return json.dumps([{**prompt, **changes}, {**tokens, **changes}])


def test_the_engines_bench_gives_what_it_reaches() -> None:
    found = engine_bench.read(bench())
    assert found["values"]["memory_read_bytes_per_second"] == [1.6e11, 1.64e11]
    assert found["values"]["engine_prompt_flops_per_second"] == [8e12, 8.16e12]
    assert found["device"]["kind"] == "engine" and "A770" in found["device"]["name"]
    assert "what the engine reaches" in found["notes"]["measured_by"]


@pytest.mark.parametrize(
    "changes",
    [
        {"backends": "CPU"},
        {"backends": "BLAS,RPC"},
        {"backends": "Vulkan", "n_gpu_layers": 0},
        {"gpu_info": "llvmpipe (LLVM 21.1.8, 256 bits)"},
    ],
)
def test_a_bench_on_the_processor_is_no_measure_of_the_card(changes: dict[str, Any]) -> None:
    with pytest.raises(engine_bench.NotMeasuredError, match="this is the host's processor"):
        engine_bench.read(bench(**changes))
    assert engine_bench.read(bench(**changes), host=True)["device"]["kind"] == "host"


def test_a_real_bench_of_debians_llama_cpp_on_a_processor_is_read() -> None:
    """Recorded here from llama-bench of llama.cpp-tools 0.7.0, with the synthetic model of 107 M parameters in Q4_0."""
    text = (Path(__file__).parents[1] / "data/bench/llama_bench_cpu.json").read_text()
    found = engine_bench.read(text, host=True)
    assert found["device"]["name"] == "Intel(R) Xeon(R) Processor"
    assert found["values"]["memory_read_bytes_per_second"] == pytest.approx([2.314e9, 2.421e9, 2.539e9], rel=1e-3)
    assert all(1e10 < rate < 1e11 for rate in found["values"]["engine_prompt_flops_per_second"])
    with pytest.raises(engine_bench.NotMeasuredError, match="CPU alone"):
        engine_bench.read(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"backends": "Vulkan"}]', "ggml_vulkan: no devices"])
def test_what_is_no_result_is_said_so(text: str) -> None:
    with pytest.raises(engine_bench.NotMeasuredError, match="no result of llama-bench"):
        engine_bench.read(text)


@pytest.mark.starts_programs
def test_a_bench_that_ends_badly_says_its_last_line(tmp_path: Path) -> None:
    program = tmp_path / "bench"
    program.write_text("#!/bin/sh\necho loading >&2\necho 'no such model' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(engine_bench.NotMeasuredError, match="ended with status 3: no such model"):
        engine_bench.run([str(program)], {}, 10)
    with pytest.raises(engine_bench.NotMeasuredError, match="missing"):
        engine_bench.run([str(tmp_path / "missing")], {}, 10)
