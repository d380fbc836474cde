"""Control groups of a lab: which processes belong to a node, and what it may use.

Membership is also the lab's memory: `down` ends whatever is in the lab's groups, so it
needs no record of what was started. Version 1 (one tree per controller) and version 2
(one tree) hold the same layout: `cluster/<lab>/<node>`; in version 2 a node's processes are
one level further down (`Hierarchy.divide`).
"""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab.layout import LabError

PARENT = "cluster"
INSIDE = "inside"
# A short period makes a quota a steady slowdown: at the usual 100 ms a node at 0.3 cores
# runs 30 ms and then stands still for 70 ms, which looks like a stall, not a slow node.
QUOTA_PERIOD_MICROSECONDS = 10_000
_SMALLEST_QUOTA_MICROSECONDS = 1_000
# A lab measures: what else runs on this machine gets the CPU after it, though it still gets some.
_LABS_CPU_WEIGHT = 10
_MOVE_SECONDS = 5.0
NEEDED = ("cpu", "cpuset", "memory")
# Reads from disks are limited by `blkio` in version 1 and by `io` in version 2; a lab does without either.
WANTED = (*NEEDED, "cpuacct", "pids", "blkio", "io")


class CgroupError(LabError):
    """The machine's control groups cannot carry a lab; the text says why."""


@dataclass(frozen=True)
class Usage:
    """Use and limits of a node's group, in base units."""

    cpu_seconds: float
    memory_bytes: int
    memory_limit_bytes: int | None
    quota_cores: float | None
    throttled_seconds: float


@dataclass(frozen=True)
class Mount:
    """One mounted cgroup tree: where, and the options that mount it again."""

    path: Path
    filesystem: str
    options: str


