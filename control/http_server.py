"""Serve HTTP from threads whose number and time are bounded: whoever asks slowly costs a place, and only for a while.

Serves the exporter of the telemetry engine, which every node can reach. A request takes one thread; an address has a
few at a time, all have some, and a connection that is not done at its deadline is closed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

MOST_CONNECTIONS = 64
# A sampler asks with one connection at a time, Prometheus too; a person's browser with a few.
MOST_FROM_ONE_ADDRESS = 6
DEADLINE_SECONDS = 10.0

# As `socketserver` passes them on: the second kind of a request is that of datagrams, which nothing here serves.
Connection = socket.socket | tuple[bytes, socket.socket]
Address = tuple[str, int] | tuple[str, int, int, int]
Application = Callable[[Mapping[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True)
class Limits:
    """Limits on connections: how many are served at a time, and for how long each."""

    connections: int = MOST_CONNECTIONS
    from_one_address: int = MOST_FROM_ONE_ADDRESS
    deadline_seconds: float = DEADLINE_SECONDS


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: each line would be one that a stranger writes into the log."""


class BoundedServer(ThreadingMixIn, WSGIServer):
    """A WSGI server with a bounded number of threads."""

    daemon_threads = True
    request_queue_size = 128
    limits = Limits()

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._guard = threading.Lock()
        self._open: dict[Connection, tuple[str, float]] = {}
        self.refused = 0
        super().__init__(address, handler)

    def process_request(self, request: Connection, client_address: Address) -> None:
        """Serve a connection in a thread of its own, or close it where there are too many."""
        address = str(client_address[0])
        with self._guard:
            counts = Counter(source for source, _ in self._open.values())
            room = len(self._open) < self.limits.connections and counts[address] < self.limits.from_one_address
            if room:
                self._open[request] = (address, time.monotonic())
            else:
                self.refused += 1
        if room:
            super().process_request(request, client_address)
        else:
            super().shutdown_request(request)

    def shutdown_request(self, request: Connection) -> None:
        """Close a connection; its place is free."""
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close what is past its deadline; called by the server's loop twice a second."""
        late = time.monotonic() - self.limits.deadline_seconds
        with self._guard:
            overdue = [request for request, (_, since) in self._open.items() if since <= late]
        for request in overdue:
            stream = request if isinstance(request, socket.socket) else request[1]
            try:
                # Its thread reads the end of the stream, and closes it.
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Connection, client_address: Address) -> None:
        """Say nothing of a connection that ended in the middle: what asks wrote that, not this program."""


def serve(address: str, port: int, application: Application, limits: Limits | None = None) -> BoundedServer:
    """Serve an application from a thread of its own.

    Parameters
    ----------
    address : str
        Where to listen; nothing else is reached.
    port : int
        TCP port.
    application : callable
        WSGI.

    Raises
    ------
    OSError
        When the address is not there or the port is taken.
    """

    class Server(BoundedServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def server_bind(self) -> None:
            # WSGIServer looks the name up, which takes seconds where no resolver answers.
            socket_server_bind(self)

    Server.limits = limits or Limits()
    server = make_server(address, port, application, Server, _Handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


def socket_server_bind(server: WSGIServer) -> None:
    """Bind as `http.server.HTTPServer` does, without asking for the name of the address."""
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.socket.bind(server.server_address)
    server.server_address = server.socket.getsockname()
    server.server_name, server.server_port = str(server.server_address[0]), int(server.server_address[1])
    server.setup_environ()
