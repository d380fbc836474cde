"""The recording of the benchmark: its plan, how strong a fault is put in, and the runs as they are made and kept."""

import gzip
import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli.verify.recording as recording
from bottleneck.accuracy.trials import Trial
from bottleneck.accuracy.truth import truths
from bottleneck.profile import find_profile, load_profile
from cli.control import ControlError
from cli.main import app
from cli.verify import archive
from cli.verify.faults import _KINDS
from cli.verify.groups import Block, Group, Stage, Step, dealt, sweep, together
from cli.verify.loads import LONGEST_ROUND_SECONDS, RANGES, Load, draw
from cli.verify.pace import requests_for
from cli.verify.plan import groups, starts
from cli.verify.record import Record
from cli.verify.recording import Recorder
from cli.verify.strengths import KINDS, TARGETS, Fault, Healthy, injections, made, next_strength

LOAD = Load("mixed", 4, 128, 16)
HEALTHY = Healthy(0.02, 3.0, 5.0)


# The plan ------------------------------------------------------------------------------


def test_the_plan_hangs_on_its_seed_alone_and_draws_anew_each_round() -> None:
    assert groups(1) == groups(1) != groups(2)
    assert len({group.name for group in groups(1)}) == len(groups(1))
    first, second = (next(group for group in groups(1) if group.name == name) for name in ("tp2-links", "tp2-links-2"))
    assert first.stages != second.stages


def test_the_first_round_has_every_fault_and_every_deployment_and_cases_recorded_five_times() -> None:
    found = groups(1, rounds=1)
    kinds = {
        kind for group in found for stage in group.stages for block in stage.blocks for step in block.steps
        for kind, _ in step.parts
    } | {fault.kind for group in found for stage in group.stages for fault in stage.faults}  # fmt: skip
    assert kinds == {*KINDS, "slots", "budget", "cache"}
    assert {stage.deployment for group in found for stage in group.stages} == {"tp2", "pp2", "replicas", "single"}
    repeated = 0
    for stage in (stage for group in found for stage in group.stages):
        for block in stage.blocks:
            again = [step.parts for step in block.steps if step.again and len(step.parts) == 1]
            repeated += sum(again.count(parts) >= 4 for parts in dict.fromkeys(again))
            repeated += block.healthy >= 5 or block.runs - len(block.steps) >= 5
    assert repeated >= 40
    assert any(len(step.parts) == 2 for group in found for stage in group.stages for block in stage.blocks
               for step in block.steps)  # fmt: skip


def test_a_setting_that_is_a_fault_is_recorded_under_loads_of_the_roomy_deployment_before_it() -> None:
    for group in groups(1):
        for number, stage in enumerate(group.stages):
            if stage.faults:
                roomy = [one for one in group.stages[:number] if not one.faults and one.deployment == stage.deployment]
                loads = {block.load for one in roomy for block in one.blocks}
                assert {block.load for block in stage.blocks} <= loads, group.name
                changed = {fault.kind for fault in stage.faults}
                assert changed <= {"slots", "budget", "cache"} and stage.settings


def test_groups_are_dealt_whole_and_about_evenly_the_valuable_ones_first() -> None:
    whole = groups(1, rounds=1)
    shares = dealt(whole, 14)
    assert sorted(group.name for share in shares for group in share) == sorted(group.name for group in whole)
    assert {share[0].name for share in shares} == {group.name for group in whole[:14]}
    seconds = [sum(group.seconds for group in share) for share in dealt(groups(1), 14)]
    assert max(seconds) < 1.5 * min(seconds)


def test_a_drawn_load_lies_in_its_range_and_takes_no_minutes() -> None:
    rng = random.Random(3)
    for kind, ranges in RANGES.items():
        for _ in range(20):
            load = draw(kind, rng)
            numbers = (load.concurrency, load.input_tokens, load.output_tokens)
            assert all(low <= value <= high for value, (low, high) in zip(numbers, ranges, strict=True))
            assert load.round_seconds <= LONGEST_ROUND_SECONDS or numbers == tuple(low for low, _ in ranges)


def test_healthy_and_faulty_runs_take_turns() -> None:
    turns = recording._turns(Block(LOAD, sweep("quota", "node1")))
    assert turns[0] is turns[-1] is None and len([step for step in turns if step]) == len(TARGETS)
    assert all(None in turns[place : place + 3] for place in range(len(turns) - 2)), "each has one beside it"
    assert Block(LOAD, sweep("quota", "node1")).runs == len(turns)
    assert recording._turns(Block(LOAD, healthy=3)) == [None] * 3


