"""Requests whose kept-alive connection a server closes: sent once more, as they were first sent, and counted."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bottleneck.load.reconnecting import Reconnecting, add_count, result_file
from bottleneck.load.results import headline, merge_results

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntoken"
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ntoken"
NONE = b""


@dataclass
class Output:
    """Outcome of a request, as vLLM's client notes it."""

    success: bool = False
    error: str = ""
    ttft: float = 0.0
    latency: float = 0.0
    start_time: float = 0.0


async def sent(request_func_input: str, session: aiohttp.ClientSession, pbar: Any) -> Output:
    """Post a request as vLLM's client does: every error is text in the output."""
    assert pbar is None, "counted once, by who sends again"
    output = Output(start_time=time.perf_counter())
    try:
        async with session.post(request_func_input, json={}) as response:
            async for _ in response.content.iter_any():
                output.ttft = output.ttft or time.perf_counter() - output.start_time
            output.latency = time.perf_counter() - output.start_time
            output.success = True
    except Exception:
        output.error = "".join(traceback.format_exception(*sys.exc_info()))
    return output


class Bar:
    """Counts."""

    count = 0

    def update(self, number: int) -> None:
        """Count."""
        self.count += number


def served(answers: list[bytes], use: Callable[[str, aiohttp.ClientSession], Awaitable[None]]) -> None:
    """Have a server give these answers in turn, over as many connections as it takes; after a short one it closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answers and (head := await reader.readuntil(b"\r\n\r\n")):
            length = next(line for line in head.splitlines() if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split()[1]))
            content = answers.pop(0)
            writer.write(content)
            await writer.drain()
            if content != WHOLE:
                break
        writer.close()

    async def whole() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with aiohttp.ClientSession() as session:
            await use(f"http://127.0.0.1:{port}/", session)
        server.close()

    asyncio.run(whole())


def test_a_request_on_a_connection_that_was_closed_is_sent_once_more() -> None:
    sending, bar = Reconnecting(sent), Bar()

    async def use(address: str, session: aiohttp.ClientSession) -> None:
        first = await sending(request_func_input=address, session=session, pbar=bar)
        began = time.perf_counter()
        second = await sending(request_func_input=address, session=session, pbar=bar)
        assert first.success and second.success and second.ttft > 0
        assert began <= second.start_time and second.latency <= time.perf_counter() - second.start_time

    served([WHOLE, NONE, WHOLE], use)
    assert (sending.count, bar.count) == (1, 2)


def test_it_is_not_sent_a_third_time() -> None:
    sending = Reconnecting(sent)

    async def use(address: str, session: aiohttp.ClientSession) -> None:
        output = await sending(address, session)
        assert not output.success and "ServerDisconnectedError" in output.error

    served([NONE, NONE, WHOLE], use)
    assert sending.count == 1


def test_one_whose_answer_had_begun_has_failed() -> None:
    sending = Reconnecting(sent)

    async def use(address: str, session: aiohttp.ClientSession) -> None:
        output = await sending(address, session)
        assert not output.success and output.error

    served([HALF, WHOLE], use)
    assert sending.count == 0


def test_a_server_that_is_not_there_is_asked_once() -> None:
    sending = Reconnecting(sent)

    async def whole() -> None:
        async with aiohttp.ClientSession() as session:
            output = await sending("http://127.0.0.1:1/", session)
            assert "ClientConnectorError" in output.error

    asyncio.run(whole())
    assert sending.count == 0


def test_the_count_is_in_the_result_and_adds_up(tmp_path: Path) -> None:
    words = ["bench", "serve", "--result-dir", str(tmp_path), "--result-filename", "1.json"]
    path = result_file(words)
    assert path == tmp_path / "1.json" and result_file(words[:2]) is None
    add_count(path, 1)
    assert not path.exists()
    path.write_text(json.dumps({"completed": 3}))
    add_count(path, 2)
    document = json.loads(path.read_text())
    assert document == {"completed": 3, "reconnected": 2}
    assert merge_results([document, {**document, "reconnected": 1}])["reconnected"] == 3
    assert headline(document)["reconnected"] == 2 and headline({})["reconnected"] == 0


@pytest.mark.parametrize("error", ["", "ValueError: no", "aiohttp.client_exceptions.ClientPayloadError: half"])
def test_other_errors_are_left(error: str) -> None:
    async def failing(**_: Any) -> Output:
        return Output(error=error)

    sending = Reconnecting(failing)
    assert asyncio.run(sending("", None)).error == error
    assert sending.count == 0
