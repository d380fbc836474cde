"""Read how long heat has throttled the processor, and how much memory came from another NUMA node."""

import glob
import os

from readers import Handle


class ThermalNuma:
    """The processor's throttle counters and the memory's, where the kernel has them.

    ``thermal`` needs a processor that counts (x86 of Intel), ``numa`` more than one memory node.
    """

    def __init__(self, directory: str = "/sys/devices/system") -> None:
        package = glob.glob(os.path.join(directory, "cpu/cpu[0-9]*/thermal_throttle/package_throttle_total_time_ms"))
        nodes = sorted(glob.glob(os.path.join(directory, "node/node[0-9]*/numastat")))
        # All cores of a package have the same time: the largest is that of the package which suffered most.
        self._throttled = [Handle(path) for path in sorted(package)]
        self._memory = [Handle(path) for path in nodes] if len(nodes) > 1 else []

    def thermal(self) -> dict[str, float] | None:
        """Return {"throttled_s": seconds}, or None on a processor that does not count."""
        found = [int(text) for handle in self._throttled if (text := handle.read())]
        return {"throttled_s": max(found) * 1e-3} if found else None

    def numa(self) -> dict[str, int] | None:
        """Return pages taken from the own and from another node since boot, or None with one node."""
        found = {"local_pages": 0, "remote_pages": 0}
        for handle in self._memory:
            lines = (handle.read() or "").splitlines()
            counts = {name: number for name, _, number in (line.partition(" ") for line in lines)}
            found["local_pages"] += int(counts.get("local_node", 0))
            found["remote_pages"] += int(counts.get("other_node", 0))
        return found if self._memory else None
