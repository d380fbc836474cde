"""OpenVINO GenAI's server over a pipeline that is a fake: what it answers, streams, counts, refuses and gives up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from genai_server.application import MOST_BODY_BYTES
from genai_server.engine import Engine
from genai_server.messages import Progress, Ready, Sampling, Step
from genai_server.metrics import Metrics
from genai_server.settings import Settings

from tests.fake_genai import FakePipeline, FakeServer, running


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(max_num_seqs=2) as made:
        yield made


def text_of(first: int, count: int) -> str:
    return bytes(range(first, first + count)).decode()


def test_the_one_model_is_listed(server: FakeServer) -> None:
    status, found = server.ask("GET", "/v1/models")
    assert status == 200
    assert [(model["id"], model["max_model_len"]) for model in found["data"]] == [("fake", 100)]


def test_a_completion_has_its_text_its_reason_and_its_usage(server: FakeServer) -> None:
    status, found = server.complete(model="fake", prompt=[40, 5], max_tokens=6, temperature=0)
    assert status == 200
    assert found["choices"] == [{"index": 0, "logprobs": None, "finish_reason": "length", "text": text_of(45, 6)}]
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}


def test_several_prompts_are_as_many_choices(server: FakeServer) -> None:
    _, found = server.complete(prompt=[[40], [60]], max_tokens=3)
    assert [choice["text"] for choice in found["choices"]] == [text_of(40, 3), text_of(60, 3)]
    assert found["usage"]["completion_tokens"] == 6


def test_a_stream_has_an_event_a_token_and_the_usage_that_was_asked_for(server: FakeServer) -> None:
    events = server.events(prompt=[50], max_tokens=5, stream_options={"include_usage": True})
    parts = [event["choices"][0] for event in events[:-1]]
    assert "".join(part["text"] for part in parts) == text_of(50, 5)
    assert [part["finish_reason"] for part in parts] == [None] * 4 + ["length"]
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 5
    assert all("usage" not in event for event in server.events(prompt=[50], max_tokens=2))


def test_the_end_token_ends_a_text_unless_it_is_ignored(server: FakeServer) -> None:
    # Tokens go up to 199, then 0, 1 and 2, which is the end.
    _, found = server.complete(prompt=[100, 98], max_tokens=20)
    assert found["choices"][0]["finish_reason"] == "stop" and found["usage"]["completion_tokens"] == 5
    _, found = server.complete(prompt=[100, 98], max_tokens=20, ignore_eos=True)
    assert found["choices"][0]["finish_reason"] == "length" and found["usage"]["completion_tokens"] == 20


def test_a_stop_string_ends_a_text_before_it_and_is_no_abort(server: FakeServer) -> None:
    events = server.events(prompt=[65], max_tokens=50, stop=["EF", "ZZ"])
    assert "".join(event["choices"][0]["text"] for event in events) == "ABCD"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    found = server.until(lambda metrics: metrics['genai_requests_finished_total{,reason="stop"}'] == 1)
    assert found["genai_requests_running"] == 0 and found["genai_request_latency_seconds_count"] == 1


def test_a_chat_is_answered_in_its_form(server: FakeServer) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    status, found = server.ask("POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 2})
    assert status == 200 and found["object"] == "chat.completion"
    assert found["choices"][0]["message"]["role"] == "assistant" and found["usage"]["prompt_tokens"] == len("<user>hi")
    events = server.events("/v1/chat/completions", messages=messages, max_completion_tokens=2)
    assert [sorted(event["choices"][0]["delta"]) for event in events] == [["content", "role"], ["content"]]


ABORTED = 'genai_requests_finished_total{,reason="abort"}'

REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "x", "max_tokens": "two"}, "max_tokens", "'two'"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"prompt": "x", "temperature": -1}, "temperature", "-1"),
    ({"prompt": "x", "top_p": 0}, "top_p", "greater than 0"),
    ({"prompt": "x", "seed": -3}, "seed", "-3"),
    ({"prompt": "x", "n": 2}, "n", "this server does not do that"),
    ({"prompt": "x", "logprobs": 1}, "logprobs", "this server does not do that"),
    ({"prompt": "x", "max_tokns": 3}, "max_tokns", "no such field"),
    ({"prompt": "x", "stop": [""]}, "stop", "none of them empty"),
    ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options", "expected stream"),
    ({"prompt": "x" * 90, "max_tokens": 30}, "max_tokens", "expected 100 or fewer, the model's length"),
    ({"prompt": "x" * 200}, "prompt", "expected 100 or fewer"),
    ({"prompt": [700]}, "prompt", "expected 0 to 199"),
    ({"prompt": []}, "prompt", "expected 1 to 2"),
    ({"prompt": [[1], [2], [3]]}, "prompt", "expected 1 to 2"),
    ({"prompt": 7}, "prompt", "7"),
    ({}, "prompt", "field required"),
]


@pytest.mark.parametrize(("body", "field", "words"), REFUSALS, ids=lambda value: str(value)[:40])
def test_a_bad_request_is_refused_by_name(server: FakeServer, body: dict[str, Any], field: str, words: str) -> None:
    status, found = server.complete(**body)
    assert status == 400 and found["error"]["param"] == field
    assert words in found["error"]["message"]


def test_what_is_no_request_is_refused(server: FakeServer) -> None:
    status, found = server.ask("POST", "/v1/completions", "{no")
    assert status == 400 and "no JSON" in found["error"]["message"]
    assert server.ask("POST", "/v1/completions", [1])[0] == 400
    status, found = server.ask("POST", "/v1/completions", "[" + " " * MOST_BODY_BYTES + "]")
    assert status == 413 and "larger than" in found["error"]["message"]
    status, found = server.complete(model="other", prompt="x")
    assert status == 404 and "expected fake" in found["error"]["message"]
    status, found = server.ask("POST", "/v1/chat/completions", {"messages": []})
    assert status == 400 and found["error"]["param"] == "messages"
    body = {"messages": [{"role": "user", "content": "no template"}]}
    assert "no chat template" in server.ask("POST", "/v1/chat/completions", body)[1]["error"]["message"]


def test_a_request_that_the_library_refuses_is_an_error_and_the_next_is_served(server: FakeServer) -> None:
    server.pipeline.refused = "Prompt length cannot be 0"
    status, found = server.complete(prompt=[5])
    assert status == 503 and found["error"]["message"] == "Prompt length cannot be 0"
    server.pipeline.refused = None
    assert server.complete(prompt=[5])[0] == 200


def test_requests_wait_for_a_place_and_are_counted(server: FakeServer) -> None:
    server.pipeline.gate.clear()
    streams = [
        server.open("POST", "/v1/completions", {"prompt": [9], "max_tokens": 4, "stream": True, "ignore_eos": True})
        for _ in range(3)
    ]
    found = server.until(lambda metrics: metrics["genai_requests_waiting"] == 3)
    assert found["genai_requests_running"] == 0
    server.pipeline.gate.set()
    for connection, answer in streams:
        assert answer.read().decode().count("data: {") == 4
        connection.close()
    found = server.metrics()
    assert server.pipeline.most_together == 2
    assert found["genai_requests_running"] == found["genai_requests_waiting"] == 0
    assert found["genai_generation_tokens_total"] == 12 and found["genai_prompt_tokens_total"] == 3
    assert found["genai_time_to_first_token_seconds_count"] == 3 == found["genai_request_latency_seconds_count"]
    assert found["genai_inter_token_latency_seconds_count"] == 9
    phases = sum(found[f"genai_request_{name}_seconds_sum"] for name in ("queue", "prefill", "decode"))
    assert phases == pytest.approx(found["genai_request_latency_seconds_sum"])


def _aborted(count: int, metrics: dict[str, float]) -> bool:
    return metrics.get(ABORTED) == count


def test_a_client_that_goes_cancels_its_request(server: FakeServer) -> None:
    for stream in (True, False):
        server.pipeline.gate.clear()
        body = {"prompt": [9], "max_tokens": 90, "stream": stream, "ignore_eos": True}
        if stream:
            connection, _ = server.open("POST", "/v1/completions", body)
        else:
            connection = server.send("POST", "/v1/completions", body)
        server.until(lambda metrics: metrics["genai_requests_waiting"] + metrics["genai_requests_running"] == 1)
        connection.close()
        # No step ends meanwhile: it is the API server that saw the client go.
        found = server.until(partial(_aborted, 2 - stream))
        assert found["genai_requests_running"] + found["genai_requests_waiting"] == 0
        server.pipeline.gate.set()
    assert server.complete(prompt=[5])[0] == 200
    # One that had no place yet was never the pipeline's.
    assert server.pipeline.pending == 0


def test_a_server_whose_step_does_not_end_is_not_healthy() -> None:
    with running(stall_seconds=0.0) as server:
        assert server.ask("GET", "/health") == (200, "ok\n")
        server.pipeline.gate.clear()
        connection, _ = server.open("POST", "/v1/completions", {"prompt": [9], "stream": True})
        server.until(lambda metrics: metrics["genai_requests_waiting"] == 1)
        status, text = server.ask("GET", "/health")
        assert status == 503 and "1 requests are there and no step has ended" in text
        server.pipeline.gate.set()
        server.until(lambda metrics: metrics["genai_requests_waiting"] + metrics["genai_requests_running"] == 0)
        assert server.ask("GET", "/health")[0] == 200
        connection.close()


def test_a_request_whose_answer_is_not_taken_yet_neither_runs_nor_stalls_the_engine() -> None:
    async def scenario() -> None:
        ends: list[Connection] = []

        class Quiet:
            def __init__(self, connection: Connection, _: Settings) -> None:
                ends.append(connection)

            def alive(self) -> bool:
                return True

            def end(self) -> None:
                ends[0].close()

        metrics, clock = Metrics("m"), itertools.count()
        settings = Settings("folder", "m", vocabulary_size=9, stall_seconds=0.5)
        engine = Engine(settings, metrics, start=Quiet, clock=lambda: float(next(clock)))

        def counts() -> tuple[float | None, float | None]:
            value = partial(metrics.registry.get_sample_value, labels={"model": "m"})
            return value("genai_requests_running"), value("genai_requests_waiting")

        engine.start()
        ends[0].send(Ready("1", 1.0))
        await engine.ready.wait()
        answer = engine.generate((1, 2), Sampling(max_tokens=1))
        first = asyncio.ensure_future(anext(answer))
        await asyncio.sleep(0)
        assert counts() == (0, 1) and engine.health() is not None
        progress = (Progress(1, (7,), "length"),)
        ends[0].send(Step(0.0, 1.0, (1,), 1, 0, 0.1, 1, 0.0, progress))
        assert (await first).finish_reason == "length"
        # Its generator has not been closed: who reads the answer is slow.
        assert counts() == (0, 0)
        assert engine.health() is None
        await answer.aclose()
        engine.end()

    asyncio.run(scenario())


def test_an_engine_that_breaks_fails_its_requests_and_is_reported(server: FakeServer) -> None:
    server.pipeline.broken = "Not enough memory"
    status, found = server.complete(prompt=[9])
    assert status == 503 and found["error"]["message"] == "RuntimeError: Not enough memory"
    assert server.broken == ["RuntimeError: Not enough memory"]
    assert server.ask("GET", "/health")[0] == 503 and server.complete(prompt=[9])[0] == 503


def test_a_long_prompt_is_computed_in_parts_and_waits_with_those_before_it() -> None:
    with running(FakePipeline(budget=10), max_model_len=1000) as server:
        server.pipeline.gate.clear()
        streams = [
            server.open("POST", "/v1/completions", {"prompt": [9] * 30, "max_tokens": 2, "stream": True})
            for _ in range(2)
        ]
        server.until(lambda metrics: metrics["genai_requests_waiting"] == 2)
        server.pipeline.gate.set()
        for connection, answer in streams:
            answer.read()
            connection.close()
        found = server.metrics()
        # Three steps for each prompt; the second token of the first comes beside the other's first part.
        assert found["genai_prompt_tokens_total"] == 60 and found["genai_steps_total"] == 7


def test_requests_that_a_full_cache_leaves_out_are_counted() -> None:
    with running(FakePipeline(room=2)) as server:
        server.complete(prompt=[[9], [9]], max_tokens=3)
        assert server.metrics()["genai_steps_short_total"] == 0
        server.pipeline.gate.clear()
        connection, answer = server.open(
            "POST", "/v1/completions", {"prompt": [[9], [9]], "max_tokens": 3, "stream": True}
        )
        server.until(lambda metrics: metrics["genai_requests_waiting"] == 2)
        server.pipeline.gate.set()
        server.until(lambda metrics: metrics["genai_requests_running"] == 2 or metrics["genai_steps_total"] > 4)
        server.pipeline.room = 1
        answer.read()
        connection.close()
    assert server.pipeline.most_together == 2


def test_the_api_needs_the_key_of_the_file_and_health_does_not(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret-key\n", encoding="utf-8")
    with running(api_key_file=str(key)) as server:
        status, found = server.complete(prompt="x")
        assert status == 401 and "secret-key" not in str(found)
        assert server.ask("GET", "/health")[0] == server.ask("GET", "/metrics")[0] == 200
        server.headers = {"Authorization": "Bearer secret-key"}
        assert server.complete(prompt="x")[0] == 200
        server.headers = {"Authorization": "Bearer schlüssel".encode().decode("latin-1")}
        assert server.complete(prompt="x")[0] == 401
