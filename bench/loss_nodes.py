"""Run on a node of the bench of lost telemetry: the sampler with numbered samples, and plain events beside it.

Run by `bench/telemetry_loss.py`, as ``loss_nodes.py sampler CONFIG NUMBERS`` or ``plain CONFIG NUMBERS RATE``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import runpy
import struct
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
CLOCK = "CLUSTER_LOSS_CLOCK"
PLAIN_TAG = "bench/plain/"


def believe_the_bench() -> None:
    """Have this process take the bench's word for how far its clock is set; the machine's own is everybody's."""
    with Path(os.environ[CLOCK]).open("rb") as file:
        offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    real = time.time
    time.time = lambda: real() + struct.unpack_from("<d", offset)[0]


def sampler(config: str, numbers: str) -> None:
    """Run the sampler as it is, with a number in every sample that is written down the moment it is taken."""
    believe_the_bench()
    folder = REPOSITORY / "salt" / "sampler" / "files"
    sys.path.insert(0, str(folder))
    import machine

    taken = open(numbers, "ab", buffering=0)  # noqa: PTH123, SIM115 (open for as long as this lives)

    class Numbered(machine.Machine):
        def read(self, now: float, complete: bool) -> Any:
            number = time.monotonic_ns()
            taken.write(struct.pack("<q", number))
            moment, slow, *rest = super().read(now, complete)
            return moment, {**slow, "n": number}, *rest

    machine.Machine = Numbered  # type: ignore[misc]
    sys.argv = [str(folder / "sampler.py"), config]
    runpy.run_path(sys.argv[0], run_name="__main__")


def plain(config: str, numbers: str, rate: int) -> None:
    """Fire one event a second with the numbers of that second's samples, as `event.send` does, and keep those sent."""
    import salt.config
    import salt.utils.event

    options = salt.config.minion_config(str(Path(config) / "minion"))
    with Path(numbers).open("ab", buffering=0) as sent:
        while True:
            time.sleep(1.0 - time.monotonic() % 1.0)
            found = [time.monotonic_ns() + each for each in range(rate)]
            with contextlib.suppress(Exception), salt.utils.event.MinionEvent(options, listen=False) as bus:
                if bus.fire_master({"n": found}, PLAIN_TAG + options["id"]):
                    sent.write(struct.pack(f"<{rate}q", *found))


if __name__ == "__main__":
    if sys.argv[1] == "sampler":
        sampler(*sys.argv[2:4])
    else:
        plain(sys.argv[2], sys.argv[3], int(sys.argv[4]))
