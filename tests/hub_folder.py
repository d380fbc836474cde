"""A server on loopback that has one folder as the hub has a model: listing, digests, ranges, a second server."""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from netboot.image.manifest import file_of
from tests.http_serving import serving

COMMIT = "c" * 40
# From here on the hub keeps a file as a large one: with its SHA-256, and on another server.
LARGE_BYTES = 1000
PART_BYTES = 1 << 20


@dataclass
class HubFolder:
    """The folder, and what is asked of it.

    Attributes
    ----------
    break_after
        The first connection that sends so many bytes of a file is cut; None when all is sent.
    tokens
        What came as Authorization: to the hub, and to the server that it leads to.
    """

    folder: Path
    break_after: int | None = None
    ranges: list[str] = field(default_factory=list)
    tokens: dict[str, set[str]] = field(default_factory=lambda: {"hub": set(), "store": set()})
    sent_bytes: int = 0

    def __post_init__(self) -> None:
        self._siblings: list[dict[str, Any]] = []

    def siblings(self) -> list[dict[str, Any]]:
        """Return the files as the hub's API lists them."""
        if not self._siblings:
            for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
                name, size = path.relative_to(self.folder).as_posix(), path.stat().st_size
                each: dict[str, Any] = {"rfilename": name, "size": size, "blobId": "0" * 40}
                if size >= LARGE_BYTES:
                    each["lfs"] = {"sha256": file_of(path).sha256, "size": size, "pointerSize": 134}
                else:
                    each["blobId"] = hashlib.sha1(b"blob %d\0" % size + path.read_bytes()).hexdigest()
                self._siblings.append(each)
        return self._siblings


@contextmanager
def serve(model: HubFolder, source: str = "org/m") -> Iterator[str]:
    """Serve a folder as the model `source`; yield the hub's address."""
    with _server(lambda request: _store(model, request)) as store:
        listing, files = f"/api/models/{source}/revision/main", f"/{source}/resolve/{COMMIT}/"

        def hub(request: BaseHTTPRequestHandler) -> None:
            model.tokens["hub"].add(request.headers.get("Authorization", ""))
            path = urllib.parse.urlsplit(request.path)
            if path.path == listing:
                body = json.dumps({"id": source, "sha": COMMIT, "siblings": model.siblings()}).encode()
                _head(request, 200, {"Content-Length": str(len(body))})
                request.wfile.write(body)
            elif path.path.startswith(files):
                name = urllib.parse.unquote(path.path.removeprefix(files))
                if (model.folder / name).stat().st_size < LARGE_BYTES:
                    _file(model, request, name)
                else:
                    _head(request, 302, {"Location": f"{store}/{path.path.removeprefix(files)}", "Content-Length": "0"})
            else:
                _head(request, 404, {"X-Error-Message": "Repository not found", "Content-Length": "0"})

        with _server(hub) as address:
            yield address


def _store(model: HubFolder, request: BaseHTTPRequestHandler) -> None:
    model.tokens["store"].add(request.headers.get("Authorization", ""))
    _file(model, request, urllib.parse.unquote(request.path[1:]))


def _file(model: HubFolder, request: BaseHTTPRequestHandler, name: str) -> None:
    path, asked = model.folder / name, request.headers.get("Range")
    size = path.stat().st_size
    begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
    if asked:
        model.ranges.append(f"{name} {asked}")
    _head(request, 206 if asked else 200, {"Content-Length": str(size - begin)})
    with path.open("rb") as source:
        source.seek(begin)
        if model.break_after is not None and size - begin > model.break_after:
            request.wfile.write(source.read(model.break_after))
            model.sent_bytes += model.break_after
            model.break_after = None
            request.close_connection = True
            return
        while part := source.read(PART_BYTES):
            request.wfile.write(part)
            model.sent_bytes += len(part)


def _head(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()


@contextmanager
def _server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Whoever asked may be gone: that is what some tests are about.
            with suppress(ConnectionError):
                answer(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    with serving(Handler) as address:
        yield address
