"""
Measure what a worker's processes do at this moment, which sets one that hangs apart from one that computes.

An engine that made no step for seconds may have a long prompt in work. Then some process of it computes, or something
passes over its links; when neither is so on any of its nodes, nothing will come any more.
"""

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import node_processes

if TYPE_CHECKING:
    from loader_dunders import __salt__

UNIT_PREFIX = "worker-"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
NETWORK_COUNTERS = "/proc/net/dev"
ECHO_REQUEST, ECHO_REPLY = 8, 0
LONGEST_SECONDS = 10.0


def __virtual__() -> str | tuple[bool, str]:
    return "worker_activity" if sys.platform == "linux" else (False, "workers run on Linux")


def measure(names: Sequence[str], seconds: float = 1.5, peers: Sequence[str] = ()) -> dict[str, Any]:
    """
    Return what workers' processes used in so many seconds, what passed over the links, and which peers are silent.

    CLI Example:

    .. code-block:: bash

        salt node0 worker_activity.measure '["tp2-0"]' 1.5 '["10.77.1.11"]'

    names
        the workers'; those that are not on this node are left out
    seconds
        how long to measure
    peers
        addresses of the ranks; each is sent an echo request over the link that leads there

    ``processes`` has of each process its ``pid``, ``name``, ``state`` of /proc and the shares of a core it used as
    ``user`` and ``system``; ``link_bytes_per_second`` counts every interface but the loopback, both ways;
    ``unreachable`` are the peers that did not answer in the time.
    """
    seconds = min(float(seconds), LONGEST_SECONDS)
    pids = [pid for name in names for pid in __salt__["supervise.processes"](UNIT_PREFIX + name)]
    began, before, bytes_before = time.monotonic(), _found(pids), _link_bytes()
    unreachable = _silent(list(peers), seconds)
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    after, bytes_after = _found(pids), _link_bytes()
    took = time.monotonic() - began
    ticks = took * TICKS_PER_SECOND
    return {
        "seconds": round(took, 3),
        "processes": [
            {
                "pid": pid,
                "name": found.name,
                "state": found.state,
                "user": round((found.user_ticks - before[pid].user_ticks) / ticks, 4),
                "system": round((found.system_ticks - before[pid].system_ticks) / ticks, 4),
            }
            for pid, found in after.items()
            if pid in before
        ],
        "link_bytes_per_second": round((bytes_after - bytes_before) / took, 1),
        "unreachable": unreachable,
    }


def _found(pids: Sequence[int]) -> dict[int, node_processes.Stat]:
    """Return the entry of each process that is there."""
    found = {pid: node_processes.stat(pid) for pid in pids}
    return {pid: entry for pid, entry in found.items() if entry is not None}


def _link_bytes() -> int:
    total = 0
    with open(NETWORK_COUNTERS, encoding="ascii") as file:
        for line in file.read().splitlines()[2:]:
            interface, _, counters = line.partition(":")
            if interface.strip() != "lo":
                values = counters.split()
                total += int(values[0]) + int(values[8])
    return total


def _silent(peers: Sequence[str], seconds: float) -> list[str]:
    """Return the addresses that answer no echo request in the time; all are asked at once, twice."""
    waiting = dict.fromkeys(peers)
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as channel:
        number = os.getpid() & 0xFFFF
        for turn in (1, 2):
            for peer in waiting:
                # An interface that is down says so at once: that is silence, too.
                with contextlib.suppress(OSError):
                    channel.sendto(_echo_request(number, turn), (peer, 0))
            end = deadline - (seconds / 2 if turn == 1 else 0.0)
            while waiting and time.monotonic() < end:
                if select.select([channel], [], [], max(0.0, end - time.monotonic()))[0]:
                    packet, (address, _) = channel.recvfrom(2048)
                    waiting = {peer: None for peer in waiting if peer != address or not _is_reply(packet, number)}
            if not waiting:
                break
    return list(waiting)


def _echo_request(number: int, turn: int) -> bytes:
    """Return an ICMP echo request (RFC 792), with its checksum (RFC 1071)."""
    body = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, number, turn)
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]


def _is_reply(packet: bytes, number: int) -> bool:
    body = packet[(packet[0] & 0x0F) * 4 :] if packet else b""
    return len(body) >= 8 and body[0] == ECHO_REPLY and struct.unpack("!H", body[4:6])[0] == number
