"""One sample of this node: every source in one place."""

import os
import sys

import readers
from accelerator import Accelerators
from cgroup import Limits
from memory_bandwidth import MemoryBandwidth
from readers import Handle
from surroundings import Surroundings
from workers import Workers

# A short stall on memory or disk still shows in a second's total; that of the cores is wanted beside each sample.
FAST_PRESSURES, SLOW_PRESSURES = ("cpu",), ("memory", "io")


class Machine:
    """Reads the node; a source that the machine does not have is left out of every sample.

    ``links`` maps a link's name to its interfaces: one, or on a full mesh one for each cable.
    """

    def __init__(self, links, supervise_directory):
        self._stat = Handle("/proc/stat")
        self._fast_pressure = [(name, Handle(f"/proc/pressure/{name}")) for name in FAST_PRESSURES]
        self._slow_pressure = [(name, Handle(f"/proc/pressure/{name}")) for name in SLOW_PRESSURES]
        self._network = Handle("/proc/self/net/dev")
        self._interfaces = {interface: link for link, interfaces in links.items() for interface in interfaces}
        self._memory = Handle("/proc/meminfo")
        self._diskstats = Handle("/proc/diskstats")
        self._disks = readers.whole_disks()
        self._bandwidth = MemoryBandwidth()
        self._accelerators = Accelerators()
        self._surroundings = Surroundings()
        self._workers = Workers(supervise_directory)
        self._limits = Limits.of()
        self._limited = "self"
        self._cores = set()
        self._fast = [self._cpu, self._cpu_pressure, self._links, self._membw, self._cgroup]
        self._slow = [self._other_pressure, self._mem, self._disk, self._accelerator, self._around]

    def sample(self, now, complete):
        """Return one sample; a ``complete`` one, once a batch, also holds what changes slowly."""
        sample = {"t": now}
        if complete:
            self._look_around(now)
            self._run(self._slow, sample)
        self._run(self._fast, sample)
        workers = self._workers.sample(complete, now)
        if workers:
            sample["workers"] = workers
        return sample

    def _look_around(self, now):
        self._cores = {str(core) for core in os.sched_getaffinity(0)}
        self._workers.refresh(now)
        # Under systemd a worker has a group of its own, and its quota is the one that slows the engine.
        limited = self._workers.first_process() or "self"
        if limited != self._limited:
            self._limits.close()
            self._limits, self._limited = Limits.of(limited), limited
        self._limits.refresh()

    def _run(self, sources, sample):
        for source in list(sources):
            try:
                source(sample)
            except (OSError, ValueError, IndexError, KeyError) as error:
                # One file in a form nobody foresaw must not cost all the others.
                sources.remove(source)
                print(f"sampler: {source.__name__.strip('_')} is left out from now on: {error!r}", file=sys.stderr)

    def _cpu(self, sample):
        text = self._stat.read()
        if text:
            sample["cpu"] = readers.cores(text, self._cores)

    def _cpu_pressure(self, sample):
        self._psi(sample, self._fast_pressure)

    def _other_pressure(self, sample):
        self._psi(sample, self._slow_pressure)

    @staticmethod
    def _psi(sample, handles):
        texts = [(name, handle.read()) for name, handle in handles]
        found = {name: readers.pressure(text) for name, text in texts if text}
        if found:
            sample.setdefault("psi", {}).update(found)

    def _links(self, sample):
        text = self._network.read()
        if text:
            sample["links"] = readers.links(text, self._interfaces)

    def _membw(self, sample):
        found = self._bandwidth.sample()
        if found:
            sample["membw"] = found

    def _cgroup(self, sample):
        found = self._limits.sample()
        if found:
            sample["cgroup"] = found

    def _mem(self, sample):
        text = self._memory.read()
        if text:
            sample["mem"] = readers.memory(text)

    def _disk(self, sample):
        text = self._diskstats.read()
        if text:
            sample["disk"] = readers.disks(text, self._disks)

    def _around(self, sample):
        for name, found in (("thermal", self._surroundings.thermal()), ("numa", self._surroundings.numa())):
            if found:
                sample[name] = found

    def _accelerator(self, sample):
        found = self._accelerators.sample()
        if found:
            sample["accelerator"] = found
