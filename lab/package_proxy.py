"""The nodes' way out: a small HTTP proxy, for installing packages and nothing else.

The control node is the gateway of the compute nodes, as on real clusters. The nodes have no
route outside; this process listens on the control node's address, inside its network
namespace, and connects from the host's. It passes CONNECT (https) and plain GET or HEAD
(apt) to a list of package hosts, and follows the host's own proxy where there is one.

    python egress.py ADDRESS PORT CONTROL_PID HOST...
"""

import asyncio
import base64
import ctypes
import os
import socket
import sys
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

_CLONE_NEWNET = 0x40000000
_LARGEST_HEAD_BYTES = 65536


def allowed(host: str, hosts: Sequence[str]) -> bool:
    """Tell whether `host` is one of `hosts` or below one of them."""
    return any(host == known or host.endswith(f".{known}") for known in hosts)


def parse_request(head: bytes) -> tuple[str, str, int, str]:
    """Return method, host, port and the rest of the target from a proxy request's first line."""
    method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    if method == "CONNECT":
        split = urlsplit(f"//{target}")
        return method, split.hostname or "", split.port or 443, ""
    split = urlsplit(target)
    if split.scheme != "http" or method not in ("GET", "HEAD"):
        raise ValueError(f"{method} {target}")
    return method, split.hostname or "", split.port or 80, f"{split.path or '/'}{'?' * bool(split.query)}{split.query}"


def origin_head(head: bytes, method: str, rest: str) -> bytes:
    """Return the head as the origin expects it: path only, one request per connection."""
    hop_by_hop = (b"proxy-", b"connection:")
    lines = [line for line in head.split(b"\r\n")[1:] if line and not line.lower().startswith(hop_by_hop)]
    return b"\r\n".join([f"{method} {rest} HTTP/1.1".encode("latin-1"), *lines, b"Connection: close", b"", b""])


class Egress:
    """The proxy; `hosts` are the only ones it reaches."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = hosts

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            method, host, port, rest = parse_request(head)
            if not allowed(host, self.hosts):
                await _refuse(writer, "403 Forbidden", f"the lab's egress does not reach {host}")
                return
            try:
                upstream = await asyncio.wait_for(self.open(method, host, port), 60)
            except (OSError, EOFError) as error:
                await _refuse(writer, "502 Bad Gateway", f"{host}:{port}: {error or 'no answer'}")
                return
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                upstream[1].write(origin_head(head, method, rest))
            await asyncio.gather(_pump(reader, upstream[1]), _pump(upstream[0], writer))
        except (ValueError, OSError, EOFError, asyncio.LimitOverrunError):
            await _refuse(writer, "400 Bad Request", "CONNECT, or GET of an http:// address")
        finally:
            writer.close()

    async def open(self, method: str, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the host, through the host machine's own proxy if it has one for it."""
        proxy = getproxies().get("https" if method == "CONNECT" else "http")
        if not proxy or proxy_bypass(host):
            return await asyncio.open_connection(host, port)
        split = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        reader, writer = await asyncio.open_connection(split.hostname, split.port or 3128)
        credentials = ""
        if split.username:
            pair = f"{unquote(split.username)}:{unquote(split.password or '')}"
            credentials = f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{credentials}\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if answer.split(b" ", 2)[1] != b"200":
            writer.close()
            raise OSError(f"the proxy {split.hostname} answered {answer.splitlines()[0].decode('latin-1')}")
        return reader, writer


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()


async def _refuse(writer: asyncio.StreamWriter, status: str, reason: str) -> None:
    try:
        body = f"{reason}\n".encode()
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
    except OSError:
        return


def listen_in(pid: int, address: str, port: int) -> socket.socket:
    """Return a socket listening in the network namespace of `pid`; this process stays in its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    home, there = (os.open(f"/proc/{which}/ns/net", os.O_RDONLY) for which in ("self", str(pid)))
    try:
        for step, descriptor in ((True, there), (False, home)):
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), f"network namespace of process {pid}")
            if step:
                listener = socket.create_server((address, port), backlog=64)
    finally:
        os.close(home)
        os.close(there)
    return listener


async def main(address: str, port: int, control: int, hosts: Sequence[str]) -> None:
    """Serve until the control node ends."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(os.pidfd_open(control), ended.set)
    listener = listen_in(control, address, port)
    server = await asyncio.start_server(Egress(hosts).serve, sock=listener, limit=_LARGEST_HEAD_BYTES)
    print("ready", flush=True)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, sys.stdout.fileno())
    async with server:
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
