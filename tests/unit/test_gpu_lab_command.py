"""`cluster gpu-lab` from the first step to the score, over a cluster that is made up: order, records, going on."""

import contextlib
import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import lab as lab_module
from bottleneck.diagnosis.causes import CAUSES
from bottleneck.diagnosis.verdict import analyse
from bottleneck.profile import find_profile, load_profile
from bottleneck.runs.run_folder import load_run
from cli.gpu_lab import command, trials
from cli.gpu_lab.cases import all_cases, turns
from cli.gpu_lab.steps import Steps
from cli.main import app
from cli.verify.record import Record
from lab import LabError
from lab import cards as machine
from tests.run_builder import build_run

CASES = "tp2-rate-5-prompts,tp2-starved-follower,tp2-idle-client"


class FakeCluster:
    """A control node whose every run takes as long as what is put in says."""

    def __init__(self, profile: Any) -> None:
        self.profile, self.lab, self.options = profile, "x", ""
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.put: list[Mapping[str, Any]] = []
        self.judged: list[Mapping[str, Any]] = []
        self.deployed: str | None = None

    def runner(self, name: str, arguments: Mapping[str, Any] | None = None, *_: Any, **__: Any) -> dict[str, Any]:
        self.calls.append((name, arguments or {}))
        if name == "cluster.deploy":
            self.deployed = (arguments or {}).get("deployment")
        if name != "bench.run":
            return {}
        assert self.deployed, "a load is sent to what is up"
        slow = bool(self.put) or "rate" in (arguments or {})
        number = sum(called == "bench.run" for called, _ in self.calls)
        headline = {"output_tokens_per_second": 50.0 if slow else 100.0, "requests_per_second": 1.0, "failed": 0}
        points = [{"headline": {**headline, "duration_seconds": 5.0}}]
        return {
            "run": f"run-{number}",
            "folder": f"/x/run-{number}",
            "points": points,
            "problems": [],
            "first_error": "",
        }

    def fetch(self, _: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}\n")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCluster:
    fake = FakeCluster(load_profile(find_profile("gpu-pair-cpu")))

    @contextlib.contextmanager
    def injected(_: Any, injections: list[Mapping[str, Any]]) -> Iterator[None]:
        fake.put = fake.judged = injections
        yield
        fake.put = []

    def analyse(_: Any) -> Any:
        put = fake.judged[0] if fake.judged else {}
        plain = dict.fromkeys(trials.KEPT)
        name = {"throttle": "link_bandwidth", "slow": "straggler"}.get(str(put.get("kind")), "link_latency")
        return SimpleNamespace(
            title=name,
            confidence=0.9,
            to_json=lambda: {**plain, "class": name, "where": {"node": put.get("node")}},
        )

    def copy_logs(_: str, folder: Path) -> None:
        (folder / "node0/cluster").mkdir(parents=True)
        (folder / "node0/cluster/worker.log").write_text("ready\n")

    def record_run(control: Any, settings: Mapping[str, Any], _: str) -> Any:
        result = control.runner("bench.run", settings)
        folder = tmp_path / "runs" / result["run"]
        control.fetch(result["folder"], folder)
        return SimpleNamespace(folder=folder, result=result, verdict=analyse(None))

    def deploy_model(control: Any, _: None) -> dict[str, Any]:
        control.deployed = "tp2"
        return {"deployment": "tp2"}

    monkeypatch.setattr(machine, "lacks", lambda *_: [])
    monkeypatch.setattr(machine, "machine_lacks", lambda *_: [])
    monkeypatch.setattr(machine, "machine_cards", lambda: [])
    monkeypatch.setattr(lab_module, "up", lambda *_, **__: {"up": True})
    monkeypatch.setattr(lab_module, "down", lambda *_: True)
    monkeypatch.setattr(lab_module, "copy_logs", copy_logs)
    monkeypatch.setattr(command, "connect", lambda *_: fake)
    monkeypatch.setattr(command, "apply_states", lambda *_: {"node0": {"failed": []}})
    monkeypatch.setattr(command, "measure", lambda _: {"ceilings": {}})
    monkeypatch.setattr(command, "deploy_model", deploy_model)
    monkeypatch.setattr(command, "record_run", record_run)
    monkeypatch.setattr(command, "write_report", lambda _, path: path.write_text("<html>"))
    monkeypatch.setattr(trials, "generator", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(trials, "injected", injected)
    monkeypatch.setattr(trials, "load_run", lambda folder: folder)
    monkeypatch.setattr(trials, "analyse", analyse)
    return fake


def run(output: Path, *arguments: str) -> Any:
    argv = ["gpu-lab", "--device", "cpu", "--only", CASES, "--output", str(output), "--json", *arguments]
    return CliRunner().invoke(app, argv)


def test_every_step_leaves_its_record_and_the_score_names_each_case(cluster: FakeCluster, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = run(folder)
    assert result.exit_code == 0, result.output
    names = sorted(path.name.partition("-")[2] for path in folder.glob("*.json.xz"))
    benches = [f"bench-{name}.json.xz" for name in ("alone", "chat", "prompts")]
    steps = ["machine", "lab-up", "apply", "probe", "deploy", "report", "cases", "lab-down"]
    assert names == sorted([*benches, *(f"{name}.json.xz" for name in steps)])
    probe = json.loads(lzma.decompress(next(folder.glob("*-probe.json.xz")).read_bytes()))
    assert probe["error"] == "" and probe["ceilings"] == {}
    assert (folder / "logs.tar.xz").exists() and (folder / "report.html").exists()
    found = json.loads((folder / "scores.json").read_text())
    scores = {score["case"]: score for score in found["scores"]}
    assert {name: scores[name]["named"] for name in CASES.split(",")} == {
        "tp2-rate-5-prompts": "link_bandwidth",
        "tp2-starved-follower": "straggler",
        "tp2-idle-client": "link_latency",
    }
    assert [scores[name]["is_right"] for name in CASES.split(",")] == [True, True, False]
    assert all(scores[name]["cost"] == pytest.approx(1.0) for name in CASES.split(","))
    assert found["large"] == {"right": 2, "of": 3}
    archives = list((folder / "runs").glob("*.tar.xz"))
    assert len(archives) >= 4, "three first benches, and the cases of a deployment"


def test_what_is_up_already_is_not_started_again(cluster: FakeCluster, tmp_path: Path) -> None:
    run(tmp_path / "out")
    assert not [name for name, _ in cluster.calls if name == "cluster.deploy"]


def test_links_are_measured_when_something_was_done_to_them_and_first(cluster: FakeCluster, tmp_path: Path) -> None:
    run(tmp_path / "out", "--cases-only")
    benches = [settings for name, settings in cluster.calls if name == "bench.run"]
    lines = list(Record(tmp_path / "out" / trials.RECORD).lines().values())
    assert len(benches) == len(lines), "no first benches"
    touched = [bool(line["put"]) and line["put"]["kind"] == "link_rate" for line in lines]
    before = [True, *touched[:-1]]
    assert [settings["probe"] for settings in benches] == [
        one or other for one, other in zip(touched, before, strict=True)
    ]
    assert True in touched and not all(settings["probe"] for settings in benches)


def test_a_second_call_goes_on_where_the_first_stopped(cluster: FakeCluster, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    chosen = [case for case in all_cases().of(2, "processors") if case.name in CASES.split(",")]
    wanted = len(turns(chosen, "processors"))
    run(folder)
    lines = Record(folder / trials.RECORD).lines()
    assert len(lines) == wanted
    kept = list(lines.values())[: wanted - 2]
    (folder / trials.RECORD).write_text("".join(json.dumps(line) + "\n" for line in kept))
    before = sum(name == "bench.run" for name, _ in cluster.calls)
    run(folder)
    again = sum(name == "bench.run" for name, _ in cluster.calls) - before
    assert again == 2, "the first benches are there"
    assert len(list(folder.glob("*-bench-chat.json.xz"))) == 1
    assert len(list(folder.glob("*-cases.json.xz"))) == 2, "each call's steps stay"
    assert len(Record(folder / trials.RECORD).lines()) == wanted


def test_a_run_that_fails_is_on_record_and_the_next_goes_on(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def injected(_: Any, injections: list[Mapping[str, Any]]) -> Iterator[None]:
        if any(each["kind"] == "slow" for each in injections):
            raise LabError("node node1 of lab x has ended")
        yield

    monkeypatch.setattr(trials, "injected", injected)
    folder = tmp_path / "out"
    assert run(folder).exit_code == 0
    lines = Record(folder / trials.RECORD).lines()
    assert lines["tp2-starved-follower"]["error"] == "node node1 of lab x has ended"
    assert not lines["tp2-idle-client"]["error"]


def test_what_is_kept_of_a_verdict_is_in_a_verdict(tmp_path: Path) -> None:
    verdict = analyse(load_run(build_run(tmp_path))).to_json()
    assert set(trials.KEPT) <= set(verdict)
    assert verdict["class"] in CAUSES


def test_no_case_is_begun_when_the_time_is_spent(cluster: FakeCluster, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    taken = trials.Trials(cluster, all_cases(), "processors", folder, 0.0)  # type: ignore[arg-type]
    taken.take(turns(all_cases().of(2, "processors"), "processors"))
    assert taken.runs == 0 and not (folder / trials.RECORD).exists()


def test_what_stops_a_step_is_in_its_record(tmp_path: Path) -> None:
    steps = Steps(tmp_path, lambda _: None)
    with pytest.raises(LabError), steps.step("lab-up"):
        raise LabError("Salt is not ready on node1")
    document = json.loads(lzma.decompress((tmp_path / "01-lab-up.json.xz").read_bytes()))
    assert document["error"] == "LabError: Salt is not ready on node1"


def test_a_machine_without_cards_is_told_so_and_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_cards", lambda: [])
    monkeypatch.setattr(machine, "machine_lacks", lambda *_: [])
    monkeypatch.setattr(lab_module, "up", lambda *_, **__: pytest.fail("a lab was started"))
    result = CliRunner().invoke(app, ["gpu-lab"])
    assert result.exit_code == 1
    assert "expected 2 cards. Next: make gpu-lab DEVICE=cpu rehearses it on processors" in result.output


def test_records_are_judged_again_by_the_rules_of_today() -> None:
    folder = Path(__file__).parents[1] / "data" / "h100_pair"
    result = CliRunner().invoke(app, ["gpu-lab", "--again", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    scores = {score["case"]: score for score in found["scores"]}
    then = {name: line["verdict"]["class"] for name, line in Record(folder / trials.RECORD).lines().items()}
    assert then["pp2-rate-1-eight"] == "link_latency", "as it was judged on its day"
    assert scores["pp2-rate-1-eight"]["named"] == "link_bandwidth"
    assert found["large"] == {"right": 2, "of": 2}


def test_a_folder_without_records_is_refused_with_its_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["gpu-lab", "--again", str(tmp_path)])
    assert result.exit_code == 2 and str(tmp_path) in " ".join(result.output.split())
