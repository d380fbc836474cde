"""Hold the engine's process from the API server: start it, hand requests over, pass news on, know whether it steps."""

import asyncio
import contextlib
import itertools
import multiprocessing
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Protocol

from genai_server import stepping
from genai_server.messages import Broken, Cancel, Progress, Ready, Refused, Report, Sampling, Step, Stop, Submit
from genai_server.metrics import Metrics
from genai_server.settings import Settings

END_SECONDS = 5.0


class EngineError(Exception):
    """The engine cannot do what was asked; the text is its reason."""


def _ignore(_: str) -> None:
    """Take a sentence that nobody waits for."""


class Worker(Protocol):
    """The engine's loop at the other end of a connection."""

    def alive(self) -> bool:
        """Return whether it runs."""

    def end(self) -> None:
        """End it, by force if it does not by itself."""


class EngineProcess:
    """The engine's process."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        # Forking would copy a process whose threads hold locks.
        context = multiprocessing.get_context("spawn")
        self._process: SpawnProcess = context.Process(
            target=stepping_process, args=(connection, settings), name="genai-engine", daemon=True
        )
        self._process.start()

    def alive(self) -> bool:
        return self._process.is_alive()

    def end(self) -> None:
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(END_SECONDS)


def stepping_process(connection: Connection, settings: Settings) -> None:
    """Step until the API server ends; a signal to the group is for that one to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stepping.serve(connection, settings)


@dataclass
class Request:
    """A request that the engine has, and its moments (seconds of the monotonic clock)."""

    number: int
    prompt_tokens: int
    arrived: float
    news: "asyncio.Queue[Progress | Refused]" = field(default_factory=asyncio.Queue)
    started: float | None = None
    # The engine has ended it; its answer may still be on its way to the client.
    finished: bool = False
    first: float | None = None
    last: float | None = None
    generated: int = 0


