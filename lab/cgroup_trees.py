"""Find the trees of control groups that this machine has."""

import re
from pathlib import Path

from lab.cgroups import NEEDED, WANTED, CgroupError, Hierarchy, Mount


def discover(mountinfo: Path = Path("/proc/self/mountinfo")) -> Hierarchy:
    """Find this machine's cgroup trees.

    Raises
    ------
    CgroupError
        When a controller that a node needs is not there.
    """
    unified: Path | None = None
    roots: dict[str, Path] = {}
    mounts: list[Mount] = []
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        filesystem, _, options = after.split(" ", 2)
        path = Path(_unescape(before.split()[4]))
        if filesystem == "cgroup2":
            unified = path
            mounts.append(Mount(path, filesystem, ""))
        elif filesystem == "cgroup":
            controllers = [option for option in options.split(",") if option in WANTED]
            roots.update(dict.fromkeys(controllers, path))
            if controllers:
                mounts.append(Mount(path, filesystem, ",".join(controllers)))
    if unified is not None:
        available = (unified / "cgroup.controllers").read_text().split()
        if all(name in available for name in NEEDED):
            # One tree: anything else that is mounted (a named tree for systemd) is not ours.
            own = tuple(mount for mount in mounts if mount.path == unified)
            return Hierarchy(2, {name: unified for name in WANTED if name in available}, own)
    missing = [name for name in NEEDED if name not in roots]
    if missing:
        raise CgroupError(
            f"this machine's control groups lack {', '.join(missing)}; "
            "a lab needs cpu, cpuset and memory (is /sys/fs/cgroup mounted and writable?)"
        )
    return Hierarchy(1, roots, tuple(mounts))


def _unescape(text: str) -> str:
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)
