"""`cluster verify-verdicts`: recorded runs are judged without a lab, and shown with what their faults cost."""

import contextlib
import io
import json
import shutil
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import verdict_tables
from cli.main import app
from cli.verify import archive, judging, tables, upgrades
from cli.verify.record import Record
from cli.verify.upgrades import UPGRADES

RUNS = Path(__file__).parents[1] / "data" / "runs"
# Recorded healthy and with node1 held back.
HEALTHY, SLOW = RUNS / "healthy", RUNS / "slow-node"


def line(case: str, run: str, began: float, rate: float, *faults: dict[str, Any]) -> dict[str, Any]:
    load = {"kind": "mixed", "concurrency": 4, "input_tokens": 256, "output_tokens": 16, "rate_per_second": None}
    return {
        "case": case, "run": run, "group": "g", "deployment": "tp2", "settings": {}, "load": load, "requests": 8,
        "faults": list(faults), "seed": 1, "began": began, "measured": {"output_tokens_per_second": rate}, "error": "",
        "lab": "part1", "costs": [], "again": False,
    }  # fmt: skip


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Make a record of three runs: two healthy ones, one of which was not packed yet, and a slow one."""
    folder = tmp_path / "verify"
    for name, source in (("one", HEALTHY), ("two", SLOW), ("three", HEALTHY)):
        shutil.copytree(source, folder / "raw-part1" / name)
    archive.pack([folder / "raw-part1" / name for name in ("one", "two")], folder / "runs" / "g.0-17.tar.xz")
    for name in ("one", "two"):
        shutil.rmtree(folder / "raw-part1" / name)
    kept = Record(folder / "runs-seed1-part1.jsonl")
    quota = {"kind": "quota", "strength": 0.3, "node": "node1"}
    kept.add(line("g/0.0/00", "one", 1.0, 100.0))
    kept.add(line("g/0.0/01", "two", 2.0, 30.0, quota))
    kept.add(line("g/0.0/02", "three", 3.0, 100.0))
    kept.add({**line("g/0.0/03", "", 4.0, 1.0), "error": "the load generator ended with status 1"})
    kept.add({"case": "g/done", "group": "g", "done": True, "error": ""})
    return folder


def ask(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["verify-verdicts", "--json", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(profile: str, lab: str) -> None:
        raise AssertionError("no lab is needed")

    monkeypatch.setattr("cli.verify.command.connect", connect)


@pytest.mark.usefixtures("no_lab")
def test_recorded_runs_are_judged_without_a_lab_wherever_they_lie(record: Path) -> None:
    found = ask("--again", "--output", str(record))
    assert found["splits"]["all"]["runs"] == 3, "what failed is no run"
    assert found["splits"]["all"]["large"] == {**found["splits"]["all"]["large"], "hits": 1, "of": 1}
    assert found["confusion"]["quota"] == {"straggler": 1}
    assert "g/0.0/01" not in found["wrong"]
    answers = [json.loads(text) for text in (record / "answers.jsonl").read_text().splitlines()]
    assert [each["run"] for each in answers] == ["one", "three", "two"]
    assert answers[2]["first"]["node"] == "node1" and {"name", "share"} <= set(answers[0]["first"])
    assert ask("--table", "--output", str(record)) == found
    text = CliRunner().invoke(app, ["verify-verdicts", "--table", "--output", str(record)]).stdout
    assert "| a node with less of its core | `straggler` |" in text and "1 (1) of 1" in text


@pytest.mark.usefixtures("no_lab")
def test_a_record_without_its_runs_or_answers_is_an_error_that_says_so(record: Path, tmp_path: Path) -> None:
    ask_again = ["verify-verdicts", "--output", str(record)]
    nothing = CliRunner().invoke(app, [*ask_again, "--table"])
    assert nothing.exit_code == 2 and "has no answers" in nothing.output and "--again" in nothing.output
    shutil.rmtree(record / "runs")
    missing = CliRunner().invoke(app, [*ask_again, "--again"])
    assert missing.exit_code == 1 and "2 runs of the record are in none of" in missing.output
    empty = CliRunner().invoke(app, ["verify-verdicts", "--again", "--output", str(tmp_path / "nowhere")])
    assert empty.exit_code == 2 and "has no recorded run" in empty.output


@pytest.mark.usefixtures("no_lab")
def test_the_groups_are_listed_and_dealt_without_a_lab() -> None:
    whole = ask("--list")["groups"]
    assert len(whole) >= 40 and all(row["runs"] > 10 for row in whole)
    parts = [ask("--list", "--shard", f"{part}/13")["groups"] for part in range(1, 14)]
    assert sorted(row["name"] for part in parts for row in part) == sorted(row["name"] for row in whole)
    assert len(ask("--list", "--upgrades")["groups"]) >= 12
    assert [row["name"] for row in ask("--list", "--only", "pp2-host")["groups"]] == ["pp2-host", "pp2-host-2"]


@pytest.mark.usefixtures("no_lab")
@pytest.mark.parametrize("shard", ["0/2", "3/2", "1/0", "half", "1", "-1/2", "1/500"])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    result = CliRunner().invoke(app, ["verify-verdicts", "--shard", shard])
    assert result.exit_code == 2 and f"--shard {shard}: expected part/parts" in result.output


@pytest.mark.usefixtures("no_lab")
def test_a_name_that_no_group_has_is_refused() -> None:
    assert CliRunner().invoke(app, ["verify-verdicts", "--only", "unicorn"]).exit_code == 2


def test_a_trimmed_record_says_the_same_in_less_room(record: Path, tmp_path: Path) -> None:
    (run,) = archive.unpack(record / "runs" / "g.0-17.tar.xz", tmp_path / "whole", frozenset({"two"}))
    slim = archive.trimmed(run, tmp_path / "slim" / "two")
    one, two = judging.answered(run).answer, judging.answered(slim).answer
    assert judging.alike(one, two) and one.first.name == "straggler"
    small = archive.pack([slim], tmp_path / "slim.tar.xz").stat().st_size
    assert small < 0.85 * archive.pack([run], tmp_path / "whole.tar.xz").stat().st_size
    assert not list(slim.glob("verdict.json"))
    metrics = (slim / "engine_after.node0.prom").read_text()
    assert "vllm:generation_tokens_total" in metrics and "vllm:e2e_request_latency_seconds_bucket" not in metrics


def test_an_archive_leads_nowhere_but_into_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs" / ".."
    with pytest.raises(ValueError, match="expected RUN/FILE"):
        archive.unpack(_archive_of(run, tmp_path), tmp_path / "out")


def _archive_of(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bad.tar.xz"
    with tarfile.open(path, "w:xz") as made:
        entry = tarfile.TarInfo(f"{folder.name}/run.json")
        entry.size = 2
        made.addfile(entry, io.BytesIO(b"{}"))
    return path


def test_the_page_has_a_place_for_every_table_and_is_what_the_record_says() -> None:
    page = verdict_tables.PAGE.read_text(encoding="utf-8")
    found, drawn = verdict_tables.made(verdict_tables.RECORD)
    assert verdict_tables.filled(page, found) == page, "python bench/verdict_tables.py --write"
    for name, text in drawn.items():
        assert (verdict_tables.PAGE.parent / name).read_text(encoding="utf-8") == text
    with pytest.raises(SystemExit, match="expected one place <!-- "):
        verdict_tables.filled("no places", found)


@pytest.mark.usefixtures("no_lab")
def test_tables_and_pictures_are_made_of_a_record(record: Path) -> None:
    ask("--again", "--output", str(record))
    found, drawn = verdict_tables.made(record)
    assert found["record"].startswith("3 runs of 2 cases, 1 of them with a fault, in 1 groups; seed 1, 1970-01-01")
    assert found["upgrades"] == verdict_tables.NOTHING
    assert set(drawn) == {"verdict-detection.svg", "verdict-reliability.svg"}
    for text in drawn.values():
        assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "a node with less of its core" in drawn["verdict-detection.svg"]
    assert tables.cost_words()[0] == "below 5%"


def test_upgrades_are_predicted_made_and_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved = {"value": 0.5, "low": 0.4, "high": 0.6}
    metrics = {
        "time": {"predicted": {"saved": saved}, "real": {"saved": {**saved, "value": 0.55}}, "error_points": -5.0}
    }
    result = {"blocks": [], "upgrades": [{"metrics": metrics, "bursts": []}], "seconds": 90.0}
    deployed: list[str] = []
    monkeypatch.setattr("cli.verify.command.connect", lambda profile, lab: None)
    monkeypatch.setattr("cli.verify.command.undeploy_model", lambda control: None)
    monkeypatch.setattr("cli.verify.command.deploy_model", lambda control, name: deployed.append(name))
    monkeypatch.setattr(upgrades, "injected", lambda control, done: contextlib.nullcontext())
    monkeypatch.setattr(upgrades, "experiment", lambda *arguments: result)
    monkeypatch.chdir(tmp_path)
    found = ask("--upgrades", "--only", "tp2/")
    count = sum(case.name.startswith("tp2/") for case in UPGRADES)
    assert found["cases"] == found["inside_interval"] == count and deployed == ["tp2"]
    assert found["median_error_points"]["time"] == 5.0
    assert "-5.0 |" in upgrades.markdown(found)
    assert ask("--upgrades", "--only", "tp2/")["cases"] == count and deployed == ["tp2"], "none is made twice"
