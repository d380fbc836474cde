"""What a control node is told of its profile: the pillar of the states in salt/control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bottleneck.plan import prometheus
from bottleneck.profile.types import Profile
from netboot.boot import rendering
from netboot.boot.settings import Settings

STATE_DIRECTORY = "/var/lib/cluster"
LOG_DIRECTORY = "/var/log/cluster"
PUBLISH_PORT, REQUEST_PORT = 4505, 4506
PROMETHEUS_ADDRESS = "127.0.0.1:9090"


class ControlNodeError(ValueError):
    """A profile whose control node cannot be set up."""


def control_pillar(profile: Profile, tree: Path, programs: str) -> dict[str, Any]:
    """Return what the states of the control node are rendered with.

    Parameters
    ----------
    tree : Path
        Where the synced tree is; a link that stays the same from sync to sync.
    programs : str
        Folder of the environment's programs.

    Raises
    ------
    ControlNodeError
        When the profile names no interface for the cluster.
    """
    control = profile.control
    network = profile.networks[control.network]
    if control.interface is None:
        raise ControlNodeError(
            f"profile {profile.name}: control.interface is missing; expected the cluster's interface"
        )
    boot = Settings.of(profile) if profile.boot else None
    addresses = [f"{control.address}/{network.prefix_length}"]
    if boot and boot.dhcp == "serve":
        addresses.append(rendering.advertised_address(boot))
    return {
        "control": {
            "profile": str(profile.path),
            "hostname": control.hostname,
            "interface": control.interface,
            "address": control.address,
            "addresses": addresses,
            "subnet": network.subnet,
            "tree": str(tree),
            "loaded": str(tree.with_name("loaded")),
            "programs": programs,
            "boot_port": boot.port if boot else None,
            "tcp_ports": [PUBLISH_PORT, REQUEST_PORT, *([boot.port] if boot else [])],
            # DHCP and TFTP, and the time for the nodes.
            "udp_ports": [*([67, 69, 4011] if boot else []), 123],
            "master": master_settings(profile, tree),
            "prometheus": prometheus.configuration_text(profile),
            "prometheus_address": PROMETHEUS_ADDRESS,
        },
        "hosts": {node.hostname: node.links[control.network].address for node in profile.nodes.values()},
    }


def master_settings(profile: Profile, tree: Path) -> dict[str, Any]:
    """Return /etc/salt/master of a control node."""
    engines: list[dict[str, Any]] = [{"perf": {}}]
    if profile.boot:
        engines.append({"boot": {}})
    return {
        "user": "root",
        "interface": profile.control.address,
        "publish_port": PUBLISH_PORT,
        "ret_port": REQUEST_PORT,
        # A key is accepted by the boot service, for one boot of one node, and by nobody else.
        "auto_accept": False,
        "open_mode": False,
        "enable_fqdns_grains": False,
        "worker_threads": 5,
        "timeout": 10,
        "log_level": "warning",
        "log_level_logfile": "info",
        "file_roots": {"base": [f"{tree}/salt"]},
        "pillar_roots": {"base": [f"{tree}/pillar"]},
        "module_dirs": [str(tree)],
        "cluster_profile": str(profile.path),
        "cluster_directory": STATE_DIRECTORY,
        "cluster_store": f"{STATE_DIRECTORY}/store.db",
        "cluster_images": f"{STATE_DIRECTORY}/images",
        "reactor": reactor_entries(tree),
        # Every refresh loads the runners again, about a second of CPU; 60 s is Salt's default.
        "reactor_refresh_interval": 86400,
        "engines": engines,
    }


def reactor_entries(tree: Path) -> list[dict[str, list[str]]]:
    """Return the reactors of reactor/reactor.conf, their file names made whole."""
    data = yaml.safe_load((tree / "reactor" / "reactor.conf").read_text(encoding="utf-8"))
    entries = data.get("reactor", []) if isinstance(data, dict) else data
    return [{tag: [_whole(tree, name) for name in names] for tag, names in entry.items()} for entry in entries]


def _whole(tree: Path, name: str) -> str:
    if "://" in name or name.startswith("/"):
        return name
    beside = tree / "reactor" / name
    return str(beside if beside.exists() else tree / name)
