"""
Read and set the links of a node through ``ip -json``.

Named ``link`` because Salt's own ``network`` modules write a distribution's files,
which a node that boots from a shared image does not keep.
"""

import json
import shutil
import subprocess


def __virtual__():
    return "link" if shutil.which("ip") else (False, "link needs the ip command (Debian package iproute2)")


def show(interface):
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


def configure(interface, address, mtu):
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


def _ip(*arguments):
    finished = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {finished.stderr.strip()}")
