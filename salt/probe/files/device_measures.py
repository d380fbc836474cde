"""Measure the device that torch computes on: memory, products by format, launches, copies from and to the host.

One piece of code for the probe of a node, run by the engine's Python, and for `bench/sweep_gpu.py`. A device is
measured on itself or not at all: where torch has none of the kind that was asked for, `NoDeviceError` says so, and
nothing is computed on the host's processor in its place.
"""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

REPEATS = 7
REPEAT_SECONDS = 0.06
HOST = "cpu"
# A product is enlarged until one takes this long, or until this size: larger ones are no faster on any card measured.
LEAST_PRODUCT_SECONDS, LARGEST_PRODUCT = 0.04, 8192
MOST_BYTES = 4 * 10**9
COPY_BYTES = 2**30


class NoDeviceError(Exception):
    """Torch has no device of the kind that was asked for; the text says what it has."""


class Device:
    """The place where torch computes, and how the end of what was queued there is waited for.

    kind
        torch's own name: ``cpu``, ``cuda`` (NVIDIA and AMD), ``xpu``
    """

    def __init__(self, torch: ModuleType, kind: str) -> None:
        self.torch = torch
        self.kind = kind
        self._backend = None if kind == HOST else getattr(torch, kind, None)
        if kind == HOST:
            return
        if self._backend is None or not self._backend.is_available():
            raise NoDeviceError(
                f"torch {torch.__version__} has no device {kind}: its driver or its build for it is missing"
            )

    @property
    def name(self) -> str:
        """The device's own name; empty for the processor, whose name the probe's machine has."""
        return str(self._backend.get_device_name(0)) if self._backend is not None else ""

    def wait(self) -> None:
        """Return when everything that was queued is done."""
        if self._backend is not None:
            self._backend.synchronize()

    def free_bytes(self) -> int:
        """Return the memory that is free to use."""
        if self._backend is None:
            return available_bytes()
        with contextlib.suppress(AttributeError, RuntimeError):
            return int(self._backend.mem_get_info()[0])
        return int(self._backend.get_device_properties(0).total_memory) // 2

    def array_bytes(self) -> int:
        """Return a size that no cache holds and that leaves most of the memory free."""
        if self._backend is None:
            return array_bytes(last_cache_bytes(), available_bytes())
        return min(MOST_BYTES, self.free_bytes() // 4) // 4096 * 4096

    def seconds(self, operation: Callable[[], object], repeats: int, least_seconds: float) -> list[float]:
        """Return seconds of one call, once for each repeat; each begins and ends with an empty queue."""

        def timed(calls: int) -> float:
            self.wait()
            started = time.perf_counter()
            for _ in range(calls):
                operation()
            self.wait()
            return time.perf_counter() - started

        timed(1)
        calls = calls_for(timed(1), least_seconds)
        # One call alone is mostly the way to the device and back; many in a row are not.
        calls = calls_for(timed(calls) / calls, least_seconds)
        return [timed(calls) / calls for _ in range(repeats)]


def measure(device: Device) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the raw repeats of every measure that the device has, and notes on those that it has not."""
    values: dict[str, list[float]] = {
        "memory_read_bytes_per_second": memory_read(device),
        "gemm_bf16_flops_per_second": products(device, "bf16"),
        "kernel_dispatch_seconds": launches(device),
    }
    notes: dict[str, str] = {}
    if device.kind == HOST:
        values["gemm_f32_flops_per_second"] = products(device, "f32")
        return values, notes
    values["memory_copy_bytes_per_second"] = memory_copy(device)
    for form in ("fp8", "int8"):
        try:
            values[f"gemm_{form}_flops_per_second"] = products(device, form)
        except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
            notes[f"gemm_{form}"] = f"not there: {str(error).splitlines()[0][:160] if str(error) else repr(error)}"
    values["host_to_device_bytes_per_second"], values["device_to_host_bytes_per_second"] = host_copies(device)
    return values, notes


def memory_read(
    device: Device, size: int | None = None, repeats: int = REPEATS, least_seconds: float = REPEAT_SECONDS
) -> list[float]:
    """Return bytes per second that a sum reads from memory the caches cannot hold."""
    size = (size or device.array_bytes()) // 4 * 4
    # Random numbers: equal ones are faster on cards that compress. A processor does not, and takes long to make them.
    make = "ones" if device.kind == HOST else "randn"
    with _placed(device, lambda torch, where: getattr(torch, make)(size // 4, device=where)) as array:
        return [size / seconds for seconds in device.seconds(array.sum, repeats, least_seconds)]


def memory_copy(
    device: Device, size: int | None = None, repeats: int = REPEATS, least_seconds: float = REPEAT_SECONDS
) -> list[float]:
    """Return bytes per second, read and written together, of a copy inside the device's memory."""
    size = size or device.array_bytes()
    with _placed(
        device, lambda torch, where: torch.randint(0, 255, (size,), dtype=torch.uint8, device=where)
    ) as source:
        target = device.torch.empty_like(source)
        found = device.seconds(lambda: target.copy_(source), repeats, least_seconds)
    return [2 * size / seconds for seconds in found]


def products(
    device: Device,
    form: str,
    width: int | None = None,
    repeats: int = REPEATS,
    least_seconds: float = REPEAT_SECONDS,
) -> list[float]:
    """Return operations per second of square products in a format: ``bf16``, ``f32``, ``fp8`` or ``int8``."""
    if width is None:
        width, seconds = 128, 0.0
        while seconds < LEAST_PRODUCT_SECONDS and width < LARGEST_PRODUCT:
            width *= 2
            (seconds,) = device.seconds(product(device, form, width), 1, 0.0)
    operation = product(device, form, width)
    return [2 * width**3 / seconds for seconds in device.seconds(operation, repeats, least_seconds)]


def product(device: Device, form: str, width: int) -> Callable[[], object]:
    """Return one square product in a format.

    Raises an error of torch's own where the device or the build has no such product.
    """
    torch, where = device.torch, device.kind
    left, right = (torch.randn(width, width, device=where) for _ in range(2))
    if form in ("bf16", "f32"):
        dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[form]
        left, right = left.to(dtype), right.to(dtype)
        out = torch.empty(width, width, dtype=dtype, device=where)
        return functools.partial(torch.mm, left, right, out=out)
    if form == "int8":
        left, right = ((each * 40).clamp(-127, 127).to(torch.int8) for each in (left, right))
        return functools.partial(torch._int_mm, left, right)
    if form == "fp8":
        # The right side column by column, as the library wants it; one scale a side.
        left, right = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).t().contiguous().t()
        one = torch.ones((), device=where)
        return functools.partial(torch._scaled_mm, left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    raise ValueError(f"format {form!r}; expected bf16, f32, fp8 or int8")


def launches(device: Device, repeats: int = REPEATS, least_seconds: float = REPEAT_SECONDS) -> list[float]:
    """Return seconds of an operation with next to nothing to compute, queued one after another."""
    one = device.torch.ones(1, device=device.kind)
    return device.seconds(lambda: device.torch.add(one, one, out=one), repeats, least_seconds)


def host_copies(
    device: Device, size: int | None = None, repeats: int = REPEATS, least_seconds: float = REPEAT_SECONDS
) -> tuple[list[float], list[float]]:
    """Return bytes per second to the device and back, from host memory that stays where it is."""
    size = size or min(COPY_BYTES, device.free_bytes() // 4, available_bytes() // 8)
    host = device.torch.empty(size, dtype=device.torch.uint8).pin_memory()
    with _placed(device, lambda torch, where: torch.empty(size, dtype=torch.uint8, device=where)) as placed:
        there = device.seconds(lambda: placed.copy_(host, non_blocking=True), repeats, least_seconds)
        back = device.seconds(lambda: host.copy_(placed, non_blocking=True), repeats, least_seconds)
    return [size / seconds for seconds in there], [size / seconds for seconds in back]


@contextlib.contextmanager
def _placed(device: Device, make: Callable[[Any, str], Any]) -> Iterator[Any]:
    """Hold a large array, and give its memory back: the next measure needs its own."""
    holder = [make(device.torch, device.kind)]
    try:
        yield holder[0]
    finally:
        holder.clear()


def calls_for(seconds: float, least_seconds: float) -> int:
    """Return how many calls of this length make a repeat of the least length."""
    return max(1, math.ceil(least_seconds / max(seconds, 1e-9)))


def array_bytes(cache_bytes: int, free_bytes: int) -> int:
    """Return a size several times the last cache, at least 256 MiB, at most a quarter of what is free."""
    return min(max(256 * 2**20, 4 * cache_bytes), 4 * 2**30, max(64 * 2**20, free_bytes // 4)) // 64 * 64


def last_cache_bytes(root: str = "/sys/devices/system/cpu/cpu0/cache") -> int:
    """Return the size of the largest cache of a core, 0 when the kernel does not list them."""
    sizes = [0]
    if os.path.isdir(root):
        for index in os.listdir(root):
            with contextlib.suppress(OSError, ValueError, KeyError):
                with open(os.path.join(root, index, "size"), encoding="ascii") as file:
                    text = file.read().strip()
                sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return max(sizes)


def available_bytes() -> int:
    """Return the host's memory that is free to use without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        found = next(line for line in file if line.startswith("MemAvailable:"))
    return int(found.split()[1]) * 1024
