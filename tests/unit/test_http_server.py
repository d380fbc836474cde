"""The exporter's server: slow and many requests of one address cost a few threads, for a while, and nobody else."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from control import http_server
from tests.waiting import wait_for

LIMITS = http_server.Limits(connections=12, from_one_address=4, deadline_seconds=1.0)


def application(environment: Mapping[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
    respond("200 OK", [("Content-Type", "text/plain")])
    return [str(environment["PATH_INFO"]).encode()]


@pytest.fixture
def serve() -> Iterator[Callable[..., http_server.BoundedServer]]:
    with ExitStack() as stack:

        def begin(limits: http_server.Limits) -> http_server.BoundedServer:
            server = http_server.serve("127.0.0.1", 0, application, limits)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return server

        yield begin


def ask(server: http_server.BoundedServer, source: str = "127.0.0.1") -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30, source_address=(source, 0))
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
    finally:
        connection.close()


def half_request(server: http_server.BoundedServer, source: str = "127.0.0.1") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.server_port), 30, (source, 0))
    made.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    return made


def test_four_hundred_half_requests_hold_few_threads_and_nobody_up(serve: Any) -> None:
    server = serve(http_server.Limits(from_one_address=4, deadline_seconds=3600.0))
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(half_request(server))
        wait_for(lambda: server.refused >= 396, 60, "what is too much is closed", 0.05)
        assert threading.active_count() <= before + 4
        assert ask(server, "127.0.0.2") == b"/metrics"


def test_a_request_that_is_not_done_at_its_deadline_gives_its_place_back(serve: Any) -> None:
    server = serve(LIMITS)
    with ExitStack() as stack:
        made = [stack.enter_context(half_request(server)) for _ in range(4)]
        # Each is closed from the other side, although it goes on sending a little.
        for each in made:
            each.settimeout(60)
            assert each.recv(1) == b""
    wait_for(lambda: not server._open, 60, "the places are free", 0.05)
    assert ask(server) == b"/metrics"


def test_all_addresses_together_have_a_bound_too(serve: Any) -> None:
    server = serve(http_server.Limits(connections=6, from_one_address=4, deadline_seconds=3600.0))
    with ExitStack() as stack:
        for last in range(2, 12):
            stack.enter_context(half_request(server, f"127.0.0.{last}"))
        wait_for(lambda: server.refused >= 4, 60, "what is too much is closed", 0.05)
        assert len(server._open) <= 6
    wait_for(lambda: not server._open, 60, "the places are free", 0.05)
    assert ask(server) == b"/metrics"


def test_rubbish_ends_one_connection(serve: Any) -> None:
    server = serve(LIMITS)
    for rubbish in (b"\x00" * 100, b"GET\r\n\r\n", b"A" * 70_000, b"GET / HTTP/9.9\r\n\r\n", b"\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port), 30) as made:
            made.sendall(rubbish)
            made.shutdown(socket.SHUT_WR)
    wait_for(lambda: not server._open, 60, "the places are free", 0.05)
    assert ask(server) == b"/metrics"
