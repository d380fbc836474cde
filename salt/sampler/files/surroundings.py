"""What the processor and the memory say of their own surroundings: held back by heat, memory of another NUMA node."""

import glob
import os

from readers import Handle


class Surroundings:
    """The processor's throttle counters and the memory's, where the kernel tells them.

    ``thermal`` needs a processor that counts (x86 of Intel), ``numa`` more than one memory node.
    """

    def __init__(self, directory="/sys/devices/system"):
        package = glob.glob(os.path.join(directory, "cpu/cpu[0-9]*/thermal_throttle/package_throttle_total_time_ms"))
        nodes = sorted(glob.glob(os.path.join(directory, "node/node[0-9]*/numastat")))
        # All cores of a package tell the same time: the largest is that of the package which suffered most.
        self._throttled = [Handle(path) for path in sorted(package)]
        self._memory = [Handle(path) for path in nodes] if len(nodes) > 1 else []

    def thermal(self):
        """Return {"throttled_s": seconds}, or None on a processor that does not count."""
        told = [int(text) for handle in self._throttled if (text := handle.read())]
        return {"throttled_s": max(told) * 1e-3} if told else None

    def numa(self):
        """Return pages taken from the own and from another node since boot, or None with one node."""
        found = {"local_pages": 0, "remote_pages": 0}
        for handle in self._memory:
            counts = dict(line.split() for line in (handle.read() or "").splitlines())
            found["local_pages"] += int(counts.get("local_node", 0))
            found["remote_pages"] += int(counts.get("other_node", 0))
        return found if self._memory else None
