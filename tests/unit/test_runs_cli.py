"""`cluster run` and `cluster bottleneck`: what they print, and what they say when a run is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run_folder import load_run
from cli import bottleneck as bottleneck_module
from cli import output, runs
from cli.report.page import configuration
from tests.run_builder import Shape, build_run

SLOW, FAST, DEAD = "20261123T213000Z-tp2-a1b2", "20261123T223000Z-tp2-beef", "20261123T220000Z-tp2-dead"
runner = CliRunner(env={"COLUMNS": "160"})
app = typer.Typer()
app.add_typer(runs.app, name="run")
app.command()(bottleneck_module.bottleneck)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    build_run(root)
    build_run(root, identity=DEAD, degraded=True)
    build_run(root, identity=FAST, shape=Shape(prefill=1.4), note="[bold]restored")
    (root / "20261124T000000Z-tp2-0000.partial").mkdir()
    (root / "notes.txt").write_text("not a run")
    return root


@pytest.fixture(autouse=True)
def runs_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_RUNS", str(folder))


def test_list_has_every_run_the_newest_first() -> None:
    done = runner.invoke(app, ["run", "list"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [FAST, DEAD, SLOW]
    assert "15.5" in lines[3] and "6.47 s" in lines[3] and "Bandwidth of link direct 86%" in lines[3]
    assert "[bold]restored" in lines[1]
    assert "partial" in lines[2]


def test_list_as_json() -> None:
    document = json.loads(runner.invoke(app, ["run", "list", "--json"]).stdout)
    assert document["schema"] == 1
    slow = next(row for row in document["runs"] if row["id"] == SLOW)
    assert slow["verdict"]["class"] == "link_bandwidth"
    assert slow["ttft_seconds"]["p50"] == pytest.approx(6.47, abs=0.01)
    assert next(row for row in document["runs"] if row["id"] == DEAD)["verdict"] is None


def test_empty_list_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_RUNS", str(tmp_path / "none"))
    done = runner.invoke(app, ["run", "list"])
    assert done.exit_code == 0
    assert "cluster bench" in done.stderr
    assert json.loads(runner.invoke(app, ["run", "list", "--json"]).stdout)["runs"] == []


def test_show_by_unique_beginning() -> None:
    done = runner.invoke(app, ["run", "show", "20261123T2130"])
    assert done.exit_code == 0, done.output
    assert "p50 6.47 s, p95 6.63 s" in done.stdout
    assert "Bandwidth of link direct   confidence 86% (strong)" in done.stdout
    document = json.loads(runner.invoke(app, ["run", "show", SLOW, "--json"]).stdout)
    assert document["batches"] == {"node0": 37, "node1": 37}


def test_show_and_report_tell_what_was_in_force(tmp_path: Path) -> None:
    changed = build_run(tmp_path, overrides={"max_num_seqs": 3, "link": "ethernet"})
    done = runner.invoke(app, ["run", "show", str(changed)])
    assert "max_num_seqs 3, link ethernet" in done.stdout, done.output
    document = json.loads(runner.invoke(app, ["run", "show", str(changed), "--json"]).stdout)
    assert document["overrides"] == {"max_num_seqs": 3, "link": "ethernet"}
    assert document["settings"]["max_num_seqs"] == 3 and document["settings"]["max_num_batched_tokens"] == 2048
    rows = dict(dict(configuration(load_run(changed)))["Deployment"])
    assert (rows["max_num_seqs"], rows["link between ranks"], rows["tensor_parallel"]) == ("3", "ethernet", "2")
    assert rows["changed: max_num_seqs"] == "3"


def test_show_of_a_damaged_run_names_what_is_missing() -> None:
    done = runner.invoke(app, ["run", "show", DEAD])
    assert done.exit_code == 0, done.output
    assert "client.json: missing" in done.stderr
    assert "Inconclusive" in done.stdout


def test_a_folder_is_taken_too(folder: Path) -> None:
    assert runner.invoke(app, ["run", "show", str(folder / SLOW)]).exit_code == 0


def test_unknown_run_names_the_nearest() -> None:
    done = runner.invoke(app, ["run", "show", "20261123T213000Z-tp2-a1b3"])
    assert done.exit_code == 2
    assert "no run 20261123T213000Z-tp2-a1b3" in done.stderr.replace("\n", " ")
    assert SLOW in done.stderr and "next: cluster run list" in done.stderr


def test_ambiguous_beginning_names_the_runs() -> None:
    done = runner.invoke(app, ["bottleneck", "20261123T22"])
    assert done.exit_code == 2
    assert "the beginning of 2 runs" in done.stderr
    assert FAST in done.stderr and DEAD in done.stderr


def test_compare_tells_noise_from_change() -> None:
    done = runner.invoke(app, ["run", "compare", SLOW, FAST])
    assert done.exit_code == 0, done.output
    first = next(line for line in done.stdout.splitlines() if line.startswith("time to first token"))
    assert "better, beyond noise" in first
    gap = next(line for line in done.stdout.splitlines() if line.startswith("time between two tokens"))
    assert "within noise" in gap and "better" not in gap
    document = json.loads(runner.invoke(app, ["run", "compare", FAST, SLOW, "--json"]).stdout)
    assert {row["metric"]: row["better"] for row in document["comparison"]}["throughput"] == "a"
    assert document["workload_differs"] == []


def test_bottleneck_prints_ledger_ceilings_evidence_and_advice() -> None:
    done = runner.invoke(app, ["bottleneck", SLOW])
    assert done.exit_code == 0, done.output
    for part in (
        "Bandwidth of link direct   confidence 86% (strong)",
        "prefill  link direct  bytes on the link",
        "56.0%",
        "per output token",
        "direct: node0 sends",
        "moving bytes over direct takes 60%",
        "prefill compute, 21% of an output token's time",
        "cluster probe --links direct",
    ):
        assert part in done.stdout, part
    assert f"next: cluster report {SLOW}" in done.stderr


def test_bottleneck_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.out, "width", 80)
    done = runner.invoke(app, ["bottleneck", SLOW, "--again"])
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert "…" not in done.stdout


def test_bottleneck_without_a_run_takes_the_newest_and_gives_json() -> None:
    document = json.loads(runner.invoke(app, ["bottleneck", "--json"]).stdout)
    assert document["run"] == FAST
    assert document["verdict"]["ledger"]["entries"]
    link = next(row for row in document["ceilings"] if row["where"] == "direct: node0 sends")
    assert link["unit"] == "bytes/s"
    assert link["ceiling"] == pytest.approx(2.5e6)


def test_bottleneck_again_analyses_the_measurements(folder: Path) -> None:
    path = folder / SLOW / "verdict.json"
    kept = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(kept), "class": "prefill_compute", "title": "An old verdict"}))
        old = json.loads(runner.invoke(app, ["bottleneck", SLOW, "--json"]).stdout)
        new = json.loads(runner.invoke(app, ["bottleneck", SLOW, "--again", "--json"]).stdout)
    finally:
        path.write_text(kept)
    assert old["verdict"]["title"] == "An old verdict"
    assert new["verdict"]["class"] == "link_bandwidth"


def test_short_verdict_has_ledger_and_evidence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bottleneck_module.show_verdict(analyse(load_run(folder / SLOW)))
    printed = capsys.readouterr().out
    assert "Bandwidth of link direct" in printed and "per output token" in printed
    assert "bytes over direct take" in printed


def test_bottleneck_of_a_damaged_run_is_honest() -> None:
    done = runner.invoke(app, ["bottleneck", DEAD])
    assert done.exit_code == 0, done.output
    assert "no ledger" in done.stdout
    assert "ceilings.json: missing" in done.stdout
