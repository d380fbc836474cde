"""
Drain a port: refuse new connections to it while the requests under way end.

One table of nftables of our own, so that opening again removes just that. Requests on a connection that is open
already still come in: the engine has no way to refuse them.
"""

import shutil
import subprocess

import node_commands

TABLE = "cluster_drain"


def __virtual__() -> str | tuple[bool, str]:
    if shutil.which("nft"):
        return "drain"
    return False, "drain needs the nft command (Debian package nftables)"


def start(port: int) -> bool:
    """
    Refuse new connections to a TCP port; return True.

    CLI Example:

    .. code-block:: bash

        salt node0 drain.start 8000
    """
    stop()
    rules = (
        f"add table inet {TABLE}\n"
        f"add chain inet {TABLE} input {{ type filter hook input priority filter; policy accept; }}\n"
        f"add rule inet {TABLE} input tcp dport {int(port)} tcp flags syn / fin,syn,rst,ack reject with tcp reset\n"
    )
    node_commands.output_of(["nft", "-f", "-"], rules)
    return True


def stop() -> bool:
    """
    Accept connections again; return whether they were refused.

    CLI Example:

    .. code-block:: bash

        salt node0 drain.stop
    """
    if not active():
        return False
    node_commands.output_of(["nft", "delete", "table", "inet", TABLE])
    return True


def active() -> bool:
    """
    Return whether new connections are refused.

    CLI Example:

    .. code-block:: bash

        salt node0 drain.active
    """
    finished = subprocess.run(["nft", "list", "table", "inet", TABLE], capture_output=True, check=False)
    return finished.returncode == 0
