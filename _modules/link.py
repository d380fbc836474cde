"""
Read and set the links of a node through ``ip -json``.

Named ``link`` because Salt's own ``network`` modules write a distribution's files,
which a node that boots from a shared image does not keep.
"""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
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
    Return what the address of a mesh or ring is reached over: peer address -> interface, or an empty dict.

    CLI Example:

    .. code-block:: bash

        salt node0 link.mesh mesh0
    """
    return {route["dst"]: route["dev"] for route in _routes(interface) if "gateway" not in route}


def through(interface: str) -> dict[str, str]:
    """
    Return, on a ring, which neighbour passes packets on: address of a far node -> address of the neighbour.

    CLI Example:

    .. code-block:: bash

        salt node0 link.through ring0
    """
    return {route["dst"]: route["gateway"] for route in _routes(interface) if "gateway" in route}


def _routes(interface: str) -> list[dict[str, Any]]:
    own = [address.partition("/")[0] for address in show(interface).get("addresses", [])]
    routes = json.loads(node_commands.output_of(["ip", "-json", "-4", "route", "show"]) or "[]")
    return [route for route in routes if route.get("prefsrc") in own and route.get("dev")]


def forwards(interface: str) -> bool:
    """
    Return whether packets that come in over an interface are passed on.

    CLI Example:

    .. code-block:: bash

        salt node0 link.forwards thunderbolt0
    """
    with contextlib.suppress(OSError):
        return _forwarding(interface).read_text().strip() == "1"
    return False


def _forwarding(interface: str) -> Path:
    return Path("/proc/sys/net/ipv4/conf") / interface / "forwarding"


def configure_mesh(
    interface: str, address: str, mtu: int, peers: Mapping[str, str], through: Mapping[str, str] | None = None
) -> dict[str, str]:
    """
    Give a node one address on a mesh or ring of cables, and a route to each peer over the cable that leads there.

    CLI Example:

    .. code-block:: bash

        salt node0 link.configure_mesh mesh0 10.42.1.10 9000 '{"10.42.1.11": "thunderbolt0"}'
        salt node0 link.configure_mesh ring0 10.42.1.10 9000 '{"10.42.1.11": "eth1", "10.42.1.13": "eth2"}' \\
            '{"10.42.1.12": "10.42.1.11"}'

    interface
        made to hold the address: cables come and go, the address stays
    address
        the node's address on the mesh
    mtu
        largest packet in bytes, the same on every cable
    peers
        peer address -> the interface whose cable leads to it
    through
        on a ring, address of a far node -> that of the neighbour which passes packets on; this node then passes on
        what comes over its cables, too, and nothing that comes over other interfaces
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
    for far, next_hop in sorted((through or {}).items()):
        cable = peers[next_hop]
        _ip("route", "replace", f"{far}/32", "via", next_hop, "dev", cable, "onlink", "src", address)
    for cable in sorted(set(peers.values())) if through else ():
        _forwarding(cable).write_text("1\n")
    return mesh(interface)


def _ip(*arguments: str) -> None:
    node_commands.output_of(["ip", *arguments])
