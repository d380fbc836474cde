"""
Send one burst of requests to the heads of what is deployed, and time every token of it.

A load generator for short blocks: ``vllm bench serve`` takes seconds to start, a burst none.
"""

import http.client
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from salt.exceptions import CommandExecutionError

from control import engine, engine_key

if TYPE_CHECKING:
    from loader_dunders import __opts__

REQUEST_SECONDS = 300.0


class Result(TypedDict):
    """One request: when it was sent and when its tokens came (``time.perf_counter``), and why it failed."""

    sent: float
    token_times: list[float]
    error: str | None


def send(
    heads: Sequence[str],
    model: str,
    vocabulary_size: int,
    requests: int,
    input_tokens: int,
    output_tokens: int,
    concurrency: int | None = None,
    rate: float | None = None,
    slots: int | None = None,
    seed: int = 1,
    temperature: float = 0.0,
) -> list[Result]:
    """
    Send requests and return, for each, when it was sent and when its tokens came (``time.perf_counter``).

    CLI Example:

    .. code-block:: bash

        salt-run burst_load.send heads='["10.77.0.10:8000"]' model=m vocabulary_size=8192 requests=4 \
            input_tokens=64 output_tokens=8 concurrency=4

    heads
        ``address:port`` of each; they take turns
    concurrency
        requests under way at a time (closed loop)
    rate
        requests a second at equal distances (open loop) instead
    slots
        at most so many at the engines at a time: the others wait here, which counts as their time
    """
    burst = _Burst(list(heads), int(requests), slots, engine.authorization(engine_key.key(__opts__)))
    bodies = _bodies(
        model, int(vocabulary_size), int(requests), int(input_tokens), int(output_tokens), seed, temperature
    )
    if rate is None:
        workers = min(int(concurrency or 1), int(requests))
        threads = [threading.Thread(target=burst.closed, args=(bodies,), daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
    else:
        threads = []
        for number, body in enumerate(bodies):
            burst.pause(number / float(rate))
            thread = threading.Thread(target=burst.one, args=(number, body), daemon=True)
            thread.start()
            threads.append(thread)
    for thread in threads:
        thread.join(REQUEST_SECONDS)
        if thread.is_alive():
            raise CommandExecutionError(f"a request took longer than {REQUEST_SECONDS:.0f} s: see cluster status")
    return burst.results


class _Burst:
    """The requests of one burst; the loader leaves it alone because of its name."""

    def __init__(self, heads: Sequence[str], requests: int, slots: int | None, headers: Mapping[str, str]) -> None:
        self.heads, self.headers = heads, headers
        self.results: list[Result] = [{"sent": 0.0, "token_times": [], "error": "not sent"} for _ in range(requests)]
        self.gate = threading.Semaphore(int(slots)) if slots else None
        self.lock, self.following = threading.Lock(), 0
        self.begun = time.perf_counter()

    def pause(self, moment: float) -> None:
        """Wait until so many seconds after the burst began."""
        left = self.begun + moment - time.perf_counter()
        if left > 0:
            time.sleep(left)

    def closed(self, bodies: Sequence[bytes]) -> None:
        """Send one request after the other, until no thread of the burst has one left."""
        while True:
            with self.lock:
                number, self.following = self.following, self.following + 1
            if number >= len(bodies):
                return
            self.one(number, bodies[number])

    def one(self, number: int, body: bytes) -> None:
        """Send one request and note what became of it."""
        result: Result = {"sent": time.perf_counter(), "token_times": [], "error": None}
        self.results[number] = result
        if self.gate:
            self.gate.acquire()
        try:
            _stream(self.heads[number % len(self.heads)], body, result, self.headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            result["error"] = str(error) or type(error).__name__
        finally:
            if self.gate:
                self.gate.release()


def _bodies(
    model: str,
    vocabulary_size: int,
    requests: int,
    input_tokens: int,
    output_tokens: int,
    seed: int,
    temperature: float,
) -> list[bytes]:
    """Return the bodies of a burst; the same seed gives the same prompts, well inside the vocabulary."""
    numbers = random.Random(seed)
    first, last = vocabulary_size // 4, vocabulary_size // 2
    return [
        json.dumps(
            {
                "model": model,
                "prompt": [numbers.randint(first, last) for _ in range(input_tokens)],
                "max_tokens": output_tokens,
                "temperature": temperature,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            }
        ).encode()
        for _ in range(requests)
    ]


def _stream(head: str, body: bytes, result: Result, headers: Mapping[str, str]) -> None:
    """Post a request and note the time of each token as its event arrives."""
    address, _, port = head.rpartition(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=REQUEST_SECONDS)
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"{answer.status} {answer.read(300).decode(errors='replace')}")
        while line := answer.readline():
            now = time.perf_counter()
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(str(event["error"]))
            tokens = (event.get("usage") or {}).get("completion_tokens") or 0
            # Tokens that come in one event come at one time.
            result["token_times"] += [now] * (tokens - len(result["token_times"]))
    finally:
        connection.close()
