"""Compute on the node's accelerator for a share of the time, as another person's program would.

A program of its own, run by the engine's Python (torch) until it is ended. Every period it has products of matrices
running for its share of it, one after another, and then none: the accelerator's clock, power limit and mode are left
alone.

    foreign_kernels.py SHARE DEVICE READY_FILE

DEVICE is torch's name: cuda (the card that CUDA_VISIBLE_DEVICES shows), cpu. READY_FILE is written when it has begun.
"""

import os
import sys
import time
from collections.abc import Callable
from types import ModuleType

PERIOD_SECONDS = 0.02
# A product of this size takes well under a period, so that a share is kept to.
SIZES = {"cuda": 4096, "cpu": 256}


def product(torch: ModuleType, device: str) -> Callable[[], None]:
    """Return what multiplies two matrices on the device and waits until that is done."""
    size = SIZES.get(device, SIZES["cuda"])
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    left = torch.ones((size, size), dtype=kind, device=device)
    result = torch.empty_like(left)
    wait = (lambda: None) if device == "cpu" else getattr(torch, device).synchronize

    def multiply() -> None:
        torch.mm(left, left, out=result)
        wait()

    return multiply


def busy(
    multiply: Callable[[], None],
    share: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Compute for a share of one period, then pause for the rest of it."""
    began = clock()
    while clock() - began < share * PERIOD_SECONDS:
        multiply()
    sleep(max(0.0, began + PERIOD_SECONDS - clock()))


def main(share: float, device: str, ready: str) -> None:
    """Compute until ended."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    with torch.inference_mode():
        multiply = product(torch, device)
        multiply()
        with open(ready, "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))
        while True:
            busy(multiply, share)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3])