@dataclass(frozen=True)
class Hierarchy:
    """The cgroup trees of this machine."""

    version: int
    roots: dict[str, Path]  # controller -> mount point; all the same one in version 2
    mounts: tuple[Mount, ...] = field(default=())

    def trees(self) -> list[Path]:
        """Return each tree once."""
        return list(dict.fromkeys(self.roots.values()))

    @property
    def weight_file(self) -> str:
        """The file of a group's share of the CPU."""
        return "cpu.weight" if self.version == 2 else "cpu.shares"

    @property
    def usual_weight(self) -> int:
        """The weight that every group begins with."""
        return 100 if self.version == 2 else 1024

    def directories(self, lab: str, node: str) -> list[Path]:
        """Return the node's folder in every tree."""
        return [tree / PARENT / lab / node for tree in self.trees()]

    def directory(self, controller: str, lab: str, node: str) -> Path:
        """Return the node's folder in the tree of `controller`."""
        return self.roots[controller] / PARENT / lab / node

    def home(self, lab: str, node: str) -> Path:
        """Return the folder, in the tree of CPU time, of the group that holds the node's processes and their quota."""
        directory = self.directory("cpu", lab, node)
        return directory / INSIDE if (directory / INSIDE).is_dir() else directory

    def divide(self, lab: str, node: str) -> None:
        """Let groups be made below the node's: in version 2 its processes have to leave it for that.

        To be called once the node has its namespace of control groups. That shows the node's group as its top, whose
        limits the kernel lets nobody inside change where the tree is mounted with `nsdelegate`; those one level down
        are the node's own, as all are in version 1.

        Raises
        ------
        CgroupError
            When a process cannot be moved.
        """
        if self.version == 1:
            return
        top = self.directory("cpu", lab, node)
        (top / INSIDE).mkdir(exist_ok=True)
        deadline = time.monotonic() + _MOVE_SECONDS
        while True:
            for pid in (top / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    _write(top / INSIDE / "cgroup.procs", pid)
            try:
                _enable(top, ("cpu",))
                return
            except CgroupError:
                # One of them was starting another meanwhile.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def nodes(self, lab: str) -> list[str]:
        """Return the nodes of `lab` that have a group in any tree."""
        found = {
            entry.name
            for tree in self.trees()
            if (tree / PARENT / lab).is_dir()
            for entry in (tree / PARENT / lab).iterdir()
            if entry.is_dir()
        }
        return sorted(found)

    def exists(self, lab: str) -> bool:
        """Tell whether any tree has a group for `lab`."""
        return any((tree / PARENT / lab).is_dir() for tree in self.trees())

    def create(
        self,
        lab: str,
        node: str,
        cores: Iterable[int] | None = None,
        memory_bytes: int | None = None,
        cpu_share: float = 1.0,
    ) -> None:
        """Make the node's group, limited to `cores` and `memory_bytes`; `cpu_share` is its weight beside another."""
        for tree in self.trees():
            _make_levels(self, tree, (PARENT, lab, node))
        if cores is not None:
            _write(self.directory("cpuset", lab, node) / "cpuset.cpus", ",".join(str(core) for core in cores))
        if cpu_share != 1.0:
            weight = round(cpu_share * self.usual_weight)
            _write(self.directory("cpu", lab, node) / self.weight_file, str(weight))
        if memory_bytes is not None:
            name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
            _write(self.directory("memory", lab, node) / name, str(memory_bytes))

    def membership_files(self, lab: str, node: str) -> list[Path]:
        """Return the files a process writes its id into to join the node."""
        if self.version == 2:
            return [self.home(lab, node) / "cgroup.procs"]
        # A lab that came up before this machine limited disks has no group for them.
        without = {self.roots[name] for name in ("blkio",) if name in self.roots}
        return [
            tree / PARENT / lab / node / "cgroup.procs"
            for tree in self.trees()
            if tree not in without or (tree / PARENT / lab / node).is_dir()
        ]

    def add(self, lab: str, node: str, pid: int) -> None:
        """Move a process into the node's group."""
        for file in self.membership_files(lab, node):
            _write(file, str(pid))

    def leave(self, pid: int) -> None:
        """Move a process out to the top group of every tree."""
        for tree in self.trees():
            _write(tree / "cgroup.procs", str(pid))

    def set_cpu_quota(self, lab: str, node: str, cores: float | None) -> None:
        """Hold the node to `cores` of CPU time per second; None lifts it."""
        self.write_quota(self.home(lab, node), cores)

    def write_quota(self, directory: Path, cores: float | None, period: int = QUOTA_PERIOD_MICROSECONDS) -> None:
        """Hold a group to `cores` of CPU time per second, in periods of microseconds; None lifts it."""
        quota = None if cores is None else max(_SMALLEST_QUOTA_MICROSECONDS, round(cores * period))
        if self.version == 2:
            _write(directory / "cpu.max", f"{'max' if quota is None else quota} {period}")
            return
        _write(directory / "cpu.cfs_quota_us", "-1")
        _write(directory / "cpu.cfs_period_us", str(period))
        if quota is not None:
            _write(directory / "cpu.cfs_quota_us", str(quota))

    def set_cores(self, lab: str, node: str, cores: Iterable[int]) -> None:
        """Hold the node to other cores of this machine; what runs in it moves there."""
        _write(self.directory("cpuset", lab, node) / "cpuset.cpus", ",".join(str(core) for core in cores))

    def disk_controller(self) -> str:
        """Return the controller that holds reads from disks.

        Raises
        ------
        CgroupError
            When this machine's control groups have none.
        """
        controller = "io" if self.version == 2 else "blkio"
        if controller not in self.roots:
            raise CgroupError(f"this machine's control groups have no {controller}: a node's disk cannot be slowed")
        return controller

    def set_read_rate(self, lab: str, node: str, device: str, bytes_per_second: float | None) -> None:
        """Hold the node's reads from a disk, named `MAJOR:MINOR`, to a rate; None lifts it.

        What the page cache has is not read from a disk, and is not limited.
        """
        directory = self.directory(self.disk_controller(), lab, node)
        if self.version == 2:
            limit = "max" if bytes_per_second is None else str(round(bytes_per_second))
            _write(directory / "io.max", f"{device} rbps={limit}")
        else:
            limit = "0" if bytes_per_second is None else str(round(bytes_per_second))
            _write(directory / "blkio.throttle.read_bps_device", f"{device} {limit}")

    def usage(self, lab: str, node: str) -> Usage:
        """Read what the node uses now."""
        cpu, memory = self.directory("cpu", lab, node), self.directory("memory", lab, node)
        home = self.home(lab, node)
        stat = _statistics(home)
        if self.version == 2:
            quota, period = (home / "cpu.max").read_text().split()
            limit = (memory / "memory.max").read_text().strip()
            return Usage(
                cpu_seconds=int(_statistics(cpu)["usage_usec"]) / 1e6,
                memory_bytes=int((memory / "memory.current").read_text()),
                memory_limit_bytes=None if limit == "max" else int(limit),
                quota_cores=None if quota == "max" else int(quota) / int(period),
                throttled_seconds=int(stat.get("throttled_usec", 0)) / 1e6,
            )
        accounting = self.roots.get("cpuacct")
        used = int((accounting / PARENT / lab / node / "cpuacct.usage").read_text()) if accounting else 0
        quota_microseconds = int((cpu / "cpu.cfs_quota_us").read_text())
        limit_bytes = int((memory / "memory.limit_in_bytes").read_text())
        return Usage(
            cpu_seconds=used / 1e9,
            memory_bytes=int((memory / "memory.usage_in_bytes").read_text()),
            # Version 1 says "no limit" with the largest page-aligned number.
            memory_limit_bytes=None if limit_bytes > 2**62 else limit_bytes,
            quota_cores=None
            if quota_microseconds < 0
            else quota_microseconds / int((cpu / "cpu.cfs_period_us").read_text()),
            throttled_seconds=int(stat.get("throttled_time", 0)) / 1e9,
        )

    def peak_memory_bytes(self, lab: str) -> int | None:
        """Return the most memory that the lab's processes, with their page cache, had at once.

        None where the kernel does not keep it: version 2 does since Linux 5.19.
        """
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        try:
            return int((self.roots["memory"] / PARENT / lab / name).read_text())
        except FileNotFoundError:
            return None

    def processes(self, lab: str, node: str | None = None) -> list[int]:
        """Return the ids of all processes in the node's group, or in the whole lab's."""
        found: set[int] = set()
        for tree in self.trees():
            top = tree / PARENT / lab / node if node else tree / PARENT / lab
            for file in top.rglob("cgroup.procs"):
                try:
                    found.update(int(line) for line in file.read_text().split())
                except OSError:
                    continue  # the group went away while we looked
        return sorted(found - {0})

    def kill_all(self, lab: str, spare: int | None = None, deadline_seconds: float = 15.0) -> None:
        """End every process of the lab except `spare`, and wait until they are gone.

        Raises
        ------
        CgroupError
            When some are still there after `deadline_seconds` (stuck in the kernel).
        """
        deadline = time.monotonic() + deadline_seconds
        while left := [pid for pid in self.processes(lab) if pid != spare]:
            if time.monotonic() > deadline:
                raise CgroupError(f"processes of lab {lab} do not end: {', '.join(map(str, left))}")
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)

    def remove(self, lab: str, deadline_seconds: float = 5.0) -> None:
        """Remove the lab's groups, and the parent when this was the last lab."""
        deadline = time.monotonic() + deadline_seconds
        for tree in self.trees():
            top = tree / PARENT / lab
            # Deepest first: a node may have made groups of its own inside.
            groups = sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
            for group in [*groups, top]:
                while True:
                    try:
                        group.rmdir()
                    except FileNotFoundError:
                        pass
                    except OSError:
                        # A process that has just ended is still counted for a moment.
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.01)
                        continue
                    break
            try:
                (tree / PARENT).rmdir()
            except OSError:
                continue  # another lab is up


