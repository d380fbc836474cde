"""A server on loopback in the shape of the Hugging Face hub, which refuses a model the way the hub does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.http_serving import serving

COMMIT, CHECKSUM = "b" * 40, "a" * 40
CONFIG = b'{"architectures": ["LlamaForCausalLM"]}'

# Status, headers and body, as the hub gives them for `org/m`.
REFUSALS: Mapping[str, tuple[int, dict[str, str], dict[str, str]]] = {
    "gated": (
        401,
        {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/m is restricted."},
        {"error": "Access to model org/m is restricted."},
    ),
    "not found": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, {}),
    "token": (
        401,
        {"X-Error-Message": "Invalid credentials in Authorization header"},
        {"error": "Invalid credentials in Authorization header"},
    ),
    "busy": (429, {"ratelimit": '"api";r=0;t=123', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}, {}),
    "broken": (500, {}, {"error": "Internal Error"}),
    "forbidden": (403, {"X-Error-Message": "Forbidden: pass a token"}, {}),
}


class _Hub(BaseHTTPRequestHandler):
    mode = ""
    file = CONFIG

    def do_GET(self) -> None:
        if self.mode in REFUSALS:
            status, headers, body = REFUSALS[self.mode]
            self._answer(status, json.dumps(body).encode(), headers)
        elif self.mode == "closing":
            self.close_connection = True
        elif self.path.startswith("/api/models/org/m/tree"):
            self._json([{"type": "file", "path": "config.json", "size": len(self.file), "oid": CHECKSUM}])
        elif self.path.startswith("/api/models/org/m"):
            siblings = [{"rfilename": "config.json", "size": len(self.file)}]
            self._json({"id": "org/m", "sha": COMMIT, "private": False, "gated": False, "siblings": siblings})
        elif "/resolve/" in self.path:
            headers = {"ETag": f'"{CHECKSUM}"', "X-Repo-Commit": COMMIT}
            cut = self.mode == "cut" and self.command == "GET"
            self._answer(200, self.file, headers, len(self.file) // 2 if cut else None)
        else:
            self._answer(404, b"{}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode())

    def _answer(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        if sent is not None:
            self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def hub(mode: str, file: bytes = CONFIG) -> Iterator[str]:
    """Serve `org/m` with one file, or refuse it; yield the server's address.

    Parameters
    ----------
    mode
        A key of `REFUSALS`; `closing` ends connections unanswered, `cut` sends half of the file; else it is served.
    file
        Content of config.json.
    """
    handler = type("Hub", (_Hub,), {"mode": mode, "file": file})
    with serving(handler) as address:
        yield address