class Engine:
    """The engine as the API server sees it; everything but the reading thread runs in the event loop.

    Parameters
    ----------
    start
        Starts what steps, at the other end of the connection it is given.
    on_broken, on_ready
        Called once when the engine cannot go on, with the reason; when it can take requests, with what it is.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        start: Callable[[Connection, Settings], Worker] = EngineProcess,
        on_broken: Callable[[str], None] = _ignore,
        on_ready: Callable[[str], None] = _ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.ready = asyncio.Event()
        self.broken: str | None = None
        self._start = start
        self._on_broken, self._on_ready = on_broken, on_ready
        self._clock = clock
        self._numbers = itertools.count(1)
        self._requests: dict[int, Request] = {}
        # The last moment at which the engine did something, or had nothing to do.
        self._moved = clock()
        self._connection: Connection | None = None
        self._worker: Worker | None = None
        self._ending = False

    def start(self) -> None:
        """Start the engine; `ready` is set once it can take requests."""
        loop = asyncio.get_running_loop()
        self._connection, other = multiprocessing.Pipe()
        self._worker = self._start(other, self.settings)
        if isinstance(self._worker, EngineProcess):
            # The process has its own copy: without this its death would not be seen here.
            other.close()
        threading.Thread(target=self._read, args=(loop, self._connection), name="news", daemon=True).start()

    def end(self) -> None:
        """End the engine."""
        self._ending = True
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(Stop())
        if self._worker is not None:
            self._worker.end()

    async def generate(
        self, tokens: tuple[int, ...], sampling: Sampling, satisfied: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[Progress, None]:
        """Yield a request's news until it ends; who closes this generator cancels it.

        Parameters
        ----------
        satisfied
            Whether who closes it has had what was asked for, such as a string that ends the text: then it is no abort.

        Raises
        ------
        EngineError
            When the engine is not there or gives the request up.
        """
        if self.broken is not None or self._connection is None:
            raise EngineError(self.broken or "the engine is not started")
        request = Request(next(self._numbers), len(tokens), self._clock())
        if not self._unfinished():
            self._moved = request.arrived
        self._requests[request.number] = request
        self._gauges()
        reason = "abort"
        try:
            self._connection.send(Submit(request.number, tokens, sampling))
            while True:
                news = await request.news.get()
                if isinstance(news, Refused):
                    reason = "error"
                    raise EngineError(news.reason)
                # Counted when the engine said so: a client that goes with the last token has had all of it.
                reason = news.finish_reason or reason
                yield news
                if news.finish_reason is not None:
                    return
        finally:
            self._close(request, "stop" if reason == "abort" and satisfied() else reason, reason == "abort")

    def health(self) -> str | None:
        """Return why the server cannot serve; None when it can."""
        if self.broken is not None:
            return self.broken
        if not self.ready.is_set():
            return "the model is being loaded"
        still = self._clock() - self._moved
        unfinished = len(self._unfinished())
        if unfinished and still > self.settings.stall_seconds:
            return f"{unfinished} requests are there and no step has ended for {still:.0f} s"
        return None

    def _close(self, request: Request, reason: str, running: bool) -> None:
        if self._requests.pop(request.number, None) is None:
            return
        if running and self._connection is not None and self.broken is None:
            with contextlib.suppress(OSError):
                self._connection.send(Cancel(request.number))
        if reason in ("stop", "length") and request.first is not None and request.last is not None:
            self.metrics.decode.observe(request.last - request.first)
            self.metrics.whole.observe(request.last - request.arrived)
            self.metrics.prompt_lengths.observe(request.prompt_tokens)
            self.metrics.generated_lengths.observe(request.generated)
        self.metrics.finished(reason)
        self._gauges()

    def _read(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        while True:
            try:
                report: Report = connection.recv()
            except (EOFError, OSError):
                report = Broken("the engine's process ended")
            with contextlib.suppress(RuntimeError):
                # RuntimeError: the loop has ended.
                loop.call_soon_threadsafe(self._take, report)
            if isinstance(report, Broken):
                return

    def _take(self, report: Report) -> None:
        match report:
            case Ready(version, seconds):
                self._moved = self._clock()
                self.ready.set()
                self._on_ready(f"OpenVINO GenAI {version}, loaded in {seconds:.1f} s")
            case Step():
                self._moved = report.ended
                self._step(report)
            case Refused(number):
                if number in self._requests:
                    self._requests[number].news.put_nowait(report)
            case Broken(reason):
                self._break(reason)

    def _break(self, reason: str) -> None:
        if self.broken is not None or self._ending:
            return
        self.broken = reason
        for request in self._requests.values():
            request.news.put_nowait(Refused(request.number, reason))
        self._on_broken(reason)

    def _step(self, step: Step) -> None:
        metrics = self.metrics
        metrics.steps.inc()
        metrics.step.observe(step.ended - step.began)
        metrics.scheduled.set(step.scheduled)
        metrics.cache_share.set(step.cache_share)
        metrics.cache_bytes.set(step.cache_bytes)
        metrics.engine_cpu_seconds(step.cpu_seconds)
        if step.left_out:
            metrics.left_out.inc()
        for number in step.started:
            request = self._requests.get(number)
            if request is not None and request.started is None:
                request.started = step.began
                metrics.queue.observe(max(0.0, step.began - request.arrived))
        for news in step.progress:
            request = self._requests.get(news.request)
            if request is not None:
                self._progress(request, news, step.ended)
        self._gauges()

    def _progress(self, request: Request, news: Progress, moment: float) -> None:
        metrics = self.metrics
        metrics.generation_tokens.inc(len(news.tokens))
        if request.first is None:
            request.first = moment
            metrics.prompt_tokens.inc(request.prompt_tokens)
            metrics.first_token.observe(moment - request.arrived)
            metrics.prefill.observe(moment - (request.started or request.arrived))
        elif request.last is not None and news.tokens:
            metrics.inter_token.observe((moment - request.last) / len(news.tokens))
        request.last = moment
        request.generated += len(news.tokens)
        request.finished = news.finish_reason is not None
        request.news.put_nowait(news)

    def _gauges(self) -> None:
        unfinished = self._unfinished()
        running = sum(request.started is not None for request in unfinished)
        self.metrics.running.set(running)
        self.metrics.waiting.set(len(unfinished) - running)

    def _unfinished(self) -> list[Request]:
        return [request for request in self._requests.values() if not request.finished]
