"""
Hold new connections to a port off while what is under way ends.

One table of nftables of our own, so that opening again removes just that. Requests on a connection that is open
already still come in: the engine has no way to refuse them.
"""

import shutil
import subprocess

TABLE = "cluster_admission"


def __virtual__():
    if shutil.which("nft"):
        return "admission"
    return False, "admission needs the nft command (Debian package nftables)"


def close(port):
    """
    Refuse new connections to a TCP port; return True.

    CLI Example:

    .. code-block:: bash

        salt node0 admission.close 8000
    """
    open()
    rules = (
        f"add table inet {TABLE}\n"
        f"add chain inet {TABLE} input {{ type filter hook input priority filter; policy accept; }}\n"
        f"add rule inet {TABLE} input tcp dport {int(port)} tcp flags syn / fin,syn,rst,ack reject with tcp reset\n"
    )
    _nft(["-f", "-"], rules)
    return True


def open():
    """
    Let connections in again; return whether they were held off.

    CLI Example:

    .. code-block:: bash

        salt node0 admission.open
    """
    if not closed():
        return False
    _nft(["delete", "table", "inet", TABLE])
    return True


def closed():
    """
    Return whether new connections are held off.

    CLI Example:

    .. code-block:: bash

        salt node0 admission.closed
    """
    finished = subprocess.run(["nft", "list", "table", "inet", TABLE], capture_output=True, check=False)
    return finished.returncode == 0


def _nft(arguments, text=None):
    finished = subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"nft: {finished.stderr.strip().splitlines()[0] if finished.stderr.strip() else 'failed'}")
