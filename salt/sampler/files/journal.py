"""Keep batches on disk as well, so that they outlive the sampler: a kill, an update, a reboot, a power cut.

One file for each sending, of records with a checksum. A file goes when everything in it was acknowledged or given up.
All disk work is done in a thread of its own: a disk that stalls under the node's load delays no sample. A disk that
takes nothing is said once in a while and ends nothing: what is in memory is still sent.
"""

import os
import queue
import re
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

# What survives a reboot where there is a disk of that label; and where there is not (see doc/reference/images.md).
DISK = "/var/cache/cluster/layers"
SUFFIX = ".batches"
_NAME = re.compile(r"(?P<boot>[\w-]{1,100})\.(?P<first>\d{12})\.batches")
# Number of the batch, length of its text, checksum of the text.
_HEADER = struct.Struct("<QII")
MOST_BATCH_BYTES = 64 * 2**20
COMPLAIN_SECONDS = 60.0


class Left(NamedTuple):
    """A batch that a former life left."""

    boot: str
    sequence: int
    packed: bytes


class _Segment(NamedTuple):
    boot: str
    last: int
    path: str


def place(directory: str, disk: str = DISK) -> str:
    """Return where the journal is kept: on the node's own disk where it has one, else below ``directory``."""
    return os.path.join(disk if os.path.ismount(disk) else directory, "spool")


def read(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield (sequence, packed batch) of a file, up to where a crash has torn it."""
    with open(path, "rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            sequence, length, checksum = _HEADER.unpack(header)
            if length > MOST_BATCH_BYTES:
                return
            packed = file.read(length)
            if len(packed) != length or zlib.crc32(packed) != checksum:
                return
            yield sequence, packed


class Journal:
    """The files; not safe for threads: `Writer` is what others use."""

    def __init__(self, directory: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = directory
        self._clock = clock
        self._complained: float | None = None
        self._segments: list[_Segment] = []
        self._file: BinaryIO | None = None
        self._open: _Segment | None = None
        self.failures = 0

    def leftovers(self) -> list[Left]:
        """Return what former lives left, each life's in order, the oldest life first; take its files over."""
        found: list[Left] = []
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            with os.scandir(self.directory) as entries:
                # By age, not by name: a boot's name is no order.
                paths = sorted((entry.stat().st_mtime_ns, entry.name) for entry in entries)
        except OSError as error:
            self._failed(error)
            return []
        for _, name in paths:
            path, parts = os.path.join(self.directory, name), _NAME.fullmatch(name)
            if parts is None:
                continue
            try:
                batches = list(read(path))
                if not batches:
                    os.unlink(path)
                    continue
            except OSError as error:
                self._failed(error)
                continue
            found += [Left(parts["boot"], sequence, packed) for sequence, packed in batches]
            self._segments.append(_Segment(parts["boot"], batches[-1][0], path))
        return found

    def append(self, boot: str, sequence: int, packed: bytes) -> None:
        """Write a batch; it outlives this process from now on, and the machine from `synchronise` on."""
        try:
            if self._file is None or self._open is None:
                path = os.path.join(self.directory, f"{boot}.{sequence:012d}{SUFFIX}")
                os.makedirs(self.directory, mode=0o700, exist_ok=True)
                self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (open until the next sending)
                self._open = _Segment(boot, sequence, path)
            record = _HEADER.pack(sequence, len(packed), zlib.crc32(packed)) + packed
            if self._file.write(record) != len(record):
                raise OSError(28, "the disk took only a part of a batch", self._open.path)
            self._open = self._open._replace(last=sequence)
        except OSError as error:
            # What comes after a torn record would not be read: a new file begins with the next batch.
            self._failed(error)
            self._close()

    def synchronise(self) -> None:
        """Wait until the storage has what was written; what comes next is another file."""
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._failed(error)
        self._close()

    def forget(self, oldest: dict[str, int]) -> None:
        """Remove the files in which nothing is kept any more: ``oldest`` is the lowest number kept of each boot."""
        kept = []
        for segment in self._segments:
            if segment.last >= oldest.get(segment.boot, segment.last + 1):
                kept.append(segment)
                continue
            try:
                os.unlink(segment.path)
            except FileNotFoundError:
                pass
            except OSError as error:
                self._failed(error)
                kept.append(segment)
        self._segments = kept

    def discard(self, path: str) -> None:
        """Remove a file whose batch was appended before."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._failed(error)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._open is not None:
            self._segments.append(self._open)
        self._file = self._open = None

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        now = self._clock()
        if self._complained is None or now - self._complained >= COMPLAIN_SECONDS:
            self._complained = now
            print(
                f"sampler: batches are kept in memory alone, {self.directory} takes none: {error}",
                file=sys.stderr,
                flush=True,
            )


class Writer(threading.Thread):
    """Does the journal's work, in the order in which it was asked for."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(name="journal", daemon=True)
        self._journal = journal
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    @property
    def failures(self) -> int:
        """Count of the times that the disk took nothing."""
        return self._journal.failures

    def append(self, boot: str, sequence: int, packed: bytes) -> None:
        """Have a batch written."""
        self._work.put(lambda: self._journal.append(boot, sequence, packed))

    def synchronise(self) -> None:
        """Have the storage keep what was written."""
        self._work.put(self._journal.synchronise)

    def forget(self, oldest: dict[str, int]) -> None:
        """Have the files removed in which nothing is kept any more."""
        self._work.put(lambda: self._journal.forget(oldest))

    def discard(self, path: str) -> None:
        """Have a file removed, after what was asked for before."""
        self._work.put(lambda: self._journal.discard(path))

    def end(self) -> None:
        """Do what was asked for, then end."""
        self._work.put(self._journal.synchronise)
        self._work.put(None)

    def run(self) -> None:
        """Work until the end."""
        while (task := self._work.get()) is not None:
            task()
