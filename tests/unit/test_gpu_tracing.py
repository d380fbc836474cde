"""`cluster gpu-lab --trace` over a cluster that is made up: profiler on, load, profiler off, and what is kept."""

from __future__ import annotations

import contextlib
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.trace_judge import judge_record, read
from bottleneck.diagnosis.verdict import analyse
from bottleneck.profile import find_profile, load_profile
from bottleneck.runs.run_folder import load_run
from cli.gpu_lab import tracing
from cli.gpu_lab.cases import Trace, all_cases
from cli.gpu_lab.rank_traces import TraceError
from cli.gpu_lab.steps import Steps
from cli.gpu_lab.tracing import FOLDER, PROFILER, Tracing, record_of
from remote.control_interface import Completed
from tests.run_builder import build_run
from tests.unit.test_trace_judge import BASE, FIRST, SECOND, card_events, written


class FakeControl:
    """A control node with a server whose profiler writes the same two traces each time it is stopped."""

    def __init__(self, nodes: Path) -> None:
        self.profile = load_profile(find_profile("gpu-pair-cpu"))
        self.lab, self.nodes = "x", nodes
        self.calls: list[str] = []
        self.overrides: list[Mapping[str, Any]] = []
        self.has_profiler = True

    def runner(self, name: str, arguments: Mapping[str, Any] | None = None, **_: Any) -> dict[str, Any]:
        asked = arguments or {}
        self.calls.append(name)
        if name == "cluster.deploy":
            self.overrides.append(asked["overrides"])
        if name == "cluster.endpoint":
            return {"urls": ["http://10.78.0.10:8000/v1"], "key_file": "/key"}
        headline = {"output_tokens_per_second": 50.0, "requests_per_second": 1.0, "failed": 0, "duration_seconds": 5.0}
        point = {"headline": headline, "started": BASE + 0.0, "ended": BASE + 0.001}
        return {"run": f"run-{len(self.calls)}", "folder": "/x", "points": [point]}

    def run(self, argv: list[str], *, input: str | None = None, **_: Any) -> Completed:
        if argv[0] == "cat":
            return Completed(0, "secret\n", "")
        url = argv[3]
        assert (input, "secret" in "".join(argv)) == ("secret\n", False), "the key is on no command line"
        self.calls.append(url.rpartition("/")[2])
        if not self.has_profiler:
            return Completed(1, "", f"{url}: 404 Not Found; expected 200")
        if url == "http://10.78.0.10:8000/stop_profile":
            folder = self.nodes / Path(FOLDER).name
            folder.mkdir()
            for rank, parts in enumerate((FIRST, SECOND)):
                written(folder, rank, card_events(parts))
        return Completed(0, "", "")

    def fetch(self, _: str, folder: Path) -> None:
        build_run(folder.parent, identity=folder.name)


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeControl:
    monkeypatch.setattr(tracing, "on_host", lambda path: tmp_path / Path(path).name)
    monkeypatch.setattr(tracing, "generator", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(tracing, "injected", lambda *_: contextlib.nullcontext())
    return FakeControl(tmp_path)


def tracer(control: FakeControl, folder: Path, deadline: float = float("inf")) -> Tracing:
    return Tracing(control, all_cases(), "processors", Steps(folder, lambda _: None), deadline)  # type: ignore[arg-type]


def wanted(*names: str) -> list[Trace]:
    return [trace for trace in all_cases().traces_of(2, "processors") if trace.name in names]


def test_a_load_is_traced_and_what_the_judge_needs_is_kept(control: FakeControl, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    found = tracer(control, folder).take(wanted("trace-tp2-chat"))
    assert found == [record_of(folder, "trace-tp2-chat")]
    runs = ["bench.run", "start_profile", "bench.run", "stop_profile"]
    assert [call for call in control.calls if call in runs] == runs
    option, value = control.overrides[0]["extra_arguments"]
    assert (option, json.loads(value)) == ("--profiler-config", PROFILER)
    document = read(found[0])
    assert judge_record(document).collectives == 2
    assert document["verdicts"]["traced"].name == analyse(load_run(build_run(tmp_path / "again"))).name
    assert len(list((folder / "runs").glob("*.tar.xz"))) == 2
    assert not (tmp_path / Path(FOLDER).name).exists(), "tens of MB"
    assert not (folder / "raw").exists()


def test_a_trace_that_fails_is_on_record_and_the_next_call_takes_it(control: FakeControl, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    control.has_profiler = False
    assert tracer(control, folder).take(wanted("trace-tp2-chat")) == []
    step = json.loads(lzma.decompress(next(folder.glob("*-trace-tp2-chat.json.xz")).read_bytes()))
    assert "404 Not Found; expected 200" in step["error"]
    control.has_profiler = True
    taken = tracer(control, folder).take(wanted("trace-tp2-chat", "trace-tp2-prompts"))
    assert len(taken) == 2
    assert tracer(control, folder).take(wanted("trace-tp2-chat")) == [], "it is there"


def test_a_deployment_is_started_once_for_its_traces(control: FakeControl, tmp_path: Path) -> None:
    tracer(control, tmp_path / "records").take(wanted("trace-tp2-chat", "trace-tp2-prompts"))
    assert control.calls.count("cluster.deploy") == 1
    assert control.calls[-1] == "cluster.undeploy"


def test_no_trace_is_begun_when_the_time_is_spent(control: FakeControl, tmp_path: Path) -> None:
    assert tracer(control, tmp_path / "records", deadline=0.0).take(wanted("trace-tp2-chat")) == []
    assert "bench.run" not in control.calls


def test_a_trace_that_never_comes_is_waited_for_so_long(
    control: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(
        tracing, "time", SimpleNamespace(monotonic=lambda: 30.0 * next(clock), sleep=lambda _: None, time=lambda: 0.0)
    )
    with pytest.raises(TraceError, match=r"0 traces in .*; expected one of each of 2 ranks"):
        tracer(control, tmp_path / "records")._reduced(2, float(BASE))
