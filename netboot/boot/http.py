"""The boot service on its socket: the control node's address on the cluster's interface, and nowhere else."""

from __future__ import annotations

import asyncio
import collections
import logging
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from netboot.boot import enrolment, images, metrics, models
from netboot.boot.dhcp_log import Reader, Tail
from netboot.boot.service import BootService, clean

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# At one time from one address: a node fetches one file at a time.
REQUESTS_PER_SOURCE = 16
CONNECTIONS_PER_SOURCE = 32
# A request's headers have to be there so long after its connection was made, or after the request before it: what
# arrives a byte at a time (slow loris) is cut off. aiohttp calls it the keep-alive timeout and counts it like this.
HEADER_SECONDS = 10.0
BODY_SECONDS = 10.0
LOG_INTERVAL_SECONDS = 0.5
TICK_SECONDS = 2.0
LISTEN_AGAIN_SECONDS = 5.0
_SHORT = 64


WIRE: web.AppKey[Wire] = web.AppKey("wire")


def application(service: BootService) -> web.Application:
    """Return the HTTP application of `service`."""
    wire = Wire(service)
    app = web.Application(client_max_size=enrolment.CLAIM_BYTES, middlewares=[wire.guard])
    app[WIRE] = wire
    app.router.add_get("/script", wire.script)
    app.router.add_get("/images/{digest}/{name}", wire.image)
    app.router.add_get("/layers/{name}", wire.layer)
    app.router.add_get("/models/{model}/{name}", wire.model)
    app.router.add_get("/failed", wire.failed)
    app.router.add_post("/stage", wire.stage)
    app.router.add_post("/enrol", wire.enrol)
    app.router.add_get("/metrics", wire.metrics)
    return app


class _SentFile(web.FileResponse):
    """A file that tells whether it went out whole."""

    def __init__(self, path: Path, sent: Callable[[str], None]) -> None:
        super().__init__(path, headers={"Content-Type": "application/octet-stream"})
        self._sent = sent

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the headers and the file, once."""
        if self.prepared:
            return await web.StreamResponse.prepare(self, request)
        try:
            writer = await super().prepare(request)
        except (ConnectionError, asyncio.CancelledError):
            self._sent("the transfer broke off")
            raise
        if request.method == "GET" and self.status in (200, 206):
            self._sent("")
        return writer


class Wire:
    """The handlers."""

    def __init__(self, service: BootService) -> None:
        self._service = service
        self._under_way: collections.Counter[str] = collections.Counter()
        self._answering: set[asyncio.BaseTransport | None] = set()

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Bound what one source can have under way."""
        source = request.remote or ""
        if self._under_way[source] >= REQUESTS_PER_SOURCE:
            return web.Response(status=429, headers={"Retry-After": "1"})
        self._under_way[source] += 1
        transport = request.transport
        self._answering.add(transport)
        try:
            return await handler(request)
        finally:
            self._answering.discard(transport)
            self._under_way[source] -= 1
            if not self._under_way[source]:
                del self._under_way[source]

    def close_excess(self, server: web.Server) -> None:
        """Close what one source has open beyond its share: the oldest connections on which nothing was asked yet.

        Who asks at once is served, whatever else comes from the same address.
        """
        opened: dict[str, list[asyncio.Transport]] = {}
        for connection in server.connections:
            if isinstance(connection.peername, tuple) and isinstance(connection.transport, asyncio.Transport):
                opened.setdefault(connection.peername[0], []).append(connection.transport)
        for source, transports in opened.items():
            excess = len(transports) - CONNECTIONS_PER_SOURCE
            if excess <= 0:
                continue
            idle = [transport for transport in transports if transport not in self._answering]
            for transport in idle[:excess]:
                transport.abort()
            log.warning("Closed %d idle connections of %s", min(excess, len(idle)), source)

    async def script(self, request: web.Request) -> web.StreamResponse:
        """Answer iPXE."""
        query = request.query
        platform = " ".join(clean(query.get(key, ""))[:_SHORT] for key in ("platform", "arch", "uuid")).strip()
        text = await self._service.script(query.get("mac", "")[:_SHORT], request.remote or "", platform)
        # The nonce is in it.
        return web.Response(text=text, headers={"Cache-Control": "no-store"})

    async def image(self, request: web.Request) -> web.StreamResponse:
        """Send a file of an image."""
        name = request.match_info["name"]
        path = images.image_file(self._service.images_directory, request.match_info["digest"], name)
        return await self._send(request, path, name)

    async def layer(self, request: web.Request) -> web.StreamResponse:
        """Send a layer."""
        name = request.match_info["name"]
        return await self._send(request, images.layer_file(self._service.images_directory, name), name)

    async def model(self, request: web.Request) -> web.StreamResponse:
        """Send a file of a model that a node is to have."""
        path = models.model_file(
            self._service.models_directory, request.match_info["model"], request.match_info["name"]
        )
        if path is None:
            return web.Response(status=404)
        response = _SentFile(path, lambda _trouble: None)
        # As for an image: a file on its way is a request under way.
        await response.prepare(request)
        return response

    async def _send(self, request: web.Request, path: Path | None, name: str) -> web.StreamResponse:
        boot = request.query.get("boot", "")[:_SHORT]
        if path is None:
            self._service.fetched(boot, clean(name)[:_SHORT], "404, the control node has no such file")
            return web.Response(status=404)
        response = _SentFile(path, lambda trouble: self._service.fetched(boot, name, trouble))
        # Here, and not after the guard: a file on its way is a request under way.
        await response.prepare(request)
        return response

    async def failed(self, request: web.Request) -> web.StreamResponse:
        """Take that iPXE could not start the kernel."""
        error = clean(request.query.get("error", ""))[:_SHORT]
        self._service.fetched(request.query.get("boot", "")[:_SHORT], "iPXE", f"could not start the kernel ({error})")
        return web.Response(text="noted\n")

    async def stage(self, request: web.Request) -> web.StreamResponse:
        """Take a node's report."""
        body = await self._body(request)
        try:
            fields = urllib.parse.parse_qs(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=8)
        except ValueError:
            return web.Response(status=400)
        form = {key: values[-1] for key, values in fields.items()}
        taken = self._service.report(
            form.get("boot", "")[:_SHORT],
            form.get("stage", ""),
            form.get("detail", ""),
            form.get("failed", "") not in ("", "0"),
            request.remote or "",
        )
        return web.Response(status=204 if taken else 403)

    async def enrol(self, request: web.Request) -> web.StreamResponse:
        """Take a claim."""
        body = await self._body(request)
        try:
            answer = await self._service.claim(body, request.remote or "")
        except OSError:
            return web.json_response({"error": "try again"}, status=503)
        if answer is None:
            # One answer for every reason: the reasons are on the control node.
            return web.json_response({"error": "refused"}, status=403)
        return web.json_response(answer)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """Answer the control node's own Prometheus."""
        if request.remote not in (self._service.settings.address, "127.0.0.1"):
            return web.Response(status=403)
        body = metrics.exposition(self._service.state, self._service.clock(), self._service.settings.deadlines_seconds)
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _body(self, request: web.Request) -> bytes:
        try:
            return await asyncio.wait_for(request.read(), BODY_SECONDS)
        except TimeoutError:
            raise web.HTTPRequestTimeout from None