def test_two_faults_at_once_have_each_of_them_alone_before_them() -> None:
    steps = together(("link_rate", None), ("quota", "node1"))
    for number, step in enumerate(steps):
        if len(step.parts) == 2:
            alone = {(one.parts[0], one.costs[0]) for one in steps[:number] if len(one.parts) == 1}
            assert set(zip(step.parts, step.costs, strict=True)) <= alone and step.again


# Strengths -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KINDS if name != "bursts"])
def test_the_strength_of_a_wanted_cost_is_found_in_few_runs(name: str) -> None:
    """A world that is off the rough model by a factor: from the second run on the cost is about what is wanted."""
    kind = KINDS[name]
    fault = 2.0 * kind.size(next_strength(kind, 0.4, "tp2", LOAD, HEALTHY, {}))

    def cost(strength: float) -> float:
        if kind.threshold:
            return max(1.4 * kind.size(strength) / fault * 2.0 - 1.0, 0.0)
        return float(0.4 * (kind.size(strength) / (fault / 2.0) * 1.6) ** 1.1)

    seen: dict[float, float] = {}
    for wanted in (0.4, 0.2, 0.3, 0.5):
        strength = next_strength(kind, wanted, "tp2", LOAD, HEALTHY, seen)
        seen[strength] = cost(strength)
        if len(seen) > 2:
            assert seen[strength] == pytest.approx(wanted, rel=0.25)


def test_a_strength_stays_in_its_range_and_goes_on_where_nothing_was_felt() -> None:
    kind = KINDS["link_rate"]
    assert next_strength(kind, 1e-6, "tp2", LOAD, HEALTHY, {}) == kind.weakest
    assert next_strength(kind, 1e6, "tp2", LOAD, HEALTHY, {}) == kind.strongest
    api_server = KINDS["api_server"]
    assert next_strength(api_server, 0.4, "tp2", LOAD, HEALTHY, {0.012: 0.0}) < 0.012 / 2


def test_every_fault_is_put_in_by_what_the_lab_can_do() -> None:
    rng = random.Random(1)
    for name, kind in KINDS.items():
        fault = made(kind, kind.within(kind.size(kind.weakest) * 2), "node1", rng)
        done = injections(fault, ("node0", "node1"))
        assert {one["kind"] for one in done} <= set(_KINDS)
        assert bool(done) == (name != "low_rate")
        assert Fault.from_json(json.loads(json.dumps(fault.to_json()))) == fault
        assert [one["node"] for one in done if "node" in one] == (
            ["node0", "node1"] if name == "foreign_all" else ["node0"] if name == "api_server" else
            ["node1"] if kind.place == "node" else []
        )  # fmt: skip
    (work,) = injections(Fault("foreign", 2.5, "node1"), ("node0", "node1"))
    assert work["processes"] == 3 and work["busy_seconds"] / (work["busy_seconds"] + work["pause_seconds"]) == (
        pytest.approx(2.5 / 3)
    )
    (burst,) = injections(Fault("bursts", 0.25, "node1", burst_seconds=0.6), ("node0", "node1"))
    assert (burst["busy_seconds"], burst["pause_seconds"]) == (0.6, pytest.approx(1.8))


def test_a_healthy_run_is_made_to_last_some_seconds_in_whole_rounds() -> None:
    assert requests_for(LOAD, 8, 1.0) == 40
    assert requests_for(LOAD, 40, 10.0) == 20
    assert requests_for(LOAD, 8, 60.0) == 8, "two rounds at least"
    assert requests_for(Load("alone", 1, 64, 64), 3, 30.0) == 3


def test_cores_aside_are_numbers_and_ranges_and_become_the_control_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    placed: list[Any] = []
    monkeypatch.setattr("cli.verify.command.connect", lambda profile, lab: Lab(tmp_path))
    monkeypatch.setattr("lab.place", lambda lab, node, cores: placed.append((lab, node, cores)))
    monkeypatch.setattr("os.sched_setaffinity", lambda pid, cores: placed.append((pid, cores)))
    monkeypatch.setattr(Recorder, "record_groups", lambda self, chosen: placed.append(len(chosen)))
    monkeypatch.chdir(tmp_path)
    ask = ["verify-verdicts", "--minutes", "1", "--lab", "part1", "--only", "tp2-links"]
    assert CliRunner().invoke(app, [*ask, "--aside", "26-28,31"]).exit_code == 0
    assert placed == [("part1", "control", [26, 27, 28, 31]), (0, [26, 27, 28, 31]), 4]
    wrong = CliRunner().invoke(app, [*ask, "--aside", "all"])
    assert wrong.exit_code == 2 and "expected cores, such as 24-31" in wrong.output


