"""Which MAC address the kernel sends to for an address of the cluster's network."""

from __future__ import annotations

from pathlib import Path

ARP_TABLE = Path("/proc/net/arp")
_COMPLETE = 0x2


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
