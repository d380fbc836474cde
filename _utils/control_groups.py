"""
Find the control group that limits a process's CPU time, of both versions of control groups.
"""

import os

VERSION_1, VERSION_2 = 1, 2
# What a group must have to limit CPU time.
QUOTA_FILES = {VERSION_1: "cpu.cfs_quota_us", VERSION_2: "cpu.max"}
PERIOD_FILE = "cpu.cfs_period_us"
UNLIMITED = ("max", "-1")


def own_paths(text: str) -> dict[int, str]:
    """Return {version: path} of the groups that can limit CPU time, from /proc/PID/cgroup."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            found[VERSION_2] = path
        elif "cpu" in controllers.split(","):
            found[VERSION_1] = path
    return found


def mounts(text: str) -> dict[int, tuple[str, str]]:
    """Return {version: (mount point, root of the mount)} of the hierarchies, from /proc/self/mountinfo."""
    found: dict[int, tuple[str, str]] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind[0] == "cgroup2":
            found.setdefault(VERSION_2, (fields[4], fields[3]))
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            found.setdefault(VERSION_1, (fields[4], fields[3]))
    return found


def directories(mount: str, root: str, path: str) -> list[str]:
    """Return the folders from a group up to the mount: a limit at any of them applies to the group."""
    # Inside a namespace or a container the mount starts below the hierarchy's own root.
    inside = path.removeprefix(root.rstrip("/")) if root != "/" else path
    parts = [part for part in inside.split("/") if part and part != ".."]
    return [os.path.join(mount, *parts[:depth]) for depth in range(len(parts), -1, -1)]


def levels(group_text: str, mount_text: str) -> dict[int, list[str]]:
    """Return {version: folders from the group up} of a process, version 1 first; texts as `own_paths` and `mounts`."""
    paths, points = own_paths(group_text), mounts(mount_text)
    both = [version for version in (VERSION_1, VERSION_2) if version in paths and version in points]
    return {version: directories(*points[version], paths[version]) for version in both}


def quota_cores(quota: str, period: str | None = None) -> float | None:
    """Return how many cores a quota is, or None without one; from cpu.max, or from the two files of version 1."""
    if period is None:
        quota, period = quota.split()
    quota = quota.strip()
    return None if quota in UNLIMITED else int(quota) / int(period)
