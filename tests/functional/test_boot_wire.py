"""Bound each source at the boot service: connections that ask nothing, slow requests, files on their way."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path

import pytest

from netboot.boot import http
from netboot.image.store import Store
from tests.boot_bench import Bench, bench

DEADLINE = 60.0
# More than the sockets between two processes take up while nobody reads.
LARGE_BYTES = 64 << 20


def connect(service: Bench) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=DEADLINE)


def ask(connection: socket.socket, path: str) -> HTTPResponse:
    """Ask for a file; its beginning has come, the rest is read when it is wanted."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    response = HTTPResponse(connection)
    response.begin()
    return response


def status(connection: socket.socket, path: str) -> int:
    response = ask(connection, path)
    response.read()
    return response.status


def is_closed(connection: socket.socket) -> bool:
    """Tell whether the other side has closed; what it still said does not matter."""
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def is_cut_off(connection: socket.socket) -> bool:
    """Send headers for ever, one at a time; tell whether that was ended."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        with suppress(OSError):
            connection.sendall(b"X-Slow: 1\r\n")
        if is_closed(connection):
            return True
    return False


@pytest.mark.parametrize("before", ["", "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_headers_that_come_a_line_at_a_time_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """At first, and after a request on the same connection: aiohttp's limits of size would be reached much later."""
    monkeypatch.setattr(http, "HEADER_SECONDS", 1.0)
    with bench(tmp_path) as service, connect(service) as slow:
        if before:
            slow.sendall(before.encode())
            assert slow.recv(4096).startswith(b"HTTP/1.1 404")
        slow.sendall(b"GET /script HTTP/1.1\r\n")
        assert is_cut_off(slow)


def test_connections_that_ask_nothing_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_PER_SOURCE", 8)
    with bench(tmp_path) as service, ExitStack() as opened:
        idle = [opened.enter_context(connect(service)) for _ in range(40)]
        # The service has taken them all once the last is served.
        assert status(idle[-1], "/nothing") == 404
        service.close_excess()
        # The oldest go, the newest stay.
        assert [is_closed(each) for each in idle] == [True] * 32 + [False] * 8
        assert status(idle[-1], "/nothing") == 404


def test_a_file_on_its_way_is_not_cut_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_PER_SOURCE", 2)
    monkeypatch.setattr(http, "REQUESTS_PER_SOURCE", 2)
    with bench(tmp_path) as service, ExitStack() as opened:
        assert service.image
        folder = Store(service.images).folder(service.image.digest)
        with (folder / "root.squashfs").open("r+b") as file:
            file.truncate(LARGE_BYTES)
        path = f"/images/{service.image.digest}/root.squashfs"
        slow = [opened.enter_context(connect(service)) for _ in range(2)]
        answers = [ask(each, path) for each in slow]
        assert [each.status for each in answers] == [200, 200]
        assert status(opened.enter_context(connect(service)), path) == 429
        for _ in range(10):
            opened.enter_context(connect(service))
        # The service has taken them all once one after them is answered.
        assert status(opened.enter_context(connect(service)), path) == 429
        service.close_excess()
        assert [len(each.read()) for each in answers] == [LARGE_BYTES, LARGE_BYTES]
