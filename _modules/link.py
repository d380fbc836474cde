"""
Read and set the links of a node through ``ip -json``.

Named ``link`` because Salt's own ``network`` modules write a distribution's files,
which a node that boots from a shared image does not keep.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import node_commands


def __virtual__() -> str | tuple[bool, str]:
    return "link" if shutil.which("ip") else (False, "link needs the ip command (Debian package iproute2)")


def show(interface: str) -> dict[str, Any]:
    """
    Return an interface's addresses, MTU, state and MAC, or an empty dict if there is none.

    CLI Example:

    .. code-block:: bash

        salt '*' link.show eth0
    """
    finished = subprocess.run(
        ["ip", "-json", "address", "show", "dev", interface], capture_output=True, text=True, check=False
    )
    if finished.returncode:
        return {}
    (found,) = [entry for entry in json.loads(finished.stdout) if entry]
    return {
        "interface": interface,
        "mac": found.get("address"),
        "mtu": found["mtu"],
        "up": "UP" in found["flags"],
        "carrier": "LOWER_UP" in found["flags"],
        "addresses": [f"{entry['local']}/{entry['prefixlen']}" for entry in found["addr_info"]],
    }


def configure(interface: str, address: str, mtu: int) -> dict[str, Any]:
    """
    Bring an interface up with an address (``a.b.c.d/n``) and an MTU in bytes.

    CLI Example:

    .. code-block:: bash

        salt node0 link.configure usb4 10.77.1.10/24 9000
    """
    _ip("link", "set", "dev", interface, "mtu", str(mtu), "up")
    if address not in show(interface)["addresses"]:
        _ip("address", "add", address, "dev", interface)
    return show(interface)


def mesh(interface: str) -> dict[str, str]:
    """
    Return what a full mesh's address is reached over: peer address -> interface, or an empty dict.

    CLI Example:

    .. code-block:: bash

        salt node0 link.mesh mesh0
    """
    own = [address.partition("/")[0] for address in show(interface).get("addresses", [])]
    routes = json.loads(node_commands.output_of(["ip", "-json", "-4", "route", "show"]) or "[]")
    return {route["dst"]: route["dev"] for route in routes if route.get("prefsrc") in own and route.get("dev")}


def configure_mesh(interface: str, address: str, mtu: int, peers: Mapping[str, str]) -> dict[str, str]:
    """
    Give a node one address on a full mesh of cables, and a route to each peer over the cable that leads there.

    CLI Example:

    .. code-block:: bash

        salt node0 link.configure_mesh mesh0 10.42.1.10 9000 '{"10.42.1.11": "thunderbolt0"}'

    interface
        made to hold the address: cables come and go, the address stays
    address
        the node's address on the mesh
    mtu
        largest packet in bytes, the same on every cable
    peers
        peer address -> the interface whose cable leads to it
    """
    if not show(interface):
        try:
            _ip("link", "add", "dev", interface, "type", "dummy")
        except RuntimeError:
            # A kernel without dummy devices: a bridge without ports holds an address too, but has no carrier.
            _ip("link", "add", "dev", interface, "type", "bridge")
    configure(interface, f"{address}/32", mtu)
    for peer, cable in sorted(peers.items()):
        _ip("link", "set", "dev", cable, "mtu", str(mtu), "up")
        _ip("route", "replace", f"{peer}/32", "dev", cable, "scope", "link", "src", address)
    return mesh(interface)


def _ip(*arguments: str) -> None:
    node_commands.output_of(["ip", *arguments])
