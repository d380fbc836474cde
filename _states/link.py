"""
Keep a node's links up with their address.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__


def __virtual__() -> str:
    return "link"


def configured(name: str, address: str, prefix_length: int, mtu: int) -> dict[str, Any]:
    """
    Make sure that interface ``name`` is up with its address and MTU.

    name
        interface
    address
        IPv4 address
    prefix_length
        of its subnet
    mtu
        bytes
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": f"{name} has {address}"}
    wanted = f"{address}/{prefix_length}"
    seen = __salt__["link.show"](name)
    if not seen:
        return {**ret, "result": False, "comment": f"this node has no interface {name}, expected by the profile"}
    changes: dict[str, Any] = {}
    if wanted not in seen["addresses"]:
        changes["address"] = {"old": ", ".join(seen["addresses"]) or None, "new": wanted}
    if seen["mtu"] != mtu:
        changes["mtu"] = {"old": seen["mtu"], "new": mtu}
    if not seen["up"]:
        changes["up"] = {"old": False, "new": True}
    if not changes:
        return ret
    ret["changes"] = changes
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"{name} would be configured"}
    try:
        __salt__["link.configure"](name, wanted, mtu)
    except RuntimeError as error:
        return {**ret, "result": False, "changes": {}, "comment": str(error)}
    ret["comment"] = f"{name} was configured"
    return ret


def meshed(
    name: str, address: str, mtu: int, peers: Mapping[str, str], through: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """
    Make sure that the node has its address on a mesh or ring and a route over each cable.

    name
        interface that has the address; made when it is not there
    address
        IPv4 address
    mtu
        bytes, the same on every cable
    peers
        peer address -> the interface whose cable leads to it
    through
        on a ring, address of a far node -> that of the neighbour which passes packets on, as this node does then
    """
    through = through or {}
    comment = f"{name} has {address} and {len(peers)} cables"
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": comment}
    cables = {interface: __salt__["link.show"](interface) for interface in sorted(set(peers.values()))}
    absent = [interface for interface, seen in cables.items() if not seen]
    if absent:
        text = f"this node has no interface {', '.join(absent)}, expected by the profile: is the cable plugged in?"
        return {**ret, "result": False, "comment": text}
    seen = __salt__["link.show"](name)
    changes: dict[str, Any] = {}
    if f"{address}/32" not in seen.get("addresses", []):
        changes["address"] = {"old": ", ".join(seen.get("addresses", [])) or None, "new": f"{address}/32"}
    for interface, found in {name: seen, **cables}.items():
        if found and (found["mtu"] != mtu or not found["up"]):
            changes[interface] = {"old": {"mtu": found["mtu"], "up": found["up"]}, "new": {"mtu": mtu, "up": True}}
    routes = __salt__["link.mesh"](name) if seen else {}
    for peer, interface in sorted(peers.items()):
        if routes.get(peer) != interface:
            changes[peer] = {"old": routes.get(peer), "new": interface}
    ways = __salt__["link.through"](name) if seen and through else {}
    for far, next_hop in sorted(through.items()):
        if ways.get(far) != next_hop:
            changes[far] = {"old": ways.get(far), "new": f"through {next_hop}"}
    for interface in cables if through else ():
        if not __salt__["link.forwards"](interface):
            changes.setdefault(interface, {"old": {"forwards": False}, "new": {"forwards": True}})
    if not changes:
        return ret
    ret["changes"] = changes
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"{name} would be configured"}
    try:
        __salt__["link.configure_mesh"](name, address, mtu, peers, through)
    except RuntimeError as error:
        return {**ret, "result": False, "changes": {}, "comment": str(error)}
    ret["comment"] = f"{name} was configured"
    return ret
