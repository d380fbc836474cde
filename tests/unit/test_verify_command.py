"""`cluster verify-verdicts` goes through its cases, keeps each as it is done, and goes on where it stopped."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import cli.verify.command as command
from bottleneck.diagnosis.verdict import Verdict
from cli.main import app


class Lab:
    """Stands in for the lab: what was deployed, sent and put in, and what the verdict is."""

    def __init__(self) -> None:
        self.deployed: list[str] = []
        self.put_in: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.answer = "sequence_limit"
        self.breaks_at: int | None = None
        self.seconds = 12.0


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    found = Lab()

    @contextmanager
    def injected(control: Any, injections: Any) -> Any:
        found.put_in.append(json.dumps([injection["kind"] for injection in injections]))
        yield

    def record_run(control: Any, settings: dict[str, Any]) -> Any:
        if found.breaks_at == len(found.sent):
            found.breaks_at = None
            raise typer.Exit(1)
        found.sent.append(settings)
        return type("Recorded", (), {"result": {"failed": 0}, "folder": tmp_path})

    def record_start(control: Any) -> Any:
        found.sent.append({"start": found.deployed[-1], "put_in": found.put_in[-1]})
        return type("Recorded", (), {"result": {"state": "serving"}, "folder": tmp_path})

    def deploy(control: Any, name: str, overrides: Any) -> None:
        found.deployed.append(f"{name} {overrides}")

    experiment = {"conclusion": {"class": "straggler", "confirmed": True}}
    monkeypatch.setattr(command, "connect", lambda profile, lab: None)
    monkeypatch.setattr(command, "undeploy_model", lambda control: None)
    monkeypatch.setattr(command, "deploy_model", deploy)
    monkeypatch.setattr(command, "injected", injected)
    monkeypatch.setattr(command, "record_run", record_run)
    monkeypatch.setattr(command, "record_start", record_start)
    monkeypatch.setattr(command, "load_run", lambda folder: type("Run", (), {"seconds": found.seconds}))
    monkeypatch.setattr(command, "analyse", lambda run: Verdict(found.answer, "t", {"node": None, "link": None}, 0.8))
    monkeypatch.setattr(command, "experiment", lambda *arguments: experiment)
    monkeypatch.chdir(tmp_path)
    return found


def ask(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["verify-verdicts", "--json", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_it_stops_at_the_limit_and_goes_on_later(lab: Lab, tmp_path: Path) -> None:
    first = ask("--only", "tp2/sequence_limit", "--limit", "2")
    assert first["all"]["cases"] == 2 and first["all"]["top1"]["rate"] == 1.0
    whole = ask("--only", "tp2/sequence_limit")
    assert whole["all"]["cases"] == 4 and len(lab.sent) == 4, "none was run twice"
    assert ask("--only", "tp2/sequence_limit")["all"]["cases"] == 4 and len(lab.sent) == 4
    lines = (tmp_path / "verify" / "verdicts-seed1.jsonl").read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[0])["data_seconds"] == 12.0
    assert "| `sequence_limit` | 4 | 100%" in (tmp_path / "verify" / "verdicts-seed1.md").read_text()


def test_shards_together_are_every_case_once(lab: Lab) -> None:
    for part in ("1/3", "2/3", "3/3"):
        ask("--only", "tp2/sequence_limit", "--shard", part)
    assert len(lab.sent) == 4, "no case in two parts"
    assert ask("--only", "tp2/sequence_limit", "--table")["all"]["cases"] == 4


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1/0", "half", "1", "-1/2", "1/500"])
def test_a_shard_that_is_none_is_refused(lab: Lab, shard: str) -> None:
    result = CliRunner().invoke(app, ["verify-verdicts", "--shard", shard])
    assert result.exit_code == 2 and f"--shard {shard}: expected part/parts" in result.output


def test_a_run_that_is_too_short_to_judge_is_made_again_for_longer(lab: Lab) -> None:
    lab.seconds = 2.5
    found = ask("--only", "tp2/sequence_limit", "--limit", "1")
    short, long = (sent["requests"] for sent in lab.sent)
    assert long == 4 * short and found["all"]["cases"] == 1
    lab.seconds = 0.0
    ask("--only", "tp2/sequence_limit", "--limit", "1")
    assert lab.sent[3]["requests"] == 20 * lab.sent[2]["requests"]


def test_one_deployment_serves_its_cases(lab: Lab) -> None:
    ask("--only", "tp2/sequence_limit")
    assert lab.deployed == ["tp2 {'max_num_seqs': 1}", "tp2 {'max_num_seqs': 2}"]


def test_a_start_deploys_with_its_fault_put_in_and_the_next_case_finds_it_up(lab: Lab) -> None:
    lab.answer = "weight_loading"
    found = ask("--only", "single/", "--limit", "4")
    starts = [sent for sent in lab.sent if "start" in sent]
    assert [json.loads(sent["put_in"]) for sent in starts] == [["cold_disk"], ["cold_disk"], []]
    assert lab.deployed == ["single None"] * 3, "each start is one; the load after them needs none"
    assert len(lab.sent) == 4 and lab.sent[-1]["requests"]
    assert found["faults"]["weight_loading"]["top1"]["hits"] == 2
    assert found["faults"]["healthy"]["top1"]["hits"] == 0, "a warm start is not held by storage"


def test_a_case_that_breaks_is_named_and_the_next_gets_a_fresh_engine(lab: Lab) -> None:
    lab.breaks_at = 1
    found = ask("--only", "1seqs", "--limit", "3")
    assert len(found["errors"]) == 1 and found["all"]["cases"] == 2
    assert len(lab.deployed) == 2
    again = ask("--only", "1seqs", "--limit", "1")
    assert again["errors"] == {} and again["all"]["cases"] == 3, "what broke is run again"


def test_what_is_not_sure_is_settled_by_the_experiment_and_told_apart(lab: Lab) -> None:
    lab.answer = "inconclusive"
    found = ask("--only", "tp2/straggler", "--limit", "2")
    assert found["all"]["top1"]["hits"] == 0 and found["all"]["unsure"]["hits"] == 2
    assert found["all"]["settled_by_causal"]["rate"] == 1.0
    assert lab.put_in == ['["slow"]', '["slow"]']
    kept = ask("--only", "tp2/straggler", "--limit", "1", "--no-settle", "--seed", "2")
    assert kept["all"]["settled_by_causal"]["of"] == 0


def test_recorded_runs_are_judged_again_without_a_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("--only", "tp2/sequence_limit", "--limit", "2")

    def connect(profile: str, lab: str) -> None:
        raise AssertionError("no lab is needed")

    monkeypatch.setattr(command, "connect", connect)
    lab.answer = "straggler"
    found = ask("--only", "tp2/sequence_limit", "--again")
    assert found["all"]["cases"] == 2 and found["all"]["top1"]["hits"] == 0, "by the rules as they are now"
    assert len(lab.sent) == 2


def test_one_half_can_be_run_alone(lab: Lab) -> None:
    found = ask("--only", "sequence_limit", "--split", "development")
    assert found["all"]["cases"] == found["splits"]["development"]["cases"] > 0
    assert found["splits"]["held-out"]["cases"] == 0
    wrong = CliRunner().invoke(app, ["verify-verdicts", "--split", "both"])
    assert wrong.exit_code == 2 and "development or held-out" in wrong.output


def test_the_cases_are_listed_without_a_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(profile: str, lab: str) -> None:
        raise AssertionError("no lab is needed")

    monkeypatch.setattr(command, "connect", connect)
    assert len(ask("--list")["cases"]) >= 60
    assert len(ask("--list", "--upgrades")["cases"]) >= 12
    result = CliRunner().invoke(app, ["verify-verdicts", "--only", "unicorn"])
    assert result.exit_code == 2
