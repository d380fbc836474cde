"""Run `vllm bench serve`; a request whose kept-alive connection the server had closed is sent once more.

    python reconnecting.py bench serve ...

Run by the engine's own Python, so it imports the standard library alone beside vLLM. A server may close an idle
connection just when the next request is sent on it: no byte of an answer comes, and an HTTP client then sends the
request again on a new connection (RFC 9112, section 9.3.1). aiohttp, with which vLLM's client sends, does so for
requests that are idempotent by their method alone, and a completion is a POST. A request's time begins when it was
first sent. How many were sent again is in the result as `reconnected`.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

BACKEND = "openai"
# What aiohttp raises when a connection ends before the first byte of an answer; in the midst of one it raises others.
CLOSED = ("ServerDisconnectedError", "ClientConnectionResetError", "ClientOSError")

Sender = Callable[..., Awaitable[Any]]


class Reconnecting:
    """A request function of vLLM's client that sends a request a second time when its connection had been closed.

    Parameters
    ----------
    send : Sender
        vLLM's own: request_func_input, session and pbar (or None) to an output with `success`, `error`, `ttft`,
        `latency` and `start_time`.
    """

    def __init__(self, send: Sender) -> None:
        self._send = send
        self.count = 0

    async def __call__(self, request_func_input: Any, session: Any, pbar: Any = None) -> Any:
        """Send a request, and again where its connection was closed before any byte of an answer.

        vLLM's client calls it with these names.
        """
        output = await self._send(request_func_input=request_func_input, session=session, pbar=None)
        if not output.success and not output.ttft and _was_closed(output.error):
            self.count += 1
            first = output.start_time
            output = await self._send(request_func_input=request_func_input, session=session, pbar=None)
            waited = output.start_time - first
            output.start_time = first
            if output.success:
                output.ttft += waited
                output.latency += waited
        if pbar:
            pbar.update(1)
        return output


def _was_closed(error: str) -> bool:
    """Return whether a traceback ends with an error of `CLOSED`."""
    lines = [line for line in error.splitlines() if line.strip()]
    return bool(lines) and any(name in lines[-1].partition(":")[0] for name in CLOSED)


def result_file(arguments: Sequence[str]) -> Path | None:
    """Return where the client saves its result; None when its arguments name none.

    Parameters
    ----------
    arguments : Sequence[str]
        After `vllm`.
    """
    given = dict(itertools.pairwise(arguments))
    name = given.get("--result-filename")
    return Path(given.get("--result-dir", "."), name) if name else None


def add_count(path: Path, count: int) -> None:
    """Add how many requests were sent again to a result; one that is not there is left.

    Parameters
    ----------
    path : Path
        The client's result, a JSON object.
    count : int
        Requests that were sent a second time.
    """
    if not path.exists():
        return
    document = {**json.loads(path.read_text(encoding="utf-8")), "reconnected": count}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Be `vllm` with this program's arguments."""
    from vllm.benchmarks.lib import endpoint_request_func  # type: ignore[import-not-found]
    from vllm.entrypoints.cli.main import main as vllm  # type: ignore[import-not-found]

    sending = Reconnecting(endpoint_request_func.ASYNC_REQUEST_FUNCS[BACKEND])
    endpoint_request_func.ASYNC_REQUEST_FUNCS[BACKEND] = sending
    path = result_file(sys.argv[1:])
    try:
        vllm()
    finally:
        if path is not None:
            add_count(path, sending.count)


if __name__ == "__main__":
    main()
