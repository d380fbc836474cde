"""Send a load to one OpenAI-style server and save when each token came: a load generator without an engine.

A program of its own, for control nodes that have no vLLM: it needs the standard library alone, takes those arguments of
`vllm bench serve` that the bench gives (`bottleneck.load.workload.client_arguments`), shows its progress as that does,
and saves its result in the same form. Prompts are random token ids, so it needs no tokenizer.
"""

import argparse
import http.client
import json
import math
import os
import random
import statistics
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REQUEST_SECONDS = 600.0
# Token ids that every vocabulary of use has, clear of special tokens and single bytes.
FIRST_ID, LAST_ID = 300, 900
DATA, DONE = b"data: ", b"[DONE]"
# The key of a server that wants one, under the name by which OpenAI's clients have it; never an argument.
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass
class Request:
    """One request: when it was sent, when its tokens came (`time.perf_counter`), how many the server counted."""

    input_tokens: int
    sent: float = 0.0
    token_times: list[float] = field(default_factory=list)
    output_tokens: int = 0
    error: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Send what the command line says; the result is in its file."""
    options = _options(arguments)
    rate = float(options.request_rate)
    random_numbers = random.Random(options.seed)
    bodies = [_body(options, random_numbers) for _ in range(options.num_prompts)]
    requests = [Request(options.random_input_len) for _ in bodies]
    counted = _Counted(len(requests))
    began = time.perf_counter()

    def one(number: int) -> None:
        _send(options.base_url, bodies[number], requests[number])
        counted.one_more()

    if math.isinf(rate):
        _closed(one, len(requests), options.max_concurrency or len(requests))
    else:
        _open(one, len(requests), rate, random_numbers)
    document = result(requests, time.perf_counter() - began, options.max_concurrency, rate)
    path = Path(options.result_dir, options.result_filename)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(path)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs=2, help="bench serve")
    for name in ("--base-url", "--model", "--result-dir", "--result-filename"):
        parser.add_argument(name, required=True)
    for name in ("--random-input-len", "--random-output-len", "--num-prompts"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-concurrency", type=int)
    parser.add_argument("--request-rate", default="inf")
    parser.add_argument("--temperature", type=float, default=0.0)
    # Given to every generator, and the same whatever they say: one kind of server, prompts and results.
    for name in ("--backend", "--tokenizer", "--dataset-name", "--percentile-metrics"):
        parser.add_argument(name)
    for name in ("--ignore-eos", "--save-result", "--save-detailed"):
        parser.add_argument(name, action="store_true")
    return parser.parse_args(arguments)


def _body(options: argparse.Namespace, random_numbers: random.Random) -> bytes:
    prompt = [random_numbers.randint(FIRST_ID, LAST_ID) for _ in range(options.random_input_len)]
    return json.dumps(
        {
            "model": options.model,
            "prompt": prompt,
            "max_tokens": options.random_output_len,
            "temperature": options.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


class _Counted:
    """Show how many requests have ended, as a bar does."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._lock = total, 0, threading.Lock()
        self._show()

    def one_more(self) -> None:
        """Count one that has ended."""
        with self._lock:
            self._done += 1
            self._show()

    def _show(self) -> None:
        print(f"{self._done}/{self._total} [", file=sys.stderr, flush=True)


def _closed(one: Callable[[int], None], requests: int, concurrency: int) -> None:
    """Keep so many requests under way."""
    lock, numbers = threading.Lock(), iter(range(requests))

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            one(number)

    threads = [threading.Thread(target=work) for _ in range(min(concurrency, requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _open(one: Callable[[int], None], requests: int, rate: float, random_numbers: random.Random) -> None:
    """Send requests as they come by themselves: with exponential times between them."""
    threads, moment = [], time.perf_counter()
    for number in range(requests):
        time.sleep(max(0.0, moment - time.perf_counter()))
        thread = threading.Thread(target=one, args=(number,))
        thread.start()
        threads.append(thread)
        moment += random_numbers.expovariate(rate)
    for thread in threads:
        thread.join()


def _send(base_url: str, body: bytes, request: Request) -> None:
    """Post a request and note the time of each token as its event arrives."""
    address = urllib.parse.urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=REQUEST_SECONDS)
    request.sent = time.perf_counter()
    try:
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise ValueError(f"{answer.status} {answer.read(300).decode(errors='replace')}")
        for line in iter(answer.readline, b""):
            _take(line, request)
        if not request.token_times:
            raise ValueError("the server ended its answer without a token")
    except (OSError, http.client.HTTPException, ValueError) as error:
        request.error = str(error) or type(error).__name__
    finally:
        connection.close()


def _take(line: bytes, request: Request) -> None:
    """Note what one line of an event stream says."""
    now = time.perf_counter()
    if not line.startswith(DATA) or line.strip() == DATA + DONE:
        return
    event = json.loads(line.removeprefix(DATA))
    if "error" in event:
        raise ValueError(str(event["error"]))
    # The end may come as an event of its own, without a token.
    if any(choice.get("text") or not choice.get("finish_reason") for choice in event.get("choices") or []):
        request.token_times.append(now)
    request.output_tokens = (event.get("usage") or {}).get("completion_tokens") or request.output_tokens


def result(requests: Sequence[Request], seconds: float, concurrency: int | None, rate: float) -> dict[str, Any]:
    """Return the result as `vllm bench serve --save-result --save-detailed` writes it."""
    good = [request for request in requests if not request.error]
    outputs = [_tokens(request) for request in good]
    document: dict[str, Any] = {
        "backend": "openai",
        "generator": "streaming_load",
        "num_prompts": len(requests),
        "completed": len(good),
        "failed": len(requests) - len(good),
        "duration": seconds,
        "max_concurrency": concurrency,
        "request_rate": "inf" if math.isinf(rate) else rate,
        "total_input_tokens": sum(request.input_tokens for request in good),
        "total_output_tokens": sum(outputs),
        "request_throughput": len(good) / seconds,
        "output_throughput": sum(outputs) / seconds,
        "total_token_throughput": (sum(request.input_tokens for request in good) + sum(outputs)) / seconds,
        "input_lens": [request.input_tokens for request in requests],
        "output_lens": [0 if request.error else _tokens(request) for request in requests],
        "ttfts": [_first(request) for request in requests],
        "itls": [_gaps(request) for request in requests],
        "start_times": [request.sent for request in requests],
        "errors": [request.error for request in requests],
    }
    columns = {
        "ttft": [_first(request) for request in good],
        "itl": [gap for request in good for gap in _gaps(request)],
        "e2el": [_first(request) + sum(_gaps(request)) for request in good],
        "tpot": [statistics.fmean(gaps) for request in good if (gaps := _gaps(request))],
    }
    for name, values in columns.items():
        if values:
            document[f"mean_{name}_ms"] = statistics.fmean(values) * 1e3
            document[f"median_{name}_ms"] = statistics.median(values) * 1e3
    return document


def _tokens(request: Request) -> int:
    """Return what the server counted; of one that does not count, the events."""
    return request.output_tokens or len(request.token_times)


def _first(request: Request) -> float:
    return 0.0 if request.error else request.token_times[0] - request.sent


def _gaps(request: Request) -> list[float]:
    if request.error:
        return []
    return [after - before for before, after in zip(request.token_times, request.token_times[1:], strict=False)]


if __name__ == "__main__":
    sys.exit(main())
