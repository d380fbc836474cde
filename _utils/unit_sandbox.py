"""
Say what the units that this node starts may do: settings of systemd, as lines of a unit's ``[Service]``.

A node without systemd (the lab's) has none of it; there the engine's user alone holds.
"""

import os
from collections.abc import Sequence

# Of every unit. Not among them is what needs a reason: see SAMPLER and `engine`.
COMMON = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "LockPersonality=yes",
    "RemoveIPC=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
    # Whatever of it runs on is ended with it; nobody but the cluster starts it again.
    "KillMode=mixed",
    "Restart=no",
    # The keeper reports that it lives, several times as often.
    "Type=notify",
    "NotifyAccess=main",
    "WatchdogSec=30",
)

# Reads what every process of the node used, and the counters of its memory controller and its cards.
SAMPLER = (
    *COMMON,
    "CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_PERFMON CAP_SYS_PTRACE",
    "SystemCallFilter=@system-service perf_event_open",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "StateDirectory=cluster",
    "LogsDirectory=cluster",
    "ReadWritePaths=/run/cluster",
    "DevicePolicy=closed",
    "DeviceAllow=char-nvidia* rw",
)

# By the kernel's names of kinds of devices: graphics cards, AMD's compute, NPUs, NVIDIA's, RDMA.
ACCELERATORS = ("drm", "kfd", "accel", "nvidia*", "infiniband*")


def engine(memory_share: float, writable: Sequence[str], root: str | None = None) -> tuple[str, ...]:
    """
    Return the settings of a worker's unit.

    memory_share
        of the node's memory, 0 to 1: the most that the worker's processes hold together
    writable
        folders that it writes into
    root
        the engine's root folder, where it has one: what it sees of the node is mounted there
    """
    powers = ["CAP_KILL", "CAP_SETGID", "CAP_SETUID", *(["CAP_SYS_CHROOT"] if root else [])]
    return (
        *COMMON,
        # The keeper's, to give up root before the engine begins; none of them is the engine's.
        f"CapabilityBoundingSet={' '.join(powers)}",
        # Cards of one node exchange their memory by descriptors of each other's processes.
        f"SystemCallFilter=@system-service pidfd_getfd{' chroot' if root else ''}",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "ProtectProc=invisible",
        "LogsDirectory=cluster",
        f"ReadWritePaths={' '.join(['/run/cluster', *writable])}",
        "DevicePolicy=closed",
        *(f"DeviceAllow=char-{kind} rw" for kind in ACCELERATORS),
        "DeviceAllow=/dev/infiniband/rdma_cm rw",
        # What a card reads by itself has to stay where it is.
        "LimitMEMLOCK=infinity",
        "LimitNOFILE=65536",
        f"MemoryMax={memory_share:.0%}",
        "MemorySwapMax=0",
        # Half of the ranks serve nothing: the others would wait for what will not come.
        "OOMPolicy=kill",
        "OOMScoreAdjust=500",
        *(_mounts(root) if root else []),
    )


def seen_in_root(root: str) -> dict[str, str]:
    """Return {folder of the node: where a program in a root folder sees it}."""
    return {folder: f"{root.rstrip('/')}{folder}" for folder in ("/proc", "/sys", "/dev", "/run", "/var/cache/cluster")}


def arguments(settings: Sequence[str]) -> list[str]:
    """Return the arguments by which ``systemd-run`` has the settings."""
    return [f"--property={setting}" for setting in settings]


def _mounts(root: str) -> list[str]:
    binds = [f"BindPaths={source}:{target}" for source, target in seen_in_root(root).items()]
    temporary = os.path.join(root, "tmp")
    return [
        *binds,
        f"BindReadOnlyPaths=-/etc/hosts:{root.rstrip('/')}/etc/hosts",
        f"TemporaryFileSystem={temporary}:mode=1777",
    ]
