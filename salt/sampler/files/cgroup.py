"""Read the CPU quota this node lives under, and what it has cost: control groups of both versions."""

import os
from collections.abc import Sequence
from typing import Any

import control_groups
from readers import Handle


def statistics(text: str) -> tuple[int, int, float]:
    """Return (periods, throttled periods, throttled seconds), from cpu.stat of either version."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        values[name] = int(number)
    seconds = values["throttled_usec"] / 1e6 if "throttled_usec" in values else values.get("throttled_time", 0) / 1e9
    return values.get("nr_periods", 0), values.get("nr_throttled", 0), seconds


class _Level:
    """One group on the way up."""

    def __init__(self, directory: str, version: int) -> None:
        self._statistics = Handle(os.path.join(directory, "cpu.stat"))
        self._quota = Handle(os.path.join(directory, control_groups.QUOTA_FILES[version]))
        self._period = (
            Handle(os.path.join(directory, control_groups.PERIOD_FILE)) if version == control_groups.VERSION_1 else None
        )
        self.quota: float | None = None
        self.counters = (0, 0, 0.0)

    def refresh_quota(self) -> bool:
        """Read the quota; return False where the group cannot have one."""
        quota = self._quota.read()
        period = self._period.read() if self._period else None
        if quota is None or (self._period is not None and period is None):
            self.quota = None
            return False
        self.quota = control_groups.quota_cores(quota, period)
        return True

    def refresh(self) -> None:
        text = self._statistics.read()
        if text is not None:
            self.counters = statistics(text)

    def close(self) -> None:
        for handle in (self._statistics, self._quota, self._period):
            if handle:
                handle.close()


class Limits:
    """The limits that apply to one process, added up over every level, so that no counter ever jumps."""

    def __init__(self, levels: Sequence[_Level]) -> None:
        self._levels = levels
        self.refresh()

    @classmethod
    def of(cls, pid: int | str = "self") -> "Limits":
        """Find the levels of a process; none where the kernel has no CPU groups."""
        own, mounted = Handle(f"/proc/{pid}/cgroup"), Handle("/proc/self/mountinfo")
        found = control_groups.levels(own.read() or "", mounted.read() or "")
        own.close()
        mounted.close()
        for version, folders in found.items():
            kept = [level for level in (_Level(each, version) for each in folders) if level.refresh_quota()]
            if kept:
                return cls(kept)
        return cls([])

    def refresh(self) -> None:
        """Look at every level: once a batch, because a quota can be set while the node works."""
        for level in self._levels:
            level.refresh_quota()
            level.refresh()

    def sample(self) -> dict[str, Any] | None:
        """Return the counters now, or None without a group; only the levels that can grow are read."""
        if not self._levels:
            return None
        quota: float | None = None
        for level in self._levels:
            if level.quota is not None:
                level.refresh()
                quota = level.quota if quota is None else min(quota, level.quota)
        counters = [level.counters for level in self._levels]
        periods, throttled, seconds = (sum(column) for column in zip(*counters, strict=True))
        return {"throttled_s": seconds, "periods": periods, "throttled_periods": throttled, "quota_cores": quota}

    def close(self) -> None:
        """Give all descriptors back."""
        for level in self._levels:
            level.close()
