"""`cluster bottleneck --url`: a server that runs somewhere gets the verdict that its scenario file gets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.live import LiveError, metrics_url
from cli.main import app

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SCENARIOS = REPOSITORY / "tests" / "data" / "field-cases" / "scenarios"
REPLAYED_SECONDS = 3


def replay(scenario: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.metrics_replay", str(scenario), str(REPLAYED_SECONDS)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from replay(SCENARIOS / f"{getattr(request, 'param', 'new-gauge-no-preemption')}.json")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["bottleneck", *words])


def document(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("new-gauge-no-preemption", "kv_cache_capacity"),
        ("old-gauge-no-preemption", "kv_cache_capacity"),
        ("two-engines-roomy", "prefill_compute"),
    ],
    indirect=["server"],
)
def test_a_live_server_gets_the_verdict_of_its_file(server: str, expected: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    live = document("--url", server, "--seconds", str(REPLAYED_SECONDS), "--keep", str(kept))
    assert live["class"] == expected
    again = document("--from", str(kept))
    assert (again["class"], again["confidence"]) == (live["class"], live["confidence"])
    # What could not be seen is said.
    assert any("were not watched" in note for note in live["notes"])
    assert any("max_num_seqs" in note for note in live["notes"])
    assert json.loads(kept.read_text())["engine"] == "vLLM 0.32.0"


def test_a_server_that_nobody_asks_is_reported_to_be_idle(server: str) -> None:
    document("--url", server, "--seconds", str(REPLAYED_SECONDS))
    idle = document("--url", server, "--seconds", "1.6")
    assert any("nothing changed while it was watched" in note for note in idle["notes"])


def test_a_person_sees_where_it_is_from(server: str) -> None:
    result = run("--url", server.removeprefix("http://"), "--seconds", "2")
    assert result.exit_code == 0, result.output
    assert "KV cache is full" in result.stdout and server.removeprefix("http://") in result.stdout


@pytest.mark.parametrize(
    ("path", "code", "parts"),
    [
        ("/login", 4, ["asks for a login", "curl -i"]),
        ("/other", 1, ["metrics of SGLang, which are not read", "expected some that begin with vllm:"]),
        ("/nothing", 1, ["answers with status 404", "curl -i"]),
    ],
)
def test_what_is_no_engine_is_reported(server: str, path: str, code: int, parts: list[str]) -> None:
    result = run("--url", server + path, "--seconds", "2")
    assert result.exit_code == code
    for part in parts:
        assert part in result.output


def test_a_server_that_is_not_there_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = run("--url", f"http://127.0.0.1:{port}", "--seconds", "2")
    assert result.exit_code == 4 and "Connection refused" in result.output and "next:" in result.output


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--url", "ftp://x"], "expected http://HOST:PORT"),
        (["--url", "http://x", "--from", "y"], "expected one of them"),
        (["--from", "a", "--from", "b", "--from", "c"], "expected one scenario file, or two texts"),
        (["--from", "a", "--seconds", "3"], "expected one scenario file, or two texts"),
        (["--seconds", "3"], "--seconds goes with --from or --url"),
        (["--url", "http://x", "--again"], "no run, --again"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], part: str) -> None:
    result = run(*words)
    assert result.exit_code in (1, 2) and part in result.output


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("node-a:8000", "http://node-a:8000/metrics"),
        ("http://node-a:8000/", "http://node-a:8000/metrics"),
        ("https://x.example/llm/metrics", "https://x.example/llm/metrics"),
        ("http://[fd00::1]:8000", "http://[fd00::1]:8000/metrics"),
    ],
)
def test_where_the_metrics_are(address: str, expected: str) -> None:
    assert metrics_url(address) == expected


@pytest.mark.parametrize("address", ["", "http://", "http://x:port", "file:///etc/passwd"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(LiveError, match="expected http"):
        metrics_url(address)
