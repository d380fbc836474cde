"""The CPU quota this node lives under, and what it has cost: control groups of both versions."""

import os

from readers import Handle

VERSION_1, VERSION_2 = 1, 2


def own_path(text):
    """Return {version: path} of the group that holds the CPU limits, from /proc/PID/cgroup."""
    found = {}
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            found[VERSION_2] = path
        elif "cpu" in controllers.split(","):
            found[VERSION_1] = path
    return found


def mounts(text):
    """Return {version: (mount point, root of the mount)} of the hierarchies, from /proc/self/mountinfo."""
    found = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind[0] == "cgroup2":
            found.setdefault(VERSION_2, (fields[4], fields[3]))
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            found.setdefault(VERSION_1, (fields[4], fields[3]))
    return found


def directories(mount, root, path):
    """Return the folders from a group up to the mount: a limit at any of them holds for the group."""
    # Inside a namespace or a container the mount starts below the hierarchy's own root.
    inside = path.removeprefix(root.rstrip("/")) if root != "/" else path
    parts = [part for part in inside.split("/") if part and part != ".."]
    return [os.path.join(mount, *parts[:depth]) for depth in range(len(parts), -1, -1)]


def statistics(text):
    """Return (periods, throttled periods, throttled seconds), from cpu.stat of either version."""
    values = {}
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        values[name] = int(number)
    seconds = values["throttled_usec"] / 1e6 if "throttled_usec" in values else values.get("throttled_time", 0) / 1e9
    return values.get("nr_periods", 0), values.get("nr_throttled", 0), seconds


def quota_cores(quota, period=None):
    """Return how many cores a quota is, or None without one; from cpu.max, or from the two files of version 1."""
    if period is None:
        quota, period = quota.split()
    quota = quota.strip()
    return None if quota in ("max", "-1") else int(quota) / int(period)


class _Level:
    """One group on the way up."""

    def __init__(self, directory, version):
        self._statistics = Handle(os.path.join(directory, "cpu.stat"))
        if version == VERSION_2:
            self._quota, self._period = Handle(os.path.join(directory, "cpu.max")), None
        else:
            self._quota = Handle(os.path.join(directory, "cpu.cfs_quota_us"))
            self._period = Handle(os.path.join(directory, "cpu.cfs_period_us"))
        self.quota = None
        self.counters = (0, 0, 0.0)

    def refresh_quota(self):
        quota = self._quota.read()
        period = self._period.read() if self._period else None
        limited = quota is not None and (self._period is None or period is not None)
        self.quota = quota_cores(quota, period) if limited else None
        return limited

    def refresh(self):
        text = self._statistics.read()
        if text is not None:
            self.counters = statistics(text)

    def close(self):
        for handle in (self._statistics, self._quota, self._period):
            if handle:
                handle.close()


class Limits:
    """The limits that hold for one process, added up over every level, so that no counter ever jumps."""

    def __init__(self, levels):
        self._levels = levels
        self.refresh()

    @classmethod
    def of(cls, pid="self"):
        """Find the levels of a process; none where the kernel has no CPU groups."""
        own, mounted = Handle(f"/proc/{pid}/cgroup"), Handle("/proc/self/mountinfo")
        paths, points = own_path(own.read() or ""), mounts(mounted.read() or "")
        own.close()
        mounted.close()
        for version in (VERSION_1, VERSION_2):
            if version in paths and version in points:
                levels = [_Level(each, version) for each in directories(*points[version], paths[version])]
                kept = [level for level in levels if level.refresh_quota()]
                if kept:
                    return cls(kept)
        return cls([])

    def refresh(self):
        """Look at every level: once a batch, because a quota can be set while the node works."""
        for level in self._levels:
            level.refresh_quota()
            level.refresh()

    def sample(self):
        """Return the counters now, or None without a group; only the levels that can grow are read."""
        if not self._levels:
            return None
        quota = None
        for level in self._levels:
            if level.quota is not None:
                level.refresh()
                quota = level.quota if quota is None else min(quota, level.quota)
        counters = [level.counters for level in self._levels]
        periods, throttled, seconds = (sum(column) for column in zip(*counters, strict=True))
        return {"throttled_s": seconds, "periods": periods, "throttled_periods": throttled, "quota_cores": quota}

    def close(self):
        """Give all descriptors back."""
        for level in self._levels:
            level.close()
