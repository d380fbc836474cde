"""What the kernel knows of a node: the MAC address behind its address, and whether it is connected."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

ARP_TABLE = Path("/proc/net/arp")
TCP_TABLE = Path("/proc/net/tcp")
_COMPLETE = 0x2
_ESTABLISHED = "01"


def neighbour_mac(address: str, table: Path = ARP_TABLE) -> str | None:
    """Return the MAC address behind `address`, or None when the kernel does not know one."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) >= 4 and words[0] == address and int(words[2], 16) & _COMPLETE:
            return words[3].lower()
    return None


def connected(address: str, port: int, table: Path = TCP_TABLE) -> bool:
    """Return whether a machine at `address` holds a TCP connection to `port` here.

    A machine that lost its power still does, until the kernel notices; one that is not
    connected has no minion that works.
    """
    # The kernel prints an address as one number in the order of its own bytes.
    far = f"{struct.unpack('=I', socket.inet_aton(address))[0]:08X}"
    for line in table.read_text().splitlines()[1:]:
        words = line.split()
        near_port, far_address = words[1].rpartition(":")[2], words[2].partition(":")[0]
        if words[3] == _ESTABLISHED and far_address == far and int(near_port, 16) == port:
            return True
    return False
