"""The control node asks engines itself: whatever proxy it has for packages knows nothing of the cluster's addresses."""

import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from control import engine, engine_key, records


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200 if self.path == "/metrics" else 404, b"of " + self.path.encode())

    def do_POST(self) -> None:
        if self.path == "/key":
            self.answer(200, str(self.headers["Authorization"]).encode())
            return
        self.answer(200, self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    # Nothing listens on the discard port.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_an_engine_is_asked_without_the_proxy(address: str) -> None:
    assert engine.ask(f"{address}/metrics", None, 3.0) == "of /metrics"
    assert engine.ask(f"{address}/v1/completions", {"prompt": [1]}, 3.0) == '{"prompt": [1]}'


def test_what_it_refuses_is_reported_with_its_own_words(address: str) -> None:
    with pytest.raises(CommandExecutionError, match="/nope: 404 of /nope"):
        engine.ask(f"{address}/nope", None, 3.0)
    with pytest.raises(CommandExecutionError, match="refused"):
        engine.ask("http://127.0.0.1:9/metrics", None, 3.0)


def test_the_key_is_made_once_and_brought_by_who_asks(address: str, tmp_path: Path) -> None:
    opts = {"cluster_directory": str(tmp_path)}
    assert engine.ask(f"{address}/key", {}, 3.0) == "None"
    seen = engine_key.asking(opts)(f"{address}/key", {}, 3.0)
    assert seen == f"Bearer {engine_key.key(opts)}" and len(engine_key.key(opts)) == 64
    assert stat.S_IMODE(engine_key.path(opts).stat().st_mode) == 0o600


def test_a_person_may_put_a_key_of_their_own_there(tmp_path: Path) -> None:
    opts = {"cluster_directory": str(tmp_path)}
    engine_key.path(opts).parent.mkdir()
    engine_key.path(opts).write_text("a-word-of-a-persons-own\n")
    assert engine_key.key(opts) == "a-word-of-a-persons-own"
    for wrong in ("", "short\n", "of several words and long\n"):
        engine_key.path(opts).write_text(wrong)
        with pytest.raises(records.RecordError, match=r"engine-api\.key: expected one word of 16 characters"):
            engine_key.key(opts)
