"""Stand in for OpenVINO GenAI: a pipeline and a tokenizer that compute nothing, and a server over them on loopback.

It is no model: a request's tokens are counted up from the sum of its prompt. What it keeps of the real one is its
shape: prompts are computed in order within a budget of tokens, then one token a step for every request.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from genai_server.application import application
from genai_server.engine import Engine
from genai_server.messages import Progress, Sampling
from genai_server.metrics import Metrics
from genai_server.pipeline import PipelineError, Usage
from genai_server.requests import RequestError
from genai_server.settings import Settings
from genai_server.stepping import serve

VOCABULARY = 200
END = 2
WAIT_SECONDS = 30.0


@dataclass
class _Sequence:
    tokens: tuple[int, ...]
    sampling: Sampling
    left: int
    made: int = 0
    news: list[int] = field(default_factory=list)


class FakePipeline:
    """A pipeline with a budget of prompt tokens a step and room for so many sequences in its cache."""

    version = "fake"

    def __init__(self, budget: int = 64, room: int = 1000) -> None:
        self.budget, self.room = budget, room
        # Steps wait here, so that a test says when one ends.
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()
        self.broken: str | None = None
        self.refused: str | None = None
        self.most_together = 0
        self._sequences: dict[int, _Sequence] = {}
        self._scheduled = 0

    def add(self, request: int, tokens: tuple[int, ...], sampling: Sampling) -> None:
        if self.refused:
            raise PipelineError(self.refused)
        self._sequences[request] = _Sequence(tokens, sampling, len(tokens))

    def cancel(self, request: int) -> None:
        self._sequences.pop(request, None)

    def step(self) -> None:
        self.stepping.set()
        assert self.gate.wait(WAIT_SECONDS)
        self.stepping.clear()
        if self.broken:
            raise RuntimeError(self.broken)
        budget, self._scheduled = self.budget, 0
        self.most_together = max(self.most_together, len(self._sequences))
        for sequence in list(self._sequences.values())[: self.room]:
            taken = min(sequence.left, budget)
            if sequence.left and not taken:
                continue
            budget -= taken
            sequence.left -= taken
            self._scheduled += 1
            if not sequence.left:
                sequence.news.append((sum(sequence.tokens) + sequence.made) % VOCABULARY)
                sequence.made += 1

    @property
    def pending(self) -> int:
        """Requests that it has and that have not ended."""
        return len(self._sequences)

    def news(self) -> tuple[list[Progress], list[int]]:
        found = []
        for request, sequence in list(self._sequences.items()):
            if not sequence.news:
                continue
            tokens, sequence.news = tuple(sequence.news), []
            reason = None
            if tokens[-1] == END and not sequence.sampling.ignore_eos:
                reason = "stop"
            elif sequence.made >= sequence.sampling.max_tokens:
                reason = "length"
            if reason:
                del self._sequences[request]
            found.append(Progress(request, tokens, reason))
        return found, []

    def usage(self) -> Usage:
        return Usage(self._scheduled, cache_share=len(self._sequences) / 100, cache_bytes=4096)


class FakeTokenizer:
    """A token for each byte of a text."""

    def encode(self, text: str, special: bool) -> tuple[int, ...]:
        return ((1,) if special else ()) + tuple(byte % VOCABULARY for byte in text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token > END).decode(errors="replace")

    def chat(self, messages: Sequence[tuple[str, str]]) -> str:
        if messages[0][1] == "no template":
            raise RequestError("the model has no chat template")
        return "".join(f"<{role}>{content}" for role, content in messages)


class _Thread:
    """The stepping loop in a thread, where the server has a process."""

    def __init__(self, connection: Connection, settings: Settings, pipeline: FakePipeline) -> None:
        self._connection = connection
        self._thread = threading.Thread(target=self._run, args=(connection, settings, pipeline), daemon=True)
        self._thread.start()

    def _run(self, connection: Connection, settings: Settings, pipeline: FakePipeline) -> None:
        # A process that breaks ends with its traceback; here only its connection has to close.
        with contextlib.suppress(RuntimeError):
            serve(connection, settings, lambda _: pipeline)
        connection.close()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self._thread.join(WAIT_SECONDS)


@dataclass
class FakeServer:
    """A running server over a fake pipeline."""

    port: int
    pipeline: FakePipeline
    broken: list[str]
    headers: Mapping[str, str] = field(default_factory=dict)

    def open(self, method: str, path: str, body: object = None) -> tuple[http.client.HTTPConnection, Any]:
        """Send a request; return the connection and the answer, whose body is not read yet."""
        connection = self.send(method, path, body)
        return connection, connection.getresponse()

    def send(self, method: str, path: str, body: object = None) -> http.client.HTTPConnection:
        """Send a request; return the connection, on which nothing is read yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        text = body if isinstance(body, str | None) else json.dumps(body)
        connection.request(method, path, text, dict(self.headers))
        return connection

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Return the status and the body, as JSON where it is."""
        connection, answer = self.open(method, path, body)
        with contextlib.closing(connection):
            text = answer.read().decode()
        return answer.status, json.loads(text) if "json" in answer.headers["content-type"] else text

    def complete(self, **body: object) -> tuple[int, Any]:
        """Ask for a completion."""
        return self.ask("POST", "/v1/completions", body)

    def events(self, path: str = "/v1/completions", **body: object) -> list[Any]:
        """Return the events of a stream."""
        status, text = self.ask("POST", path, {**body, "stream": True})
        assert status == 200, text
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def metrics(self) -> dict[str, float]:
        """Return the metrics: name with labels -> value."""
        text = self.ask("GET", "/metrics")[1]
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name.replace('model="fake"', "").replace("{}", ""): float(value) for name, value in pairs}

    def until(self, wanted: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Return the metrics once they are as wanted."""
        for _ in range(3000):
            found = self.metrics()
            if wanted(found):
                return found
        raise AssertionError(f"the metrics stayed {found}")


@contextlib.contextmanager
def running(pipeline: FakePipeline | None = None, **changes: Any) -> Iterator[FakeServer]:
    """Run the server over a fake pipeline; yield it once it can serve."""
    pipeline = pipeline or FakePipeline()
    values: dict[str, Any] = {"model_folder": "/nowhere", "model_name": "fake", "vocabulary_size": VOCABULARY}
    settings = Settings(**values | {"max_model_len": 100} | changes)
    broken: list[str] = []
    metrics = Metrics(settings.model_name)
    metrics.describe(settings)
    ready = threading.Event()
    engine = Engine(
        settings,
        metrics,
        lambda connection, chosen: _Thread(connection, chosen, pipeline),
        on_broken=broken.append,
        on_ready=lambda _: ready.set(),
    )
    app = application(settings, engine, FakeTokenizer(), metrics)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert ready.wait(WAIT_SECONDS)
        yield FakeServer(listener.getsockname()[1], pipeline, broken)
    finally:
        pipeline.gate.set()
        server.should_exit = True
        thread.join(WAIT_SECONDS)
        listener.close()
