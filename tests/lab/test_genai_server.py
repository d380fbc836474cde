"""The server with the real OpenVINO GenAI, where its environment and its form of the embedded model are at hand."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bottleneck.plan.engines import model_directory
from bottleneck.profile import load_profile
from bottleneck.profile.paths import find_profile, repository_directory
from bottleneck.telemetry.prometheus_text import MetricsText
from tests.waiting import wait_for

# Runs after test_genai, whose deployment puts both there.
pytestmark = pytest.mark.lab
SECONDS = 120.0


class Server:
    """A running server, and the process that it is."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def open(self, path: str, body: Any = None) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        return connection, connection.getresponse()

    def ask(self, path: str, body: Any = None) -> tuple[int, str]:
        connection, answer = self.open(path, body)
        with contextlib.closing(connection):
            return answer.status, answer.read().decode()

    def complete(self, **body: Any) -> Any:
        status, text = self.ask("/v1/completions", {"temperature": 0, **body})
        assert status == 200, text
        return json.loads(text)

    def events(self, **body: Any) -> list[Any]:
        status, text = self.ask("/v1/completions", {"temperature": 0, "stream": True, **body})
        assert status == 200, text
        return [json.loads(line[6:]) for line in text.split("\n\n") if line and not line.endswith("[DONE]")]

    def metrics(self) -> MetricsText:
        return MetricsText.parse(self.ask("/metrics")[1])

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
        try:
            return self.ask("/health")[0] == 200
        except OSError:
            return False

    def engine_process(self) -> int:
        """Return the process that steps: the child that is no helper of multiprocessing."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        lines = {int(child): Path(f"/proc/{child}/cmdline").read_text(errors="replace") for child in children}
        (found,) = (child for child, line in lines.items() if "spawn_main" in line)
        return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    profile = load_profile(find_profile("embedded"))
    engine = profile.engines["cpu-openvino"]
    environment, model = Path(engine.directory()), model_directory(profile, engine)
    if not (environment / ".complete").exists() or not Path(model).exists():
        pytest.skip(f"{environment} or {model} is not there; next: cluster deploy genai, in a lab")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path / "server.log"
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }} {% endfor %}", encoding="utf-8")
    command = [str(environment / "bin/python"), "-m", "genai_server", "--model", model, "--port", str(port)]
    options = ["--threads", "1", "--max-num-seqs", "2", "--num-kv-blocks", "40", "--chat-template", str(template)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options],
            env={**os.environ, "PYTHONPATH": str(repository_directory() / "salt/engine/files")},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    made = Server(process, port, log)
    try:
        wait_for(made.healthy, SECONDS)
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(600)
def test_it_serves_counts_refuses_and_ends(server: Server) -> None:
    whole = server.complete(prompt="Brain stoug gra tean", max_tokens=8, ignore_eos=True)
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 8
    # A stream is the same text, an event a token; tokens for a prompt are the same as their text.
    events = server.events(
        prompt="Brain stoug gra tean", max_tokens=8, ignore_eos=True, stream_options={"include_usage": True}
    )
    assert len(events) == 9 and events[-1]["usage"] == whole["usage"]
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == whole["choices"][0]["text"]
    text = whole["choices"][0]["text"]
    (stopped,) = server.complete(prompt="Brain stoug gra tean", max_tokens=8, stop=text[2:5])["choices"]
    assert (stopped["finish_reason"], stopped["text"]) == ("stop", text[: text.find(text[2:5])])
    # The same seed chooses the same.
    drawn = [
        server.complete(prompt=[5, 6, 7], max_tokens=12, temperature=1.5, seed=seed)["choices"][0] for seed in (7, 7, 8)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    messages = [{"role": "user", "content": "hi"}]
    status, text = server.ask("/v1/chat/completions", {"messages": messages, "max_tokens": 3})
    assert status == 200 and json.loads(text)["usage"]["completion_tokens"] <= 3
    # 40 blocks of 32 tokens.
    status, text = server.ask("/v1/completions", {"prompt": "x", "max_tokens": 1500})
    assert status == 400 and "expected 1280 or fewer, the KV cache" in text

    # More at the same time than may be computed together: the others wait, and all come back.
    before = server.metrics()
    found = server.complete(prompt=[[5] * 40, [6] * 40], max_tokens=30, ignore_eos=True)
    assert found["usage"] == {"prompt_tokens": 80, "completion_tokens": 60, "total_tokens": 140}
    after = server.metrics()
    grown = {
        name: (after.value(f"vllm:{name}") or 0) - (before.value(f"vllm:{name}") or 0)
        for name in ("prompt_tokens_total", "generation_tokens_total", "iteration_tokens_total_count")
    }
    assert grown["prompt_tokens_total"] == 80 and grown["generation_tokens_total"] == 60
    assert 30 <= grown["iteration_tokens_total_count"] <= 35
    assert after.value("vllm:num_requests_running") == 0 and (after.value("vllm:kv_cache_usage_perc") or 0) > 0

    # A client that goes is computed for no longer.
    connection, answer = server.open(
        "/v1/completions", {"prompt": [5] * 4, "max_tokens": 1200, "stream": True, "ignore_eos": True}
    )
    answer.read(10)
    connection.close()
    answer.close()
    wait_for(lambda: server.metrics().value("vllm:request_success_total", reason="abort") == 1, SECONDS)
    assert (server.metrics().value("vllm:generation_tokens_total") or 0) < 1000

    # Asked to end, it lets a running request come to its end first.
    connection, answer = server.open(
        "/v1/completions", {"prompt": [5] * 4, "max_tokens": 60, "stream": True, "ignore_eos": True, "temperature": 0}
    )
    answer.read(10)
    server.process.send_signal(signal.SIGTERM)
    rest = answer.read().decode()
    assert rest.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in rest
    connection.close()
    server.process.wait(SECONDS)
    assert "ERROR" not in server.log.read_text(encoding="utf-8")


@pytest.mark.timeout(600)
def test_a_server_whose_engine_dies_fails_its_requests_and_ends(server: Server) -> None:
    connection, answer = server.open(
        "/v1/completions", {"prompt": [5] * 4, "max_tokens": 1200, "stream": True, "ignore_eos": True}
    )
    answer.read(10)
    # A step that does not end holds up nothing but requests: metrics and health are answered meanwhile.
    os.kill(server.engine_process(), signal.SIGSTOP)
    assert server.ask("/metrics")[0] == 200 and server.metrics().value("vllm:num_requests_running") == 1
    os.kill(server.engine_process(), signal.SIGKILL)
    assert "the engine's process ended" in answer.read().decode()
    connection.close()
    assert server.process.wait(SECONDS) == 1
    assert "the engine ended: the engine's process ended" in server.log.read_text(encoding="utf-8")
