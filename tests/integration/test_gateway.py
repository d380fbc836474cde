"""A real HAProxy in front of two heads on the loopback, told what serves as the runners tell it."""

from __future__ import annotations

import http.client
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bottleneck.plan import gateway as plan
from bottleneck.profile import load_profile
from bottleneck.profile.paths import repository_directory
from control import engine_key, gateway
from tests.waiting import free_port, wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not shutil.which("haproxy") or os.geteuid() != 0, reason="needs the Debian package haproxy, as root"
    ),
]
PATIENCE = 60.0


class Head(ThreadingHTTPServer):
    """An engine's head: it streams what the test puts into its queue, and counts what it was asked."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Answers)
        self.asked: queue.Queue[str] = queue.Queue()
        self.chunks: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone: that is what the test does."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Head

    def do_GET(self) -> None:
        # An engine that has no such path.
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.put(self.path)
        if self.path == "/v1/silent":
            self.server.chunks.get()
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while self.path == "/v1/stream" and (chunk := self.server.chunks.get()):
            self._chunk(chunk)
        self._chunk(b"")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


class Gateway:
    """HAProxy as the profile has it, on the loopback."""

    def __init__(self, folder: Path, heads: dict[str, int]) -> None:
        self.port = free_port()
        self.opts = {"cluster_directory": str(folder), gateway.OPTION: str(folder / "admin.sock")}
        self.key = engine_key.key(self.opts)
        profile = load_profile(repository_directory() / "profiles" / "embedded.yaml")
        update = {"address": "127.0.0.1", "gateway_port": self.port}
        changed = profile.model_copy(update={"control": profile.control.model_copy(update=update)})
        for path, text in plan.files(changed, str(engine_key.path(self.opts)), folder).items():
            for node, place in plan.heads(profile).items():
                text = text.replace(place, f"127.0.0.1:{heads[node]}")
            path.write_text(text.replace(plan.SOCKET, self.opts[gateway.OPTION]))
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            ["haproxy", "-W", "-db", "-f", str(folder / plan.CONFIGURATION)], stdout=self.log, stderr=self.log
        )

    def ask(self, path: str, method: str = "POST", key: str | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        connection.request(method, path, "{}" if method == "POST" else None, headers if key != "" else {})
        return connection.getresponse()

    def states(self) -> dict[str, str]:
        return {node: head["state"] for node, head in gateway.status(self.opts)["heads"].items()}

    def waiting(self) -> bool:
        """Tell whether a client's request is kept while no head serves."""
        (text,) = gateway._ask(self.opts, ["show sess"])
        return "fe=clients be=<NONE>" in text

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.log.close()


@pytest.fixture
def heads() -> Iterator[dict[str, Head]]:
    made = {"node0": Head(), "node1": Head()}
    yield made
    for each in made.values():
        each.close()


@pytest.fixture
def made(heads: dict[str, Head], tmp_path: Path) -> Iterator[Gateway]:
    tmp_path.chmod(0o755)
    gateway_ = Gateway(tmp_path, {node: each.server_port for node, each in heads.items()})
    try:
        wait_for(lambda: gateway.status(gateway_.opts)["up"], what="HAProxy's socket")
        assert gateway.serve(gateway_.opts, heads) is None
        yield gateway_
    finally:
        gateway_.close()


def body(answer: http.client.HTTPResponse) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.read())
    return found


def assert_failed(asked: Future[http.client.HTTPResponse]) -> None:
    """Look that a request was ended without an answer of the head: HAProxy 3.0 closes its connection, 2.6 says 502."""
    try:
        answer = asked.result()
    except http.client.RemoteDisconnected:
        return
    assert answer.status == 502 and "send the request again" in body(answer)["error"]["message"]


def test_requests_spread_over_the_heads(made: Gateway, heads: dict[str, Head]) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(made.ask, "/v1/silent") for _ in range(4)]
        for head in heads.values():
            # Each has two of the four at the same time: the connections are counted.
            assert [head.asked.get(timeout=PATIENCE) for _ in range(2)] == ["/v1/silent"] * 2
            for _ in range(2):
                head.chunks.put(None)
        answers = [each.result(PATIENCE) for each in waiting]
    assert [answer.status for answer in answers] == [200] * 4


def test_tokens_pass_as_they_come(made: Gateway, heads: dict[str, Head]) -> None:
    assert gateway.drain(made.opts, ["node1"]) is None
    head = heads["node0"]
    head.chunks.put(b"data: 1\n\n")
    answer = made.ask("/v1/stream")
    # The second is not made before the first has arrived.
    assert answer.readline() == b"data: 1\n"
    head.chunks.put(b"data: 2\n\n")
    assert answer.readline() == b"\n" and answer.readline() == b"data: 2\n"
    head.chunks.put(None)
    assert answer.read() == b"\n"


def test_a_request_needs_the_key_and_health_does_not(made: Gateway, heads: dict[str, Head]) -> None:
    for wrong in ("", "another"):
        refused = made.ask("/v1/x", key=wrong)
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "cluster endpoint" in body(refused)["error"]["message"]
    assert made.ask("/v1/x").status == 200
    health = made.ask("/health", "GET", key="")
    assert (health.status, body(health)) == (200, {"status": "ok", "heads": 2})
    assert b"haproxy_server_status" in made.ask("/metrics", "GET", key="").read()
    assert sum(head.asked.qsize() for head in heads.values()) == 1
    # A person's own key counts from the next deploy on.
    before, new = made.key, "a-word;of-a-persons-own"
    engine_key.path(made.opts).write_text(new)
    assert gateway.serve(made.opts, heads) is None
    assert [made.ask("/v1/x", key=key).status for key in (before, new)] == [401, 200]


