"""The page about the units that this project starts: what each may do, and why it may do that."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# What a unit is kept from by default; a unit without one of these settings has a reason for it.
EXPECTED = (
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "NoNewPrivileges",
    "PrivateDevices",
    "PrivateTmp",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "SystemCallArchitectures",
    "SystemCallFilter",
)

_MACHINE_CODE = "what it runs makes machine code while it runs"
_PROCESSES = "it counts what every process of the node used"
_CARDS = "it is there for the node's cards; the device list has those and nothing else"


@dataclass(frozen=True)
class Unit:
    """One unit.

    Attributes
    ----------
    source
        The file that it is made from, below the repository.
    runs
        What its processes are.
    powers
        Why it has the capabilities that it has; empty for a unit without any.
    most
        The most that ``systemd-analyze security`` may find, 0 to 10; None for a unit that is not kept from anything.
    without
        Setting that it does not have, of `EXPECTED` -> why; all of them, for ``"*"``.
    """

    source: str
    runs: str
    powers: str = ""
    most: float | None = 3.0
    without: Mapping[str, str] = field(default_factory=dict)


UNITS: dict[str, Unit] = {
    "salt-master": Unit(
        "salt/control/files/salt-master.service",
        "on the control node: Salt's master with the boot service, images by HTTP, the telemetry engine, recovery and"
        " the exporter, which are processes of it",
        "the log of dnsmasq, which it shortens, is another user's; the boot service may have a port below 1024",
        without={
            "MemoryDenyWriteExecute": "Python's foreign functions (libffi) write code for callbacks",
        },
    ),
    "cluster-dnsmasq": Unit(
        "salt/control/files/cluster-dnsmasq.service",
        "on the control node: DHCP and TFTP",
        "raw sockets and low ports; the user that it changes to, whose leases and log it opens before",
    ),
    "cluster-gateway": Unit(
        "salt/control/files/cluster-gateway.service",
        "on the control node: HAProxy in front of the heads, as the user `haproxy`",
    ),
    "cluster-firewall": Unit(
        "salt/control/files/cluster-firewall.service", "on the control node: the rules, once", "rules of the network"
    ),
    "cluster-interface": Unit(
        "salt/control/files/cluster-interface.service",
        "on the control node: addresses of the cluster's interface, once",
        "addresses of an interface",
    ),
    "cluster-enrol": Unit(
        "netboot/image/files/cluster-enrol.service", "on a node: the proof of a boot, once, before the minion"
    ),
    "cluster-stage@": Unit(
        "netboot/image/files/cluster-stage@.service",
        "on a node: one report of a boot's stage",
        without={"PrivateTmp": "it runs before there is a folder for temporary files"},
    ),
    "salt-minion": Unit(
        "netboot/image/files/salt-minion.service",
        "on a node: Salt's minion",
        "all: it applies states, which install packages, mount, set up links and start the other units",
        most=None,
        without={"*": "it applies states: whatever a state may do, it may"},
    ),
    "cluster-worker-NAME": Unit(
        "_utils/unit_sandbox.py",
        "on a node: an engine, as the user `cluster-engine`, below its keeper, which is root",
        "the keeper's, to become that user and to end its processes; with a root folder also to enter it. The engine"
        " has none of them",
        without={
            "MemoryDenyWriteExecute": _MACHINE_CODE,
            "PrivateDevices": _CARDS,
        },
    ),
    "cluster-sampler": Unit(
        "_utils/unit_sandbox.py",
        "on a node: the sampler, below its keeper",
        "counters of others' processes and of the memory controller",
        without={
            "MemoryDenyWriteExecute": "Python's foreign functions (libffi), by which it reads counters and cards",
            "PrivateDevices": "NVIDIA's cards are read through their devices; the device list has those alone",
            "ProtectProc": _PROCESSES,
        },
    ),
}


def page() -> str:
    """Return the page."""
    lines = [
        "# Units",
        "",
        "What each unit of this project may do. Exposure is what `systemd-analyze security` finds, from 0 to 10: 3.0 is"
        " the most that is allowed here. A unit has every setting of the list below, but for those with a reason;"
        " `tests/functional/test_unit_sandbox.py` renders each unit and looks.",
        "",
        "| unit | what runs in it | exposure, at most | why it has powers | what it lacks, and why |",
        "|---|---|---|---|---|",
    ]
    for name, unit in UNITS.items():
        lacks = "; ".join(
            reason if setting == "*" else f"`{setting}`: {reason}" for setting, reason in unit.without.items()
        )
        most = "not bounded" if unit.most is None else f"{unit.most:.1f}"
        lines.append(f"| `{name}` | {unit.runs} | {most} | {unit.powers or 'none'} | {lacks or 'none'} |")
    lines += [
        "",
        "What they all have: " + ", ".join(f"`{setting}`" for setting in EXPECTED) + ".",
        "",
        "Probes and the watchdog of slowdowns are units as well while they run. They measure and slow the machine"
        " (devices, control groups, queues of interfaces), so they are kept from nothing.",
        "",
    ]
    return "\n".join(lines)
