"""Run folders: loading all of one, part of one, a broken one."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from bottleneck.diagnosis.causes import WORK as WORK_CAUSES
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run import client_result, window_run
from bottleneck.runs.run_folder import RunError, load_run
from tests.run_builder import save_run

from .simulator import EPOCH, PROFILE, simulate

DETAILED = {
    "duration": 4.5,
    "completed": 2,
    "failed": 1,
    "request_rate": "inf",
    "max_concurrency": 2,
    "input_lens": [8, 8, 8],
    "output_lens": [3, 2, 0],
    "ttfts": [0.5, 0.4, 0.0],
    "itls": [[0.1, 0.2], [0.3], []],
    "start_times": [1.0, 1.5, 2.0],
    "errors": ["", "", "timed out"],
}


def write_folder(folder: Path) -> Path:
    simulation = simulate(requests=8)
    save_run(simulation.run(), folder)
    shutil.copy(PROFILE, folder / "profile.yaml")
    shutil.copy(PROFILE.parent / "engines.yaml", folder / "engines.yaml")
    requests = simulation.client().requests
    document = {
        "duration": simulation.now,
        "request_rate": "inf",
        "max_concurrency": 4,
        "input_lens": [request.input_tokens for request in requests],
        "output_lens": [request.output_tokens for request in requests],
        "ttfts": [request.ttft_seconds for request in requests],
        "itls": [list(request.itl_seconds) for request in requests],
        "start_times": [request.start_seconds for request in requests],
        "errors": ["" for _ in requests],
    }
    (folder / "client.json").write_text(json.dumps(document))
    return folder


def test_client_result_of_the_load_generator() -> None:
    client = client_result(DETAILED)
    assert [request.good for request in client.requests] == [True, True, False]
    first = client.requests[0]
    assert first.latency_seconds == pytest.approx(0.8)
    assert first.tpot_seconds == pytest.approx(0.15)
    assert client.failed == 1 and client.concurrency == 2
    assert client.request_rate == math.inf
    assert math.isnan(client.requests[2].tpot_seconds)


def test_client_results_of_a_sweep_add_up() -> None:
    client = client_result({"results": [DETAILED, {**DETAILED, "max_concurrency": 8}]})
    assert len(client.requests) == 6
    assert client.duration_seconds == 9.0
    assert [point["max_concurrency"] for point in client.points] == [2, 8]
    assert "ttfts" not in client.points[0]


@pytest.mark.parametrize("document", [None, 3, [], {}, {"ttfts": None}, {"ttfts": ["x", None], "output_lens": [1, 2]}])
def test_client_results_that_hold_nothing(document: object) -> None:
    assert client_result(document).good == []


def test_a_whole_folder(tmp_path: Path) -> None:
    run = load_run(write_folder(tmp_path / "r"))
    assert run.problems == ()
    assert run.status == "complete"
    assert run.id == "simulated" and run.deployment == "tp2"
    assert run.profile is not None and run.profile.name == "embedded"
    assert run.engine_after["node0"].value("vllm:e2e_request_latency_seconds_count") == 8
    assert run.client is not None and len(run.client.good) == 8
    assert analyse(run).name in WORK_CAUSES


def test_loading_a_run_gives_the_verdict_of_the_run_in_memory(tmp_path: Path) -> None:
    there, here = analyse(load_run(write_folder(tmp_path / "r"))), analyse(simulate(requests=8).run())
    assert there.name == here.name
    assert there.ledger.total == pytest.approx(here.ledger.total, rel=1e-6)


@pytest.mark.parametrize(
    "missing",
    ["run.json", "profile.yaml", "ceilings.json", "samples.jsonl.gz", "client.json", "engine_before.node0.prom"],
)
def test_a_missing_part_is_named_and_the_rest_still_analysed(tmp_path: Path, missing: str) -> None:
    folder = write_folder(tmp_path / "r")
    (folder / missing).unlink()
    run = load_run(folder)
    assert any(missing.split(".")[0] in problem for problem in run.problems)
    verdict = analyse(run)
    assert any(missing.split(".")[0] in note for note in verdict.notes)
    assert verdict.name in (*WORK_CAUSES, "inconclusive")
    assert verdict.confidence <= analyse(load_run(write_folder(tmp_path / "whole"))).confidence


def test_engine_readings_inside_the_samples_stand_in(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "r")
    for path in folder.glob("engine_*.prom"):
        path.unlink()
    run = load_run(folder)
    assert set(run.engine_after) == {"node0"}
    assert analyse(run).name in WORK_CAUSES


def test_a_cut_file_gives_what_came_before_the_cut(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "r")
    path = folder / "samples.jsonl.gz"
    whole = len(load_run(folder).batches)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run = load_run(folder)
    assert 0 < len(run.batches) < whole
    assert any("cut short" in problem for problem in run.problems)


def test_broken_lines_and_documents(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "r")
    with gzip.open(folder / "samples.jsonl.gz", "wt") as stream:
        stream.write('{"node": "node0"\n[1]\n\n{"node": "node0", "samples": []}\n')
    (folder / "ceilings.json").write_text("{")
    (folder / "run.json").write_text("[1, 2]")
    (folder / "profile.yaml").write_text("name: [")
    run = load_run(folder)
    assert len(run.batches) == 1 and run.status == "partial" and not run.ceilings.known and run.profile is None
    assert any("2 lines" in problem for problem in run.problems)
    assert analyse(run).name == "inconclusive" or analyse(run).confidence < 0.6


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)


def test_a_window_takes_its_readings_from_its_batches() -> None:
    batches = simulate().batches()
    window = window_run(batches, (EPOCH + 2, EPOCH + 8))
    assert window.live
    before, after = window.engine_before["node0"], window.engine_after["node0"]
    name = "vllm:generation_tokens_total"
    assert (before.value(name) or 0) < (after.value(name) or 0)


@pytest.mark.parametrize("name", ["run.json", "plan.json"])
def test_a_run_of_another_form_is_refused_with_the_next_command(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "r")
    (folder / name).write_text(json.dumps({"schema": 1, "workers": []}))
    with pytest.raises(RunError, match=rf"{name}: schema 1, expected 2: .*cluster bench"):
        load_run(folder)


def test_a_run_holds_what_was_in_force_and_is_frozen(tmp_path: Path) -> None:
    run = load_run(write_folder(tmp_path / "r"))
    assert run.settings.max_num_seqs == 16 and run.settings.quantization == "w4a16"
    assert [worker.node for worker in run.workers] == ["node0", "node1"]
    assert run.overrides == {"max_num_seqs": 16, "enforce_eager": False}
    assert run.workload is not None and run.workload.requests == 8
    with pytest.raises(FrozenInstanceError):
        run.note = "x"  # type: ignore[misc]


@pytest.mark.parametrize("plan", [None, "[]", '{"schema": 2, "deployment": 3}'])
def test_without_its_plan_a_run_is_what_its_profile_and_its_changes_make(tmp_path: Path, plan: str | None) -> None:
    folder = write_folder(tmp_path / "r")
    whole = load_run(folder)
    if plan is None:
        (folder / "plan.json").unlink()
    else:
        (folder / "plan.json").write_text(plan)
    run = load_run(folder)
    assert (run.settings, run.overrides) == (whole.settings, whole.overrides)
    assert [worker.node for worker in run.workers] == ["node0", "node1"]
    assert analyse(run).name == analyse(whole).name


def test_results_are_read_compressed_and_a_sweep_in_its_order(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "r")
    plain = load_run(folder).client
    content = (folder / "client.json").read_bytes()
    (folder / "client.json").unlink()
    (folder / "client.json.gz").write_bytes(gzip.compress(content))
    assert load_run(folder).client == plain
    (folder / "client.json.gz").unlink()
    (folder / "client").mkdir()
    for index in range(1, 12):
        document = {**DETAILED, "max_concurrency": index}
        (folder / "client" / f"{index}.json").write_text(json.dumps(document))
    swept = load_run(folder).client
    assert swept is not None and [point["max_concurrency"] for point in swept.points] == list(range(1, 12))


def test_times_and_tokens_that_are_none_are_counted_and_reported(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "r")
    document = {**DETAILED, "ttfts": [0.5, -1, 1e300], "output_lens": [3, 2, 1e300], "itls": [[0.1, "x"], [0.3], []]}
    (folder / "client.json").write_text(json.dumps(document))
    run = load_run(folder)
    assert run.client is not None and run.client.good == [] and run.client.broken == 3
    assert any("client.json: 3 requests have times or tokens that are not numbers" in each for each in run.problems)


def test_bounds_that_no_run_has_are_those_of_the_samples(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "r")
    whole = load_run(folder)
    head = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**head, "started": 0}))
    run = load_run(folder)
    assert run.interval[0] == EPOCH and run.interval[1] == whole.interval[1]
    assert any("run.json: started 0, ended" in each for each in run.problems)