class _WellFormed(logging.Filter):
    """Keeps from the log what a stranger can have written there at will: a request that is none, one that broke off."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is about a fault of ours."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return not isinstance(error, HttpProcessingError | ConnectionError)


server_log = logging.getLogger(f"{__name__}.server")
server_log.addFilter(_WellFormed())


def runner_of(service: BootService) -> web.AppRunner:
    """Return what puts `service` on a socket."""
    return web.AppRunner(application(service), access_log=None, logger=server_log, keepalive_timeout=HEADER_SECONDS)


def close_excess(runner: web.AppRunner) -> None:
    """Close the connections that a source has open beyond its share."""
    if runner.server is not None:
        runner.app[WIRE].close_excess(runner.server)


async def listen(service: BootService, address: str, port: int) -> web.AppRunner:
    """Listen on `address`, as soon as it is up."""
    runner = runner_of(service)
    await runner.setup()
    logged = False
    while True:
        try:
            await web.TCPSite(runner, address, port, backlog=256).start()
        except OSError as error:
            if not logged:
                log.error("The boot service cannot listen on %s:%s yet: %s", address, port, error)
            logged = True
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)
        else:
            log.info("The boot service listens on %s:%s", address, port)
            return runner


async def run(service: BootService, dhcp_log: Path, sources: list[Callable[[], Awaitable[None]]]) -> None:
    """Serve until cancelled: requests, dnsmasq's log, deadlines, and further `sources` of events."""
    runner = await listen(service, service.settings.address, service.settings.port)
    tail, reader = Tail(dhcp_log), Reader()
    tail.skip()
    try:
        async with asyncio.TaskGroup() as tasks:
            for source in sources:
                tasks.create_task(_repeated(source))
            ticked = 0.0
            while True:
                for line in tail.lines():
                    seen = reader.read(line)
                    if seen:
                        service.dhcp(seen)
                tail.bound()
                try:
                    service.obey()
                except OSError as error:
                    log.error("The commands that were left cannot be read, they are looked at again: %s", error)
                close_excess(runner)
                if time.monotonic() - ticked >= TICK_SECONDS:
                    ticked = time.monotonic()
                    service.tick()
                await asyncio.sleep(LOG_INTERVAL_SECONDS)
    finally:
        service.save()
        await runner.cleanup()


async def _repeated(source: Callable[[], Awaitable[None]]) -> None:
    """Call `source` again and again; a failure is logged and does not end the service."""
    while True:
        try:
            await source()
        except Exception as error:
            log.error("%s: %s", getattr(source, "__qualname__", source), error)
        await asyncio.sleep(TICK_SECONDS)