# Recording -----------------------------------------------------------------------------


class Lab:
    """Stands in for a lab's control node: a load takes its time, and longer with what is put in."""

    lab = "part1"

    def __init__(self, tmp_path: Path) -> None:
        self.profile = load_profile(find_profile("embedded"))
        self.folder = tmp_path / "control"
        self.asked: list[tuple[str, Any]] = []
        self.put_in: list[Mapping[str, Any]] = []
        self.sent: list[list[Mapping[str, Any]]] = []
        self.breaks: set[int] = set()
        self.broken_deployment = ""

    def runner(
        self, function: str, arguments: Any = None, on_progress: Any = None, timeout: float | None = None
    ) -> Any:
        self.asked.append((function, arguments))
        if function == "cluster.deploy" and arguments["deployment"] == self.broken_deployment:
            raise ControlError("node1 failed: out of memory")
        if function == "start_recording.record":
            seconds = 30.0 + 60.0 * sum(one["kind"] == "cold_disk" for one in self.put_in)
            folder = self._folder(f"start-{len(self.asked):03d}")
            return {"run": folder.name, "folder": str(folder), "start_seconds": seconds, "problems": []}
        if function != "bench.run":
            return {}
        number = len(self.sent)
        self.sent.append(list(self.put_in))
        if number in self.breaks:
            raise ControlError("the load generator ended with status 1")
        slow = 1.0 + sum(1.0 / one["cores"] - 1.0 for one in self.put_in if one["kind"] == "slow")
        seconds = slow * 0.01 * arguments["requests"] * arguments["output_tokens"]
        headline = {
            "completed": arguments["requests"], "failed": 0, "duration_seconds": seconds,
            "output_tokens_per_second": arguments["requests"] * arguments["output_tokens"] / seconds,
            "requests_per_second": arguments["requests"] / seconds, "ttft_seconds": {"mean": 0.1},
            "tpot_seconds": None, "e2e_seconds": {"mean": seconds},
        }  # fmt: skip
        points = [{"headline": headline}]
        on_progress({"stage": "collecting", "detail": "samples", "points": points})
        folder = self._folder(f"run-{number:03d}")
        return {"run": folder.name, "folder": str(folder), "points": points, "failed": 0, "first_error": None,
                "problems": []}  # fmt: skip

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"id": folder.name}))
        (folder / "verdict.json").write_text("{}")
        (folder / "samples.jsonl.gz").write_bytes(gzip.compress(b'{"node": "node0"}\n' * 50))
        return folder

    def fetch(self, remote: str, local: Path) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        Path(remote).rename(local)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    found = Lab(tmp_path)

    @contextmanager
    def injected(control: Any, done: Any) -> Iterator[None]:
        found.put_in = list(done)
        yield
        found.put_in = []

    @contextmanager
    def generator(control: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(recording, "injected", injected)
    monkeypatch.setattr(recording, "generator", generator)
    return found


def record(lab: Lab, tmp_path: Path, *found: Group, seconds: float = 3600.0) -> dict[str, dict[str, Any]]:
    kept = Record(tmp_path / "out" / "runs.jsonl")
    Recorder(lab, kept, tmp_path / "out", 1, time.monotonic() + seconds).record_groups(found)  # type: ignore[arg-type]
    # Each is written when its samples are there: not always in order.
    return dict(sorted(kept.lines().items()))


QUOTA = Group("nodes", (Stage("tp2", (Block(LOAD, sweep("quota", "node1", repeats=2)),)),))


def test_a_block_is_recorded_in_turns_and_every_run_is_kept(lab: Lab, tmp_path: Path) -> None:
    lines = record(lab, tmp_path, QUOTA)
    runs = [line for line in lines.values() if "run" in line]
    assert [bool(line["faults"]) for line in runs[:5]] == [False, False, True, True, False], (
        "the first is too short: once more with the requests that all others have"
    )
    assert {line["requests"] for line in runs[1:]} == {32}
    healthy = runs[1]["measured"]["duration_seconds"]
    costs = {line["costs"][0]: line["measured"]["duration_seconds"] / healthy - 1 for line in runs if line["faults"]}
    assert all(costs[cost] == pytest.approx(cost, rel=0.05) for cost in TARGETS)
    again = [line["faults"][0]["strength"] for line in runs if line["again"]]
    assert len(again) == 2 and len(set(again)) == 1
    assert lines["nodes/done"]["done"]
    assert [argument["note"] for _, argument in lab.asked if argument and "note" in argument] == [], "nothing is told"
    (packed,) = (tmp_path / "out" / "runs").glob("*.tar.xz")
    with archive.unpacked(packed) as folders:
        assert sorted(folder.name for folder in folders) == sorted(line["run"] for line in runs)
        assert gzip.decompress((folders[0] / "samples.jsonl.gz").read_bytes()).count(b"\n") == 50
        assert not (folders[0] / "verdict.json").exists()
    assert not list((tmp_path / "out" / "raw-part1").iterdir())


def test_what_is_done_is_not_done_again(lab: Lab, tmp_path: Path) -> None:
    first = record(lab, tmp_path, QUOTA)
    sent = len(lab.sent)
    assert record(lab, tmp_path, QUOTA) == first and len(lab.sent) == sent


def test_a_deployment_that_breaks_is_left_out_with_its_error(lab: Lab, tmp_path: Path) -> None:
    lab.broken_deployment = "pp2"
    broken = Group("other", (Stage("pp2", QUOTA.stages[0].blocks), *QUOTA.stages))
    lines = record(lab, tmp_path, broken, QUOTA)
    assert "out of memory" in lines["other/0"]["error"] and "other/done" not in lines
    assert lines["nodes/done"]["done"] and any(name.startswith("other/1.0/") for name in lines)


def test_a_run_that_fails_is_a_line_and_two_in_a_row_end_the_deployment(lab: Lab, tmp_path: Path) -> None:
    lab.breaks = {3, 6, 7}
    lines = record(lab, tmp_path, QUOTA, Group("next", QUOTA.stages))
    failed = [line for line in lines.values() if line["error"] and "faults" in line]
    assert len(failed) == 3 and "2 runs failed" in lines["nodes/0"]["error"]
    deployed = [name for name, _ in lab.asked if name == "cluster.deploy"]
    assert len(deployed) == 2, "the next group does not trust what is left of it"


def test_it_stops_when_the_time_is_spent(lab: Lab, tmp_path: Path) -> None:
    lines = record(lab, tmp_path, QUOTA, seconds=1.0)
    assert not lines and lab.asked == [("cluster.undeploy", None)]


def test_a_setting_that_is_a_fault_is_in_the_line_and_the_strengths_go_on_from_the_roomy_deployment(
    lab: Lab, tmp_path: Path
) -> None:
    alone = sweep("quota", "node1", (0.5,))
    both = (Step(alone[0].parts, alone[0].costs, again=True),)
    stages = (
        Stage("tp2", (Block(LOAD, healthy=1), Block(LOAD, alone))),
        Stage("tp2", (Block(LOAD, healthy=1), Block(LOAD, both)), {"max_num_seqs": 2}, (Fault("slots", 2.0),)),
    )
    lines = [line for line in record(lab, tmp_path, Group("slots", stages)).values() if "run" in line]
    limited = [line for line in lines if line["settings"]]
    assert [[fault["kind"] for fault in line["faults"]] for line in limited] == [
        ["slots"], ["slots"], ["slots", "quota"], ["slots"],
    ]  # fmt: skip
    (quota,) = (line["faults"][0] for line in lines if not line["settings"] and line["faults"])
    assert limited[2]["faults"][1] == quota, "at the strength that was recorded alone"
    assert {line["requests"] for line in limited} == {32}


def test_starts_are_recorded_warm_and_from_a_slow_disk_by_name_alone(lab: Lab, tmp_path: Path) -> None:
    assert all(not stage.starts for group in groups(1) for stage in group.stages)
    lines = [line for line in record(lab, tmp_path, starts()).values() if "run" in line]
    assert len(lines) == starts().runs and not lab.sent
    trials = [Trial.from_json(line) for line in lines]
    costs = [found.cost.value for found in truths([each for each in trials if each]).values() if found.cost]
    assert len(costs) == 6 and min(costs) == pytest.approx(2.0), "a single node has one disk"
    assert sum(name == "cluster.deploy" for name, _ in lab.asked) == len(lines)
