"""A worker as the node's module starts it: whose process it is, what it has of the API's key, and what is open to whom.

The engine is a program of a few lines, which serves what its environment and its own process are.
"""

import json
import os
import stat
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_environment
import pytest

from tests.waiting import free_port, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="another user is root's to become"),
]

KEY = "a-key-of-this-test-alone"
USER = 47710
# Serves as an engine does: health to all, the rest to those who bring the key.
ENGINE = """#!{python}
import http.server, json, os, sys
file = sys.argv[2] if len(sys.argv) > 2 else None
key = open(file).readline().strip() if file else os.environ["API_KEY"]
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        allowed = self.path == "/health" or self.headers["Authorization"] == "Bearer " + key
        self.send_response(200 if allowed else 401)
        self.end_headers()
        seen = {{"user": os.getuid(), "groups": os.getgroups(), "home": os.environ["HOME"], "cwd": os.getcwd()}}
        self.wfile.write(b"vllm:num_requests_running 3\\n" if self.path == "/metrics" else json.dumps(seen).encode())
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


class Node:
    """A node's worker module with folders of the test, and an engine that is installed there."""

    def __init__(self, loaders: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.port, self.guards = folder, free_port(), list[Any]()
        self.key_file, self.home = folder / "run" / "engine" / "api.key", folder / "home"
        engine = folder / "engine"
        (engine / "bin").mkdir(parents=True)
        (engine / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
        (engine / "bin" / "serve").write_text(ENGINE.format(python=engine / "bin" / "python"))
        (engine / "bin" / "serve").chmod(0o755)
        (engine / ".complete").write_text("")
        self.home.mkdir()
        os.chown(self.home, USER, USER)
        # pytest's folders are closed to others.
        for parent in (folder, *folder.parents[:2]):
            parent.chmod(0o755)
        self.start_function = loaders.modules["worker.start"]
        self.module = loaders.modules.worker
        names = self.start_function.__globals__
        supervise = loaders.modules["supervise.start"].__globals__
        account = engine_environment.Account(USER, USER, (USER,), str(self.home))
        monkeypatch.setattr(names["engine_environment"], "account", lambda: account)
        monkeypatch.setitem(names, "WORKER_FILE", str(folder / "run" / "worker.json"))
        monkeypatch.setitem(names, "LOG_DIRECTORY", str(folder / "log"))
        monkeypatch.setitem(supervise, "DIRECTORY", str(folder / "run" / "supervise"))
        own = {
            name: loaders.modules[name]
            for name in (
                *("engine.installed", "supervise.start", "supervise.stop", "supervise.status"),
                *("supervise.units", "supervise.processes"),
            )
        }
        salt = {**own, "engine.guard": self.guards.append, "pillar.items": lambda **_: {"engine_api_key": KEY}}
        monkeypatch.setitem(names, "__salt__", salt)

    def worker(self, variable: str | None) -> dict[str, Any]:
        argv = [str(self.port)] if variable else [str(self.port), str(self.key_file)]
        return {
            **{"name": "a-0", "program": "bin/serve", "argv": argv, "environment": {}, "head": True, "engine": "vllm"},
            **{"api_address": "127.0.0.1", "api_port": self.port, "log_name": "a.log", "memory_share": 0.5},
            "link_address": "127.0.0.1",
            "watch": {
                "ready": {"path": "/health", "status": 200},
                "metrics": {"dialect": "vllm", "path": "/metrics"},
                "guards": [{"ports": [self.port], "ephemeral": False, "allowed": ["127.0.0.1"]}],
                "api_key": {"file": str(self.key_file), "variable": variable},
            },
        }

    def start(self, variable: str | None) -> dict[str, Any]:
        self.start_function(self.worker(variable), {"directory": str(self.folder / "engine"), "preload": []})
        ready: dict[str, Any] = wait_for(self.ready)
        return ready

    def ready(self) -> dict[str, Any] | None:
        found: dict[str, Any] = self.module.status("a-0")
        assert found["stage"] != "failed", Path(found["log"]).read_text()
        return found if found["stage"] == "ready" else None

    def seen(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=20) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@pytest.fixture
def node(loaders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    made = Node(loaders, tmp_path, monkeypatch)
    yield made
    made.module.stop()


@pytest.mark.parametrize("variable", ["API_KEY", None])
def test_an_engine_has_its_own_user_and_the_key(node: Node, variable: str | None) -> None:
    started = node.start(variable)
    seen = node.seen()
    assert (seen["user"], seen["groups"], seen["home"]) == (USER, [USER], str(node.home))
    # The module itself asks with the key, which the engine's metrics are not given without.
    assert started["requests"] == {"running": 3.0}
    found = node.key_file.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (USER, 0o600)
    assert KEY.encode() not in Path(f"/proc/{started['pid']}/cmdline").read_bytes()
    records = [path.read_text() for path in (node.folder / "run").rglob("*.json")]
    assert records and not any(KEY in text for text in records)


def test_its_ports_are_guarded_and_its_key_is_there_while_it_runs(node: Node) -> None:
    node.start("API_KEY")
    assert node.key_file.exists()
    assert node.guards == [node.worker(None)["watch"]["guards"]]
    node.module.stop("a-0")
    assert node.guards[1:] == [[]]
    assert not node.key_file.exists()


def test_without_a_key_in_the_pillar_nothing_is_started(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    salt = {**node.start_function.__globals__["__salt__"], "pillar.items": lambda **_: {}}
    monkeypatch.setitem(node.start_function.__globals__, "__salt__", salt)
    with pytest.raises(RuntimeError, match="pillar has no engine_api_key"):
        node.start_function(node.worker(None), {"directory": str(node.folder / "engine")})
    assert node.module.status() == {}


def test_what_systemd_says_of_an_end_is_the_reason(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start("API_KEY")
    names = node.start_function.__globals__
    ended = {**names["__salt__"]["supervise.status"]("worker-a-0"), "running": False, "result": "oom-kill"}
    monkeypatch.setitem(names, "__salt__", {**names["__salt__"], "supervise.status": lambda _: ended})
    found = node.module.status("a-0")
    assert found["stage"] == "failed" and "more memory than memory_share" in found["reason"]
