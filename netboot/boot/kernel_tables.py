"""Ask the kernel about a node: the MAC address behind its address, and whether it is connected."""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

ARP_TABLE = Path("/proc/net/arp")
TCP_TABLE = Path("/proc/net/tcp")
_COMPLETE = 0x2
_ESTABLISHED = "01"


def mac_of(address: str, table: Path = ARP_TABLE) -> str | None:
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


def connection(address: str, port: int, table: Path = TCP_TABLE) -> int | None:
    """Return the far port of the TCP connection that a machine at `address` holds to `port` here, or None.

    A machine that lost its power still holds one, until the kernel notices; one that has none has no minion
    that works. Another far port is another connection: the machine has come back since.
    """
    # The kernel prints an address as one number in the order of its own bytes.
    far = f"{struct.unpack('=I', socket.inet_aton(address))[0]:08X}"
    found = re.search(rf":{port:04X} {far}:([0-9A-F]{{4}}) {_ESTABLISHED} ", table.read_text())
    return int(found[1], 16) if found else None
