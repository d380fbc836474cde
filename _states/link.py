"""
Keep a node's links up with their address.
"""


def __virtual__():
    return "link"


def configured(name, address, prefix_length, mtu):
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
    ret = {"name": name, "changes": {}, "result": True, "comment": f"{name} has {address}"}
    wanted = f"{address}/{prefix_length}"
    seen = __salt__["link.show"](name)
    if not seen:
        return {**ret, "result": False, "comment": f"this node has no interface {name}, expected by the profile"}
    changes = {}
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
