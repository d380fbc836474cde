"""Take one sample of this node: every source in one place."""

import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import readers
from accelerator import Accelerators
from cgroup import Limits
from memory_bandwidth import MemoryBandwidth
from open_batch import KeptReading
from readers import Handle
from thermal_numa import ThermalNuma
from workers import Reading as WorkerReading
from workers import Workers

# A short stall on memory or disk still shows in a second's total; that of the cores is wanted beside each sample.
FAST_PRESSURE, SLOW_PRESSURES = "cpu", ("memory", "io")
FAULTS = (OSError, ValueError, IndexError, KeyError)

Sample = dict[str, Any]
# Name in a sample, what reads it, and what makes values of what was read.
Source = tuple[str, Callable[[], Any], Callable[[Any], Any]]
# When it was taken, what changes slowly, the sources read and what they gave, and the workers'.
Reading = tuple[float, Sample, tuple[Source, ...], list[Any], list[WorkerReading]]


class Machine:
    """Reads the node; a source that the machine does not have is left out of every sample.

    ``links`` maps a link's name to its interfaces: one, or on a full mesh one for each cable. ``cards`` names the
    accelerators that are this node's, where several nodes are on one host.
    """

    def __init__(
        self, links: Mapping[str, Iterable[str]], supervise_directory: str, cards: Collection[str] | None = None
    ) -> None:
        self._stat = Handle("/proc/stat")
        self._fast_pressure = Handle(f"/proc/pressure/{FAST_PRESSURE}")
        self._slow_pressure = [(name, Handle(f"/proc/pressure/{name}")) for name in SLOW_PRESSURES]
        self._network = Handle("/proc/self/net/dev")
        self._interfaces = {interface: link for link, interfaces in links.items() for interface in interfaces}
        self._memory = Handle("/proc/meminfo")
        self._diskstats = Handle("/proc/diskstats")
        self._disks = readers.whole_disks()
        self._bandwidth = MemoryBandwidth()
        self._accelerators = Accelerators(cards=cards)
        self._thermal_numa = ThermalNuma()
        self._workers = Workers(supervise_directory)
        self._limits = Limits.of()
        self._limited: int | str = "self"
        self._cores: set[str] = set()
        self._fast: tuple[Source, ...] = (
            ("cpu", self._stat.read, lambda text: readers.cores(text, self._cores)),
            ("psi", self._fast_pressure.read, lambda text: {FAST_PRESSURE: readers.pressure(text)}),
            ("links", self._network.read, lambda text: readers.links(text, self._interfaces)),
            ("membw", self._bandwidth.sample, dict),
            ("cgroup", lambda: self._limits.sample(), dict),
        )
        self._slow: list[Callable[[Sample], None]] = [
            self._other_pressure,
            self._mem,
            self._disk,
            self._accelerator,
            self._thermal,
        ]

    def read(self, now: float, complete: bool) -> Reading:
        """Read every source, for `parse`; a ``complete`` reading, once a batch, also holds what changes slowly.

        Between two readings the engine has the processor and its caches, so each step here runs cold. Parsing a
        batch's readings together took a sixth off all that the sampler uses beside a busy engine.
        """
        slow: Sample = {}
        if complete:
            self._look_around(now)
            self._run(self._slow, slow)
        return now, slow, self._fast, self._texts(), self._workers.read(complete, now)

    def _texts(self) -> list[Any]:
        try:
            return [read() for _, read, _ in self._fast]
        except FAULTS:
            return [self._attempt(source, source[1]) for source in self._fast]

    def parse(self, readings: Iterable[Reading]) -> list[Sample]:
        """Return the samples of a batch's readings, which are all of those since the last `parse`."""
        samples = []
        for now, slow, sources, texts, workers in readings:
            sample: Sample = {"t": now, **slow}
            for source, text in zip(sources, texts, strict=True):
                found = self._attempt(source, source[2], text) if text and source in self._fast else None
                if found:
                    sample[source[0]] = {**sample.get(source[0], {}), **found}
            if workers:
                sample["workers"] = self._workers.parse(workers)
            samples.append(sample)
        return samples

    def kept(self, reading: Reading, uptime: float) -> KeptReading:
        """Return of a reading what a file can keep."""
        now, slow, sources, texts, _ = reading
        return KeptReading(now, uptime, slow, {source[0]: text for source, text in zip(sources, texts, strict=True)})

    def restored(self, readings: Sequence[KeptReading]) -> list[Sample]:
        """Return the samples of readings that a former life kept; to be called before the first `read`."""
        self._look_around(readings[-1].now)
        return self.parse(
            (each.now, each.slow, self._fast, [each.texts.get(source[0]) for source in self._fast], [])
            for each in readings
        )

    def _attempt(self, source: Source, step: Callable[..., Any], *arguments: object) -> Any:
        try:
            return step(*arguments)
        except FAULTS as error:
            # One file in a form nobody foresaw must not cost all the others.
            self._fast = tuple(each for each in self._fast if each is not source)
            _leave_out(source[0], error)
            return None

    def _look_around(self, now: float) -> None:
        self._cores = {str(core) for core in os.sched_getaffinity(0)}
        self._workers.refresh(now)
        # Under systemd a worker has a group of its own, and its quota is the one that slows the engine.
        limited: int | str = self._workers.first_process() or "self"
        if limited != self._limited:
            self._limits.close()
            self._limits, self._limited = Limits.of(limited), limited
        self._limits.refresh()

    def _run(self, sources: list[Callable[[Sample], None]], sample: Sample) -> None:
        for source in list(sources):
            try:
                source(sample)
            except FAULTS as error:
                sources.remove(source)
                _leave_out(source.__name__.strip("_"), error)

    def _other_pressure(self, sample: Sample) -> None:
        texts = [(name, handle.read()) for name, handle in self._slow_pressure]
        found = {name: readers.pressure(text) for name, text in texts if text}
        if found:
            sample["psi"] = found

    def _mem(self, sample: Sample) -> None:
        text = self._memory.read()
        if text:
            sample["mem"] = readers.memory(text)

    def _disk(self, sample: Sample) -> None:
        text = self._diskstats.read()
        if text:
            sample["disk"] = readers.disks(text, self._disks)

    def _thermal(self, sample: Sample) -> None:
        for name, found in (("thermal", self._thermal_numa.thermal()), ("numa", self._thermal_numa.numa())):
            if found:
                sample[name] = found

    def _accelerator(self, sample: Sample) -> None:
        found = self._accelerators.sample()
        if found:
            sample["accelerator"] = found


def _leave_out(name: str, error: Exception) -> None:
    print(f"sampler: {name} is left out from now on: {error!r}", file=sys.stderr)
