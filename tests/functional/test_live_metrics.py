"""`cluster bottleneck --url`: a server that runs somewhere gets the verdict that its scenario file gets."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.metrics_texts import Reading, readings_document
from bottleneck.runs.scenario import judgeable
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


class Answers(http.server.BaseHTTPRequestHandler):
    """Answer as `answer` of the server says: a status and a body, or nothing for None."""

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        answer = self.server.answer  # type: ignore[attr-defined]
        if answer is None:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, body = answer
        self.send_response(status)
        self.send_header("Location", "/login")
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def answering(answer: tuple[int, bytes] | None, tls: Path | None = None) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as served:
        served.answer = answer  # type: ignore[attr-defined]
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            served.socket = context.wrap_socket(served.socket, server_side=True)
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{served.server_address[1]}"
        served.shutdown()


ROUTER = b'vllm:current_qps{server="http://a"} 3\nvllm:num_requests_running{server="http://a"} 3\n'


@pytest.mark.parametrize(
    ("answer", "code", "part"),
    [
        ((200, b"<html><body>hello</body></html>"), 1, "a web page; expected the text of vLLM's /metrics"),
        ((200, b""), 1, "0 lines and not one metric"),
        ((200, bytes(range(256))), 1, "not one metric"),
        ((200, b"node_cpu_seconds_total 3\n"), 1, "1 metrics such as node_cpu_seconds_total; expected some that begin"),
        ((200, ROUTER), 1, "expected the /metrics of the engine itself, not of what stands before it"),
        ((503, b""), 1, "answers with status 503"),
        ((403, b""), 4, "asks for a login"),
        (None, 4, "the connection was closed without an answer: does it speak https://?"),
    ],
)
def test_what_answers_otherwise_is_said(answer: tuple[int, bytes] | None, code: int, part: str) -> None:
    with answering(answer) as address:
        result = run("--url", f"http://{address}", "--seconds", "2")
    assert result.exit_code == code, result.output
    assert part in " ".join(result.output.split()) and "next: curl" in result.output


def test_a_server_without_tls_is_said() -> None:
    with answering((200, b"")) as address:
        result = run("--url", f"https://{address}", "--seconds", "2")
    assert result.exit_code == 4 and "expected http://, not https://" in " ".join(result.output.split())


@pytest.mark.skipif(not shutil.which("openssl"), reason="a certificate needs openssl")
def test_a_certificate_that_nobody_vouches_for_is_said(tmp_path: Path) -> None:
    made = tmp_path / "own.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run(["openssl", *words, "-keyout", str(made), "-out", str(tmp_path / "crt")], check=True, timeout=60)
    made.write_text(made.read_text() + (tmp_path / "crt").read_text())
    with answering((200, b""), made) as address:
        result = run("--url", f"https://{address}", "--seconds", "2")
    assert result.exit_code == 4 and "its certificate is not trusted here" in " ".join(result.output.split())


def test_a_server_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.live.READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = run("--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--seconds", "2")
    assert result.exit_code == 4 and "no answer within 0.2 s" in " ".join(result.output.split())


def test_a_name_that_nobody_knows_is_said() -> None:
    result = run("--url", "http://no-such-host.invalid:8000", "--seconds", "2")
    assert result.exit_code == 4 and "no-such-host.invalid is not known here" in " ".join(result.output.split())


def test_the_one_of_two_engines_that_is_stuck_is_named() -> None:
    """Both are behind one server: one works, the other makes nothing while requests wait for it."""

    def text(made: int) -> str:
        lines = []
        for engine, (running, waiting, tokens) in enumerate([(4, 0, made), (0, 5, 100)]):
            labels = f'{{engine="{engine}",model_name="m"}}'
            lines += [
                f"vllm:num_requests_running{labels} {running}",
                f"vllm:num_requests_waiting{labels} {waiting}",
                f"vllm:generation_tokens_total{labels} {tokens}",
                f"vllm:kv_cache_usage_perc{labels} 0.2",
            ]
        return "\n".join(lines)

    readings = [Reading(float(moment), text(100 + 50 * moment)) for moment in range(20)]
    verdict = analyse(judgeable(readings_document(readings), "two engines"))
    assert verdict.name == "engine_stalled"
    assert any("engine 1 of 2, for which 5 requests wait" in str(each.to_json()) for each in verdict.evidence)
    working = [Reading(float(moment), text(100 + 50 * moment).replace("} 5", "} 0")) for moment in range(20)]
    assert analyse(judgeable(readings_document(working), "two engines")).name != "engine_stalled"


@pytest.mark.parametrize(("last", "expected"), [(5, False), (20, True)])
def test_requests_that_run_for_long_and_come_to_nothing_are_stuck(last: int, expected: bool) -> None:
    """A collective that hangs leaves the gauges as they were; so does one long step, but not for long."""
    counts = {
        "num_requests_running": 5,
        "num_requests_waiting": 9,
        "generation_tokens_total": 100,
        "prompt_tokens_total": 9,
    }
    text = "\n".join(f'vllm:{name}{{engine="0",model_name="m"}} {count}' for name, count in counts.items())
    verdict = analyse(judgeable(readings_document([Reading(float(at), text) for at in range(last)]), "hangs"))
    assert (verdict.name == "engine_stalled") is expected
    if expected:
        assert "5 requests ran and 9 waited in 100% of the readings" in str(verdict.to_json()["evidence"])


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
