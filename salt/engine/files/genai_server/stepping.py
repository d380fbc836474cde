"""Step the pipeline: admit requests, compute, report; one thread, in a process of its own.

The library computes whatever it was given, beyond its own limit on sequences, so requests wait for a place here.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection

from genai_server.messages import (
    Broken,
    Cancel,
    Command,
    Progress,
    Ready,
    Refused,
    Report,
    Sampling,
    Step,
    Stop,
    Submit,
)
from genai_server.pipeline import OpenVinoPipeline, Pipeline, PipelineError, last_line
from genai_server.settings import Settings

# Of the tried step, which no client sees.
_TRIAL = 0
_TRIAL_TOKENS = (1, 1, 1, 1)


class Stepper:
    """The engine's loop; `run` returns when it is asked to stop or nobody listens any more."""

    def __init__(self, connection: Connection, pipeline: Pipeline, max_num_seqs: int) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._max_num_seqs = max_num_seqs
        self._waiting: deque[Submit] = deque()
        # Admitted, in order -> whether a step has computed it.
        self._admitted: dict[int, bool] = {}
        self._stopping = False

    def run(self) -> None:
        """Take orders and step until the end."""
        while not self._stopping:
            self._take_commands()
            self._admit()
            if self._admitted and not self._stopping:
                self._step()

    def _take_commands(self) -> None:
        """Take what has come; wait for it when there is nothing to compute."""
        while not self._stopping and (not (self._admitted or self._waiting) or self._connection.poll()):
            try:
                command: Command = self._connection.recv()
            except (EOFError, OSError):
                self._stopping = True
                return
            match command:
                case Submit():
                    self._waiting.append(command)
                case Cancel(request):
                    self._forget(request)
                case Stop():
                    self._stopping = True

    def _forget(self, request: int) -> None:
        self._waiting = deque(submitted for submitted in self._waiting if submitted.request != request)
        if self._admitted.pop(request, None) is not None:
            self._pipeline.cancel(request)

    def _admit(self) -> None:
        while self._waiting and len(self._admitted) < self._max_num_seqs:
            submitted = self._waiting.popleft()
            try:
                self._pipeline.add(submitted.request, submitted.tokens, submitted.sampling)
            except PipelineError as refusal:
                self._report(Refused(submitted.request, str(refusal)))
            else:
                self._admitted[submitted.request] = False

    def _step(self) -> None:
        began = time.monotonic()
        self._pipeline.step()
        ended = time.monotonic()
        usage = self._pipeline.usage()
        begun = sum(self._admitted.values())
        progress, ignored = self._pipeline.news()
        started = self._started(usage.scheduled, progress)
        for news in progress:
            if news.finish_reason is not None:
                self._admitted.pop(news.request, None)
        self._report(
            Step(
                began=began,
                ended=ended,
                started=started,
                scheduled=usage.scheduled,
                left_out=max(0, begun - usage.scheduled),
                cache_share=usage.cache_share,
                cache_bytes=usage.cache_bytes,
                cpu_seconds=time.process_time(),
                progress=tuple(progress),
            )
        )
        for request in ignored:
            self._admitted.pop(request, None)
            self._report(Refused(request, "the KV cache had no room; next: a shorter request, or a larger cache"))

    def _started(self, scheduled: int, progress: list[Progress]) -> tuple[int, ...]:
        """Return the requests that this step computed for the first time.

        The library says how many it computed, not which: those that it had begun come first, then prompts in the order
        in which they came (its scheduler, with prompts computed in parts).
        """
        fresh = [request for request, begun in self._admitted.items() if not begun]
        certain = {news.request for news in progress}
        count = scheduled - (len(self._admitted) - len(fresh))
        found = tuple(request for index, request in enumerate(fresh) if index < count or request in certain)
        self._admitted.update(dict.fromkeys(found, True))
        return found

    def _report(self, report: Report) -> None:
        try:
            self._connection.send(report)
        except (BrokenPipeError, OSError):
            self._stopping = True


def warm_up(pipeline: Pipeline) -> None:
    """Compute one short request: the first step compiles what the later ones use."""
    pipeline.add(_TRIAL, _TRIAL_TOKENS, Sampling(max_tokens=2, temperature=0.0, ignore_eos=True))
    for _ in range(64):
        pipeline.step()
        if any(news.finish_reason for news in pipeline.news()[0]):
            return
    raise RuntimeError("a request of 4 tokens did not end within 64 steps")


def serve(connection: Connection, settings: Settings, make: Callable[[Settings], Pipeline] = OpenVinoPipeline) -> None:
    """Load the model, say so, and step until the API server ends; the engine process's whole life."""
    began = time.monotonic()
    try:
        pipeline = make(settings)
        warm_up(pipeline)
        connection.send(Ready(pipeline.version, time.monotonic() - began))
        Stepper(connection, pipeline, settings.max_num_seqs).run()
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send(Broken(f"{type(error).__name__}: {last_line(str(error))}"))
        raise
