"""Turn the kernel's texts into numbers: one pure function a file, in base units."""

import os
from collections.abc import Collection, Mapping

import node_processes
from sample_schema import CoreSeconds, LinkCounters, StallSeconds

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SECTOR_BYTES = 512
READ_BYTES = 1 << 16
# Devices that stand on others (a partition, a mapped or a looped one) would be counted twice.
STACKED_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd")


class Handle:
    """A file of /proc or /sys, opened once and read from its start each time.

    A file that is not there, or that goes away, reads as None: what the machine does not have is absent.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor: int | None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = None

    def read(self) -> str | None:
        """Return the text of the file now, or None."""
        if self._descriptor is None:
            return None
        try:
            content = os.pread(self._descriptor, READ_BYTES, 0)
            # One read gives a short file whole; /proc/stat of a big machine takes several.
            while len(content) % READ_BYTES == 0 and content:
                more = os.pread(self._descriptor, READ_BYTES, len(content))
                if not more:
                    break
                content += more
        except OSError:
            return None
        return content.decode("utf-8", "replace")

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def cores(text: str, allowed: Collection[str]) -> dict[str, CoreSeconds]:
    """Return the seconds of each allowed core, from /proc/stat."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("cpu"):
            break  # the cores come first; the interrupt counters after them are long
        name, *fields = line.split()
        if name[3:] not in allowed:
            continue
        user, nice, system, idle, iowait, interrupt, soft, steal = (int(field) for field in fields[:8])
        user, system = user + nice, system + interrupt + soft
        found[name[3:]] = CoreSeconds(
            busy=(user + system) / TICKS_PER_SECOND,
            user=user / TICKS_PER_SECOND,
            system=system / TICKS_PER_SECOND,
            idle=idle / TICKS_PER_SECOND,
            iowait=iowait / TICKS_PER_SECOND,
            steal=steal / TICKS_PER_SECOND,
        )
    return found


def pressure(text: str) -> StallSeconds:
    """Return the seconds that tasks stood still, from /proc/pressure/*."""
    totals = {"some": 0.0, "full": 0.0}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        totals[kind] = int(rest.rpartition("total=")[2]) / 1e6
    return StallSeconds(some=totals["some"], full=totals["full"])


def links(text: str, interfaces: Mapping[str, str]) -> dict[str, LinkCounters]:
    """Return the counters of each link, from /proc/net/dev.

    ``interfaces`` maps the interface's name to the link's; a link of several interfaces, one a cable, is their sum.
    """
    found: dict[str, LinkCounters] = {}
    for line in text.splitlines():
        interface, colon, rest = line.partition(":")
        link = interfaces.get(interface.strip()) if colon else None
        if link is not None:
            value = [int(field) for field in rest.split()]
            counters = LinkCounters(
                receive_bytes=value[0],
                receive_packets=value[1],
                receive_errors=value[2],
                receive_dropped=value[3],
                transmit_bytes=value[8],
                transmit_packets=value[9],
                transmit_errors=value[10],
                transmit_dropped=value[11],
            )
            before = found.get(link)
            found[link] = LinkCounters(*map(sum, zip(counters, before, strict=True))) if before else counters
    return found


def memory(text: str) -> dict[str, int]:
    """Return total and available bytes, from /proc/meminfo."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[name.removeprefix("Mem").lower()] = int(rest.split()[0]) * 1024
    return found


def disks(text: str, names: Collection[str]) -> dict[str, int]:
    """Return bytes read and written over all whole disks, from /proc/diskstats."""
    read = written = 0
    for line in text.splitlines():
        fields = line.split()
        if fields[2] in names:
            read += int(fields[5])
            written += int(fields[9])
    return {"read_bytes": read * SECTOR_BYTES, "write_bytes": written * SECTOR_BYTES}


def whole_disks(directory: str = "/sys/block") -> set[str]:
    """Return the names of the disks that stand on no other."""
    try:
        return {name for name in os.listdir(directory) if not name.startswith(STACKED_DISKS)}
    except OSError:
        return set()


def process(text: str) -> tuple[float, float, int]:
    """Return (user seconds, system seconds, resident bytes) of a process, from /proc/PID/stat."""
    found = node_processes.parse_stat(text)
    user, system = found.user_ticks / TICKS_PER_SECOND, found.system_ticks / TICKS_PER_SECOND
    return user, system, found.resident_pages * PAGE_BYTES


def storage_reads(text: str) -> int:
    """Return the bytes that a process had read from storage, not from the page cache, from /proc/PID/io."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "read_bytes":
            return int(value)
    return 0


def in_storage(text: str) -> bool:
    """Return whether a process sleeps uninterruptibly, as one does that waits for a read, from /proc/PID/stat."""
    return node_processes.parse_stat(text).state == "D"


def run_delay(text: str) -> tuple[float, float]:
    """Return (seconds running, seconds waiting for a core) of a thread, from /proc/PID/task/TID/schedstat."""
    ran, waited, _ = text.split()
    return int(ran) / 1e9, int(waited) / 1e9