def _make_levels(hierarchy: Hierarchy, tree: Path, levels: tuple[str, ...]) -> None:
    for _ in range(20):
        try:
            directory = tree
            for name in levels:
                parent, directory = directory, directory / name
                if hierarchy.version == 2:
                    _enable(parent, hierarchy.roots)
                directory.mkdir(exist_ok=True)
                if name == PARENT and tree == hierarchy.roots["cpu"]:
                    _write(directory / hierarchy.weight_file, str(_LABS_CPU_WEIGHT * hierarchy.usual_weight))
                if hierarchy.version == 1 and tree == hierarchy.roots["cpuset"]:
                    _inherit_cpuset(parent, directory)
        except FileNotFoundError:
            continue  # the last other lab went down and took the parent with it
        return
    raise CgroupError(f"could not make {tree.joinpath(*levels)}")


def _inherit_cpuset(parent: Path, directory: Path) -> None:
    """Fill a new version 1 cpuset, which starts empty and then takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (directory / name).read_text().strip():
            _write(directory / name, (parent / name).read_text().strip())


def _enable(parent: Path, controllers: Iterable[str]) -> None:
    """Hand the controllers on to the children of a version 2 group."""
    control = parent / "cgroup.subtree_control"
    absent = [name for name in controllers if name not in control.read_text().split()]
    if not absent:
        return
    try:
        _write(control, " ".join(f"+{name}" for name in absent))
    except OSError as error:
        raise CgroupError(
            f"cannot enable {', '.join(absent)} in {parent} ({error.strerror}); a group that holds processes cannot "
            "share controllers out: in a container, start it with the host's cgroup namespace"
        ) from error


def _write(path: Path, text: str) -> None:
    # No O_CREAT: a misspelt control file must fail, not become a file.
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _statistics(directory: Path) -> dict[str, str]:
    return dict(line.split() for line in (directory / "cpu.stat").read_text().splitlines())
