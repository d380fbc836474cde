"""Keep the readings of the batch that is not full yet in a file, so that a sampler that is killed loses none of them.

What was read is written as it is, one write a sample and no fsync: the kernel has it, whatever becomes of this
process. A reboot loses it: at most one batch. Of a worker's counters, which only grow, there is no copy: their next
reading is the next life's.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

SUFFIX = ".open"
_NAME = re.compile(r"(?P<boot>[\w-]{1,100})\.(?P<sequence>\d{12})\.open")
MOST_READING_BYTES = 4 * 2**20


class KeptReading(NamedTuple):
    """One reading: when, since the kernel's boot too, what changes slowly, and what the sources gave by name."""

    now: float
    uptime: float
    slow: dict[str, Any]
    texts: dict[str, Any]


class OpenBatch:
    """The file of the batch that is being taken; a disk that takes nothing ends nothing.

    ``sequence`` gives the number that the batch will have, ``discard`` has a file removed once the batch is kept
    elsewhere.
    """

    def __init__(self, directory: str, boot: str, sequence: Callable[[], int], discard: Callable[[str], None]) -> None:
        self._directory, self._boot = directory, boot
        self._sequence, self._discard = sequence, discard
        self._file: BinaryIO | None = None
        self._path = ""
        self._failed = False

    def add(self, reading: KeptReading) -> None:
        """Keep one reading."""
        try:
            if self._file is None:
                self._path = os.path.join(self._directory, f"{self._boot}.{self._sequence():012d}{SUFFIX}")
                self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115 (open until the batch ends)
            self._file.write(packed(reading))
        except OSError as error:
            self._close()
            if not self._failed:
                self._failed = True
                print(f"sampler: the last second is kept in memory alone: {error}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Have what is kept here removed: the batch is where batches are kept."""
        if self._path:
            self._discard(self._path)
        self._close()
        self._path = ""

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def packed(reading: KeptReading) -> bytes:
    """Return a reading for the file: a line that says what follows, then the texts as they were read."""
    raw: list[bytes] = []
    names: list[tuple[str, Any]] = []
    for name, text in reading.texts.items():
        if isinstance(text, str):
            raw.append(text.encode("utf-8", "replace"))
            names.append((name, len(raw[-1])))
        else:
            names.append((name, [text]))
    head = json.dumps([reading.now, reading.uptime, reading.slow, names], separators=(",", ":"))
    return b"".join([head.encode(), b"\n", *raw, b"\n"])


def read(path: str) -> Iterator[KeptReading]:
    """Yield the readings of a file, up to where a kill has cut it."""
    with open(path, "rb") as file:
        while (line := file.readline(MOST_READING_BYTES)).endswith(b"\n"):
            try:
                now, uptime, slow, names = json.loads(line)
                texts: dict[str, Any] = {}
                for name, what in names:
                    if isinstance(what, list):
                        (texts[name],) = what
                        continue
                    content = file.read(min(what, MOST_READING_BYTES))
                    if len(content) != what:
                        return
                    texts[name] = content.decode("utf-8", "replace")
                reading = KeptReading(float(now), float(uptime), dict(slow), texts)
            except (ValueError, TypeError):
                return
            if file.read(1) != b"\n":
                return
            yield reading


def leftovers(directory: str) -> Iterator[tuple[str, str, int, list[KeptReading]]]:
    """Yield path, boot, number and readings of each batch that a former life had not ended."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            found = _NAME.fullmatch(name)
            if found is None:
                continue
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                yield path, found["boot"], int(found["sequence"]), list(read(path))


def batch_of(node: str, readings: list[KeptReading], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the batch that a former life had not ended."""
    return {
        "node": node,
        "t0": samples[0]["t"],
        "t1": samples[-1]["t"],
        "samples": samples,
        "engine": None,
        "sampler": {"ended_s": readings[-1].uptime},
    }
