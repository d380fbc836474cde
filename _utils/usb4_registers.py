"""
Read and set how long a USB4 host interface holds interrupts back, in the device's own registers.
"""

import ctypes
import mmap
import os

# PCI class of a USB4 host interface, and where its registers hold how long it holds interrupts back: one word for
# each of 16 vectors, in steps of 256 ns (drivers/thunderbolt/nhi_regs.h: REG_INT_THROTTLING_RATE, MSIX_MAX_VECS).
HOST_CLASS = "0x0c0340"
STEP_SECONDS, MOST_STEPS = 256e-9, 0xFFFF
_OFFSET, _VECTORS, _REGISTERS_BYTES = 0x38C00, 16, 0x40000


def interrupt_steps(device: str, steps: int | None = None) -> list[int]:
    """
    Return each vector's steps, after setting them where ``steps`` is given; empty where they cannot be reached.

    device
        the interface's folder below ``/sys/bus/pci/devices``
    steps
        0 (not at all) to ``MOST_STEPS``, each of ``STEP_SECONDS``
    """
    # A device that sleeps answers every read with ones.
    if _status(device) in ("suspended", "suspending"):
        return []
    try:
        descriptor = os.open(f"{device}/resource0", os.O_RDONLY if steps is None else os.O_RDWR | os.O_SYNC)
    except OSError:
        return []
    try:
        protection = mmap.PROT_READ if steps is None else mmap.PROT_READ | mmap.PROT_WRITE
        with mmap.mmap(descriptor, _REGISTERS_BYTES, mmap.MAP_SHARED, protection) as registers:
            words = []
            for vector in range(_VECTORS):
                offset = _OFFSET + 4 * vector
                if steps is not None:
                    # One store of 32 bits, as the device wants it; a slice would be copied byte by byte.
                    word = ctypes.c_uint32.from_buffer(registers, offset)
                    word.value = steps
                    del word
                words.append(int.from_bytes(registers[offset : offset + 4], "little"))
    except (OSError, ValueError):
        return []
    finally:
        os.close(descriptor)
    return [] if all(word == 0xFFFFFFFF for word in words) else [word & MOST_STEPS for word in words]


def _status(device: str) -> str:
    try:
        with open(f"{device}/power/runtime_status", encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
