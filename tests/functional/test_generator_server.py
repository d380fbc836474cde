"""A load generator that a loaded process forks is started, followed and ended like one of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bottleneck.load import generator_server
from bottleneck.load.generator import Generator, GeneratorError
from bottleneck.load.workload import Load

# Stands in for vLLM's command: saves what `vllm bench serve` would, waits for as many seconds as a request has tokens.
VLLM = """
import json, os, sys, time
print("INFO: seen beside cards while vLLM is read")
LOADED = os.getpid()
def main():
    told = dict(zip(sys.argv, sys.argv[1:]))
    print(" 1/4 [", flush=True)
    if told["--seed"] == "13":
        raise ValueError("no such model")
    time.sleep(float(told["--random-output-len"]) / 10)
    path = os.path.join(told["--result-dir"], told["--result-filename"])
    known = {"loaded": LOADED, "pid": os.getpid(), "proxy": os.environ.get("TOKENIZERS_PARALLELISM"), "argv": sys.argv}
    json.dump(known, open(path, "w"))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    package = tmp_path / "python" / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text(VLLM)
    client = tmp_path / "python" / "vllm" / "benchmarks" / "lib"
    client.mkdir(parents=True)
    for folder in (client, client.parent):
        (folder / "__init__.py").touch()
    (client / "endpoint_request_func.py").write_text('ASYNC_REQUEST_FUNCS = {"openai": None}')
    socket = tmp_path / "run" / "generator.sock"
    process = subprocess.Popen(
        [sys.executable, generator_server.__file__, str(socket)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tmp_path / "python")},
    )  # fmt: skip
    assert process.stdin and process.stdout
    assert process.stdout.readline() == b"ready\n"
    yield socket
    process.stdin.close()
    assert process.wait(10) == 0
    process.stdout.close()
    assert not socket.exists()


@pytest.fixture
def start(server: Path, tmp_path: Path) -> Callable[..., Generator]:
    def made(seed: int = 1, output_tokens: int = 1) -> Generator:
        return Generator(
            [str(tmp_path / "bin" / "vllm")], Load(8, output_tokens, 4, seed, concurrency=2), base_url="http://h:1",
            model="m", tokenizer="t", directory=tmp_path / "results", stem=f"1.{seed}", server=server,
        )  # fmt: skip

    return made


def ended(generator: Generator) -> None:
    deadline = time.monotonic() + 20
    while generator.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_generators_are_forked_from_the_loaded_process_each_with_its_own_arguments(
    start: Callable[..., Generator],
) -> None:
    first, second = start(1), start(2)
    for generator in (first, second):
        ended(generator)
    results = [generator.result() for generator in (first, second)]
    assert results[0]["loaded"] == results[1]["loaded"] and results[0]["pid"] != results[1]["pid"]
    assert [result["argv"][1:3] for result in results] == [["bench", "serve"]] * 2
    assert results[1]["argv"][results[1]["argv"].index("--seed") + 1] == "2"
    assert results[0]["proxy"] == "false", "with the environment of a generator"
    assert first.requests_done() == 1


def test_one_that_fails_says_why(start: Callable[..., Generator]) -> None:
    generator = start(13)
    ended(generator)
    with pytest.raises(GeneratorError, match="status 1: ValueError: no such model"):
        generator.result()


def test_one_that_is_ended_is_gone(start: Callable[..., Generator], tmp_path: Path) -> None:
    generator = start(3, output_tokens=600)
    deadline = time.monotonic() + 20
    while generator.requests_done() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    generator.end()
    assert not generator.is_running
    with pytest.raises(ProcessLookupError):
        os.killpg(generator._process.pid, 0)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match=r"gone\.sock does not answer"):
        Generator(
            [str(tmp_path / "vllm")], Load(8, 1, 4, 1, concurrency=2), base_url="http://h:1", model="m", tokenizer="t",
            directory=tmp_path, stem="1", server=tmp_path / "gone.sock",
        )  # fmt: skip