def test_what_a_head_has_fails_at_once_when_it_is_withdrawn_and_what_comes_waits(
    made: Gateway, heads: dict[str, Head]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        silent = [pool.submit(made.ask, "/v1/silent") for _ in range(2)]
        for head in heads.values():
            assert head.asked.get(timeout=PATIENCE) == "/v1/silent"
        # Another head's request goes on.
        assert gateway.withdraw(made.opts, ["node1"], awaited=True) is None
        (failed,) = wait_for(lambda: [each for each in silent if each.done()], PATIENCE)
        assert_failed(failed)
        heads["node0"].chunks.put(None)
        (other,) = [each for each in silent if each is not failed]
        assert other.result(PATIENCE).status == 200

    # A stream is cut, not ended as if it were whole.
    heads["node0"].chunks.put(b"data: 1\n\n")
    stream = made.ask("/v1/stream")
    assert stream.readline() == b"data: 1\n"
    assert gateway.withdraw(made.opts, ["node0"], awaited=True) is None
    with pytest.raises(http.client.IncompleteRead):
        stream.read()
    assert made.states() == {"node0": "MAINT", "node1": "MAINT"}

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(made.ask, "/v1/late")
        wait_for(made.waiting, what="the request to be kept")
        assert not late.done()
        assert gateway.serve(made.opts, ["node1"]) is None
        assert late.result(PATIENCE).status == 200
    assert heads["node1"].asked.get(timeout=PATIENCE) == "/v1/late"


def test_where_no_head_is_awaited_nobody_waits(made: Gateway, heads: dict[str, Head]) -> None:
    assert gateway.withdraw(made.opts, heads, awaited=True) is None
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(made.ask, "/v1/x")
        wait_for(made.waiting, what="the request to be kept")
        # It is given up: who waits is told as well.
        assert gateway.withdraw(made.opts, heads, awaited=False) is None
        answers = [kept.result(PATIENCE), made.ask("/v1/x"), made.ask("/health", "GET", key="")]
    assert [answer.status for answer in answers] == [503] * 3
    assert all("cluster status" in body(answer)["error"]["message"] for answer in answers)
    assert answers[0].headers["Retry-After"] == "10"


def test_a_head_that_is_drained_takes_nothing_new_and_ends_what_it_has(made: Gateway, heads: dict[str, Head]) -> None:
    assert gateway.drain(made.opts, ["node1"]) is None
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(made.ask, "/v1/silent")
        assert heads["node0"].asked.get(timeout=PATIENCE) == "/v1/silent"
        assert gateway.drain(made.opts, ["node0"]) is None
        assert made.ask("/v1/x").status == 503
        assert gateway.status(made.opts)["heads"]["node0"] == {"state": "DRAIN", "requests": 1}
        heads["node0"].chunks.put(None)
        assert under_way.result(PATIENCE).status == 200
    assert gateway.serve(made.opts, ["node0"]) is None
    assert made.ask("/v1/x").status == 200


def test_a_head_that_ends_by_itself_is_left_out_and_taken_back(made: Gateway, heads: dict[str, Head]) -> None:
    port = heads["node0"].server_port
    heads["node0"].close()
    # Nobody notices: refused connections go to the other head.
    assert [made.ask("/v1/x").status for _ in range(4)] == [200] * 4
    wait_for(lambda: made.states() == {"node0": "DOWN", "node1": "UP"}, what="the head to be seen down")
    heads["node0"] = Head(port)
    wait_for(lambda: made.states() == {"node0": "UP", "node1": "UP"}, what="the head to be seen up")


def test_a_reload_reads_the_key_anew_and_cuts_nothing(made: Gateway, heads: dict[str, Head], tmp_path: Path) -> None:
    assert gateway.drain(made.opts, ["node1"]) is None
    heads["node0"].chunks.put(b"data: 1\n\n")
    stream = made.ask("/v1/stream")
    assert stream.readline() == b"data: 1\n"
    before, new = made.key, "a-word-of-a-persons-own"
    engine_key.path(made.opts).write_text(new)
    # Before, its first process takes no signals; systemd waits for the same moment.
    wait_for(lambda: b"Loading success" in (tmp_path / "log").read_bytes(), what="the start to be over")
    made.process.send_signal(signal.SIGUSR2)
    wait_for(lambda: made.ask("/v1/x", key=new).status == 200, what="the key to be read")
    assert made.ask("/v1/x", key=before).status == 401
    heads["node0"].chunks.put(b"data: 2\n\n")
    heads["node0"].chunks.put(None)
    assert stream.read() == b"\ndata: 2\n\n"


def test_commands_are_roots_and_requests_are_served_by_another(made: Gateway, tmp_path: Path) -> None:
    found = (tmp_path / "admin.sock").stat()
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o600)
    first = made.process.pid
    (worker,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    status = Path(f"/proc/{worker}/status").read_text()
    (users,) = (line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
    assert "0" not in users
    assert not any(made.key in Path(f"/proc/{pid}/cmdline").read_text() for pid in (first, worker))
