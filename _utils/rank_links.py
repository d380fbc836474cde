"""
Tell a link between ranks that is cut from one that is slow, by the kernel's account of its interface and connections.

A cable that is out takes the carrier from its interface. Where packets are lost further on, what a rank sent is sent
again and again, each time after twice the wait, and nothing comes from the peer. From a peer behind a slow or a full
link acknowledgements do come, however late.
"""

import contextlib
import fcntl
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

# The kernel's table of IPv4 connections, and its numbers for one that is open and for the timer of what is sent again.
CONNECTIONS, OPEN, RETRANSMISSION = "/proc/net/tcp", "01", "01"
COUNTERS = "/proc/net/snmp"
# Sent again so often and never acknowledged: 1.4 s after it was sent first, by Linux's smallest timeout of 0.2 s.
MOST_RETRANSMISSIONS, SILENT_SECONDS = 3, 1.4
# Of linux/sockios.h and linux/if.h.
SIOCGIFFLAGS, SIOCGIFADDR, IFF_RUNNING = 0x8913, 0x8915, 0x40
_SINCE = re.compile(r"\b(?:lastrcv|lastack):(\d+)")
ASK_SECONDS = 5.0


class Connection(NamedTuple):
    """An open connection: the peer's address, and how often what is not acknowledged was sent again."""

    peer: str
    retransmissions: int


def is_suspected(address: str, sent_again: bool, table: str = CONNECTIONS) -> bool:
    """
    Return whether the link of an address may be cut: cheap enough to ask every second.

    sent_again
        whether anything was lately: the table of connections costs 2 ms, and is read only then, or without carrier
    """
    interface = without_carrier(address)
    if interface is None and not sent_again:
        return False
    found = connections(address, table)
    lost = any(each.retransmissions >= MOST_RETRANSMISSIONS for each in found)
    return lost or (bool(found) and interface is not None)


def sent_again(counters: str = COUNTERS) -> int:
    """Return how many packets of TCP this node has sent again so far; 0 where the kernel does not count them."""
    with contextlib.suppress(OSError, ValueError), open(counters, encoding="ascii") as file:
        names, values = (line.split() for line in file if line.startswith("Tcp:"))
        return int(values[names.index("RetransSegs")])
    return 0


def cut(address: str, table: str = CONNECTIONS) -> list[str]:
    """Return what shows that the link of an address is cut, a sentence each; nothing where it is not, or not known."""
    found = connections(address, table)
    interface = without_carrier(address) if found else None
    if interface is not None:
        return [f"the link {interface} of the ranks has no carrier"]
    waiting: dict[str, int] = {}
    for each in found:
        waiting[each.peer] = max(waiting.get(each.peer, 0), each.retransmissions)
    suspects = {peer for peer, count in waiting.items() if count >= MOST_RETRANSMISSIONS}
    silent = _silent_seconds(address) if suspects else {}
    return [
        f"nothing comes from {peer} over the link of the ranks, and what was sent there {waiting[peer]} times again "
        f"was not acknowledged in {silent[peer]:.1f} s"
        for peer in sorted(suspects)
        if silent.get(peer, 0.0) >= SILENT_SECONDS
    ]


def connections(address: str, table: str = CONNECTIONS) -> list[Connection]:
    """Return the open connections from an address of this node to others."""
    local = _hexadecimal(address)
    found: list[Connection] = []
    with contextlib.suppress(OSError), open(table, encoding="ascii") as file:
        for line in file.read().splitlines()[1:]:
            fields = line.split()
            if len(fields) < 7 or fields[3] != OPEN or fields[1].partition(":")[0] != local:
                continue
            peer = _dotted(fields[2].partition(":")[0])
            if peer != address:
                again = fields[5].partition(":")[0] == RETRANSMISSION
                found.append(Connection(peer, int(fields[6], 16) if again else 0))
    return found


def without_carrier(address: str) -> str | None:
    """Return the interface that has an address when it has no carrier; None where it has one, or several have it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        names = [name for name in _interfaces() if _address_of(channel, name) == address]
        if len(names) == 1 and not _flags(channel, names[0]) & IFF_RUNNING:
            return names[0]
    return None


def _interfaces() -> Iterator[str]:
    return (name for _, name in socket.if_nameindex())


def _address_of(channel: socket.socket, interface: str) -> str | None:
    with contextlib.suppress(OSError):
        found = fcntl.ioctl(channel, SIOCGIFADDR, struct.pack("16s24x", interface.encode()))
        return socket.inet_ntoa(found[20:24])
    return None


def _flags(channel: socket.socket, interface: str) -> int:
    found = fcntl.ioctl(channel, SIOCGIFFLAGS, struct.pack("16s24x", interface.encode()))
    (flags,) = struct.unpack("H", found[16:18])
    return int(flags)


def _silent_seconds(address: str) -> dict[str, float]:
    """Return for how long nothing came from each peer of an address: neither data nor an acknowledgement."""
    argv = ["ss", "-H", "-t", "-i", "-n", "-O", "state", "established", "src", address]
    try:
        text = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=ASK_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, float] = {}
    for line in text.splitlines():
        fields = line.split(None, 4)
        if len(fields) == 5:
            peer = fields[3].rpartition(":")[0]
            seconds = min((int(each) / 1000 for each in _SINCE.findall(fields[4])), default=0.0)
            found[peer] = min(found.get(peer, seconds), seconds)
    return found


def _hexadecimal(address: str) -> str:
    # The kernel writes the four bytes as one number of the machine's own order.
    return f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}"


def _dotted(number: str) -> str:
    return socket.inet_ntoa(int(number, 16).to_bytes(4, sys.byteorder))
