"""Have a process that runs compute without end, as a bug in an engine or its driver would: on x86-64 alone.

Its main thread is stopped, two bytes are put where it stands (a jump to itself), and it goes on. The bytes are this
process's own: a page of a program that is written through `/proc/PID/mem` is copied first.
"""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path

from lab import node_processes
from lab.campaign.site import wait_for
from lab.layout import LabError

JUMP_TO_ITSELF = b"\xeb\xfe"
STOP_SECONDS = 20.0


def begin(pid: int) -> None:
    """Have a process's main thread compute without end.

    Raises
    ------
    LabError
        On another kind of processor, or when the process cannot be stopped where it is.
    """
    if platform.machine() != "x86_64":
        raise LabError(f"an endless loop is made of x86-64's instructions, and this is a {platform.machine()}")
    os.kill(pid, signal.SIGSTOP)
    try:
        if wait_for(lambda: _is_stopped(pid), STOP_SECONDS) is None:
            raise LabError(f"process {pid} did not stop in {STOP_SECONDS:.0f} s")
        place = instruction(Path(f"/proc/{pid}/syscall").read_text())
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(place)
            memory.write(JUMP_TO_ITSELF)
    finally:
        os.kill(pid, signal.SIGCONT)


def instruction(text: str) -> int:
    """Return where a thread stands, of its `/proc/PID/syscall`: the last number, whether it is in a call or not.

    Raises
    ------
    LabError
        When the thread runs.
    """
    fields = text.split()
    if len(fields) < 3:
        raise LabError(f"where a thread stands is not known: {text.strip()!r}")
    return int(fields[-1], 16)


def _is_stopped(pid: int) -> bool:
    entry = node_processes.stat(pid)
    if entry is None:
        raise LabError(f"process {pid} has ended")
    return entry.state == node_processes.STOPPED
