"""Check what a lab needs from this machine, and share the machine out."""

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bottleneck.profile import Profile
from lab.cgroup_trees import discover
from lab.cgroups import CgroupError, Hierarchy
from lab.layout import LabError

# tool -> Debian package
TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "tc": "iproute2",
    "tini": "tini",
    "unshare": "util-linux",
    "useradd": "passwd",
}


def check_root() -> None:
    """Raise LabError with the command to use unless this process is root."""
    if os.geteuid() != 0:
        command = " ".join([str(Path(sys.argv[0]).absolute()), *sys.argv[1:]])
        raise LabError(
            "a lab is made of namespaces, control groups and overlay mounts, which takes root",
            f"sudo -E {command}",
            code=4,
        )


def check_machine() -> None:
    """Make sure that this process can make a lab.

    Raises
    ------
    LabError
        Naming what is missing and the command that mends it.
    """
    check_root()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise LabError(f"not installed: {', '.join(missing)}", f"sudo apt-get install {packages}", code=4)
    if not Path(sys.prefix, "bin", "salt-master").exists():
        raise LabError(f"Salt is not in {sys.prefix}", f"{sys.prefix}/bin/pip install -e '.[control]'", code=4)


def find_hierarchy() -> Hierarchy:
    """Return this machine's control groups, or raise LabError when they cannot carry a lab."""
    try:
        return discover()
    except CgroupError as error:
        raise LabError(str(error), code=4) from error


def plan_cores(profile: Profile, available: Sequence[int] | None = None) -> tuple[dict[str, list[int]], list[str]]:
    """Give each node cores of its own; return them and what the person should know.

    Hyperthreads of one core come last, and the first core, which takes most interrupts,
    is left for the control node where there are enough. With too few, nodes share.
    """
    cores = list(available) if available is not None else _by_core(sorted(os.sched_getaffinity(0)))
    wanted = sum(node.cores for node in profile.nodes.values())
    if len(cores) > wanted:
        cores = [*cores[1:], cores[0]]
    plan: dict[str, list[int]] = {}
    taken = 0
    for name, node in profile.nodes.items():
        count = min(node.cores, len(cores))
        plan[name] = sorted(cores[(taken + offset) % len(cores)] for offset in range(count))
        taken += node.cores
    notes = []
    if wanted > len(cores):
        notes.append(f"the nodes want {wanted} cores and this machine has {len(cores)}: they slow each other down")
    memory = sum(node.memory_bytes for node in profile.nodes.values())
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory > total:
        notes.append(f"the nodes want {memory / 2**30:.1f} GiB of memory and this machine has {total / 2**30:.1f} GiB")
    return plan, notes


def control_cores(plan: Mapping[str, Sequence[int]], available: Iterable[int] | None = None) -> list[int]:
    """Return the control node's cores: those that no node has; where there are none, the last node's.

    The first node is the head of most deployments: its core also has the API server and the engine's scheduler, and of
    all cores the least time to spare.
    """
    taken = {core for cores in plan.values() for core in cores}
    spare = sorted(set(os.sched_getaffinity(0) if available is None else available) - taken)
    return spare or list(list(plan.values())[-1])


def _by_core(cpus: Sequence[int]) -> list[int]:
    def rank(cpu: int) -> tuple[int, int]:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            first = int(siblings.read_text().replace("-", ",").split(",")[0])
        except (OSError, ValueError):
            first = cpu
        return (first != cpu, cpu)

    return sorted(cpus, key=rank)
