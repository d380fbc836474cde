"""The load generator that needs no engine: against a streaming server on loopback, its result read as vLLM's is."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bottleneck.load.client import ClientResult, client_result
from bottleneck.load.results import headline
from bottleneck.load.workload import Load, client_arguments, progress
from control import streaming_load


class Engine(BaseHTTPRequestHandler):
    """Streams as many tokens as are asked for; the third request and those after it fail when `failing`."""

    bodies: list[dict[str, Any]]
    keys: list[str | None]
    failing: bool

    def do_POST(self) -> None:
        self.keys.append(self.headers["Authorization"])
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        if self.failing and len(self.bodies) > 2:
            self.send_error(500, "no room")
            return
        self.send_response(200)
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self._event({"choices": [{"text": "a", "finish_reason": None}]})
        self._event({"choices": [{"text": "", "finish_reason": "length"}]})
        self._event({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    handler = type("Served", (Engine,), {"bodies": [], "keys": [], "failing": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def handler(server: ThreadingHTTPServer) -> Any:
    return server.RequestHandlerClass


def arguments_for(server: ThreadingHTTPServer, folder: Path, load: Load) -> list[str]:
    """Return what a bench gives a load generator."""
    url = f"http://127.0.0.1:{server.server_address[1]}"
    return client_arguments(
        load, base_url=url, model="m", tokenizer="/none", result_directory=str(folder), result_name="1.json"
    )


def sent(server: ThreadingHTTPServer, folder: Path, load: Load) -> tuple[ClientResult, dict[str, Any]]:
    """Send a load."""
    assert streaming_load.main(arguments_for(server, folder, load)) == 0
    document = json.loads((folder / "1.json").read_text())
    return client_result(document), document


@pytest.mark.starts_programs
def test_as_a_program_it_needs_nothing_beside_itself(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    """As a bench starts it: in the folder of the run, without this project on the path."""
    command = [sys.executable, "-I", streaming_load.__file__]
    command += arguments_for(server, tmp_path, Load(4, 2, 3, seed=1, concurrency=2))
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    assert progress(finished.stderr) == (3, 3)
    assert len(client_result(json.loads((tmp_path / "1.json").read_text())).good) == 3


def test_its_result_is_read_as_that_of_the_engines_generator(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    found, document = sent(server, tmp_path, Load(8, 5, 6, seed=3, concurrency=2))
    assert (len(found.good), found.failed, found.broken, found.concurrency) == (6, 0, 0, 2)
    assert {(request.input_tokens, request.output_tokens) for request in found.good} == {(8, 5)}
    assert {len(request.itl_seconds) for request in found.good} == {4}
    numbers = headline(document)
    assert numbers["completed"] == 6 and numbers["output_tokens_per_second"] > 0
    bodies = handler(server).bodies
    assert all(len(body["prompt"]) == 8 and body["ignore_eos"] and body["stream"] for body in bodies)
    assert len({tuple(body["prompt"]) for body in bodies}) == 6, "no prompt is sent twice"


def test_requests_that_come_by_themselves(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    found, document = sent(server, tmp_path, Load(4, 2, 5, seed=1, rate_per_second=100.0))
    assert len(found.good) == 5 and found.request_rate == 100.0 and document["max_concurrency"] is None


def test_what_failed_is_counted_with_its_reason(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    handler(server).failing = True
    found, document = sent(server, tmp_path, Load(4, 2, 4, seed=1, concurrency=1))
    assert (len(found.good), found.failed) == (2, 2)
    assert [error[:3] for error in document["errors"]] == ["", "", "500", "500"]


@pytest.mark.parametrize(("key", "header"), [("secret", "Bearer secret"), (None, None)])
def test_a_key_is_taken_from_the_environment(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, header: str | None
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    sent(server, tmp_path, Load(4, 1, 1, seed=1, concurrency=1))
    assert handler(server).keys == [header]


def test_the_same_seed_sends_the_same_prompts(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    for seed in (5, 5, 6):
        sent(server, tmp_path, Load(4, 1, 1, seed=seed, concurrency=1))
    first, second, third = (body["prompt"] for body in handler(server).bodies)
    assert first == second != third
