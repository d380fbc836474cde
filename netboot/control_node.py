"""Make a control node's slice of its profile: the pillar of the states in salt/control."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

from bottleneck.plan import prometheus
from bottleneck.plan.master import STATE_DIRECTORY, master_settings
from bottleneck.profile.types import Profile
from netboot.boot import rendering
from netboot.boot.settings import Settings

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
            "interface": control.interface,
            "address": control.address,
            "addresses": addresses,
            "subnet": network.subnet,
            "tree": str(tree),
            "loaded": str(tree.with_name("loaded")),
            "programs": programs,
            "boot_port": boot.port if boot else None,
            "broadcast": str(ipaddress.IPv4Network(network.subnet).broadcast_address),
            # For the nodes alone: Salt, and where samplers ask what is stored (and Prometheus what was measured).
            "node_ports": [PUBLISH_PORT, REQUEST_PORT, profile.telemetry.exporter_port],
            # The API, for who may ask whichever deployment.
            "gateway_port": control.gateway_port,
            "api_clients": _api_clients(profile),
            # DHCP and TFTP, and the time for the nodes.
            "udp_ports": [*([67, 69, 4011] if boot else []), 123],
            "master": control_master_settings(profile, tree),
            "prometheus": prometheus.configuration_text(profile),
            "prometheus_address": PROMETHEUS_ADDRESS,
        },
        "hosts": {node.hostname: node.links[control.network].address for node in profile.nodes.values()},
    }


def _api_clients(profile: Profile) -> list[str]:
    """Return the networks that may connect to the gateway; none lies in another, which nft would refuse."""
    named = {network for deployment in profile.deployments.values() for network in deployment.api_clients}
    return [str(network) for network in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, named))]


def control_master_settings(profile: Profile, tree: Path) -> dict[str, Any]:
    """Return /etc/salt/master of a control node."""
    settings = master_settings(profile, str(profile.path), tree)
    return {
        **settings,
        "publish_port": PUBLISH_PORT,
        "ret_port": REQUEST_PORT,
        "worker_threads": 5,
        "cluster_images": f"{STATE_DIRECTORY}/images",
        "cluster_models": f"{STATE_DIRECTORY}/models",
        # A key is accepted by the boot service, for one boot of one node, and by nobody else.
        "engines": [*settings["engines"], *([{"boot": {}}] if profile.boot else [])],
    }
