"""Delay what leaves an interface by a set time, where the kernel has no netem.

A tun device takes the packets for the peers (a host route each), this program keeps each for the delay and sends it out
of the real interface as a raw frame. Connections that are open follow the route there and back again. The device and
its routes end with this program, however it ends: that is the undo.

A program of its own, started by ``perturb``; it lives as long as its control file, which holds the seconds.

    packet_delay.py CONTROL_FILE INTERFACE ADDRESS=MAC...
"""

import collections
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
ETHERTYPE_IPV4 = 0x0800
LOOK_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 1.0
LARGEST_PACKET = 65536
PACKETS_AT_ONCE = 64
QUEUE_PACKETS = 100_000
NICENESS = -20


def main(control: str, interface: str, *peers: str) -> None:
    """Relay the peers' packets until the control file is gone."""
    lock = os.open(f"{control}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(lock, 0)
    with contextlib.suppress(OSError):
        # Its work is a few microseconds a packet; behind a busy engine it would add its own delay.
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    macs = {}
    for peer in peers:
        address, _, mac = peer.partition("=")
        macs[socket.inet_aton(address)] = bytes.fromhex(mac.replace(":", ""))
    tun, name = _open_tun(interface)
    out = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETHERTYPE_IPV4))
    out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * 2**20)
    out.setblocking(False)
    try:
        _divert(interface, name, [peer.partition("=")[0] for peer in peers])
        os.write(lock, str(os.getpid()).encode())
        _relay(control, tun, out, interface, macs)
    finally:
        os.close(tun)


def _open_tun(interface: str) -> tuple[int, str]:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    name = f"dly-{interface}"[:15]
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun, name


def _divert(interface: str, name: str, addresses: Sequence[str]) -> None:
    """Bring the device up and lead the peers' packets into it, from the address that they have."""
    with open(f"/sys/class/net/{interface}/mtu", encoding="utf-8") as file:
        mtu = file.read().strip()
    with contextlib.suppress(OSError), open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
        file.write("1")
    _ip("link", "set", "dev", name, "mtu", mtu, "txqueuelen", "10000", "up")
    for address in addresses:
        source = _source(address)
        _ip("route", "replace", f"{address}/32", "dev", name, "src", source)


def _source(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return str(probe.getsockname()[0])


def _ip(*arguments: str) -> None:
    finished = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {finished.stderr.strip()}")


def _relay(control: str, tun: int, out: socket.socket, interface: str, macs: Mapping[bytes, bytes]) -> None:
    # (due, packet): the delay is the same for all, so they stay in order.
    waiting: collections.deque[tuple[float, bytes]] = collections.deque()
    delay, looked = 0.0, -1.0
    while True:
        now = time.perf_counter()
        if now - looked >= LOOK_SECONDS:
            looked = now
            wanted = _wanted_delay(control)
            if wanted is None:
                while waiting and _send(out, interface, macs, waiting[0][1]):
                    waiting.popleft()
                return
            delay = wanted
        due = waiting[0][0] if waiting else now + LOOK_SECONDS
        if due > now:
            select.select([tun], [], [], min(due - now, LOOK_SECONDS))
        now = time.perf_counter()
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = os.read(tun, LARGEST_PACKET)
            except BlockingIOError:
                break
            if len(waiting) < QUEUE_PACKETS:
                waiting.append((now + delay, packet))
        now = time.perf_counter()
        while waiting and waiting[0][0] <= now:
            if not _send(out, interface, macs, waiting[0][1]):
                # The interface's own queue is full (a slow link): wait for room, as TCP's own would.
                select.select([], [out], [], 0.001)
                break
            waiting.popleft()


def _wanted_delay(control: str) -> float | None:
    """Return the seconds that the control file asks for; None when it is gone."""
    try:
        with open(control, encoding="utf-8") as file:
            return min(LONGEST_DELAY_SECONDS, max(0.0, float(file.read())))
    except (FileNotFoundError, ValueError):
        return None


def _send(out: socket.socket, interface: str, macs: Mapping[bytes, bytes], packet: bytes) -> bool:
    """Send a packet to the peer that it is for; return False when there is no room now."""
    mac = macs.get(packet[16:20])
    if mac is None or packet[0] >> 4 != 4:
        return True  # not a peer's: multicast of the device itself
    try:
        out.sendto(packet, (interface, ETHERTYPE_IPV4, 0, 0, mac))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ENOBUFS:  # the queueing discipline is full
            return False
        raise
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
