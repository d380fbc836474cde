"""`cluster bench` and `cluster probe`: what they ask the control node for, print, and end with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bottleneck.profile import find_profile, load_profile
from bottleneck.runs.run import Run, client_result
from cli import bench, probe
from cli.control import ControlError
from tests.run_builder import save_run

RESULT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "bench" / "result.json").read_text())
NUMBERS = {
    "completed": 16,
    "failed": 0,
    "reconnected": 1,
    "duration_seconds": 30.0,
    "output_tokens_per_second": 17.0,
    "requests_per_second": 0.53,
    "ttft_seconds": {"mean": 5.8, "median": 1.4, "p99": 20.1},
    "tpot_seconds": {"mean": 0.05, "median": 0.05, "p99": 0.08},
    "itl_seconds": {"mean": 0.05, "median": 0.05, "p99": 0.08},
    "e2e_seconds": None,
}
SPREAD = {"median": 1e9, "low": 9e8, "high": 1.1e9, "samples": 7}


class Control:
    """Stands in for the control node."""

    lab, options = "demo", " --lab demo"

    def __init__(self, folder: Path) -> None:
        self.profile = load_profile(find_profile("embedded"))
        self.folder = folder
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.reports: list[dict[str, Any]] = []
        self.raises: BaseException | None = None
        self.points: list[dict[str, Any]] = [{"index": 1, "concurrency": 4, "requests": 16, "headline": dict(NUMBERS)}]
        self.ceilings: dict[str, Any] = {}

    def runner(
        self, function: str, arguments: dict[str, Any], on_progress: Callable[[Any], None], timeout: float | None = None
    ) -> Any:
        self.asked.append((function, arguments))
        for report in self.reports:
            on_progress(report)
        if self.raises:
            raise self.raises
        if function == "probe.run":
            return {"ceilings": self.ceilings, "path": "/x/ceilings.json", "seconds": 12.0}
        return {
            "run": "20261123T213000Z-tp2-00ff",
            "folder": "/var/lib/cluster/runs/20261123T213000Z-tp2-00ff",
            "deployment": "tp2",
            "status": "complete",
            "points": self.points,
            "problems": ["samples of node1 do not reach the end of the run"],
            "failed": sum(point["headline"]["failed"] for point in self.points),
            "first_error": "ConnectionError: refused",
            "seconds": 40.0,
        }

    def fetch(self, remote: str, local: Path) -> None:
        save_run(Run(id=local.name, deployment="tp2", interval=(0.0, 30.0), client=client_result(RESULT)), local)
        (local / "client.json").write_text(json.dumps(RESULT))


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Control:
    found = Control(tmp_path)
    for module in (bench, probe):
        monkeypatch.setattr(module, "connect", lambda profile, lab: found)
    monkeypatch.setenv("CLUSTER_RUNS", str(tmp_path / "runs"))
    return found


@pytest.fixture
def cluster() -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(bench.bench)
    app.command()(probe.probe)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, arguments, env={"COLUMNS": "200"})


def test_bench_prints_the_numbers_the_verdict_and_what_is_next(
    control: Control, cluster: Any, capsys: Any, tmp_path: Path
) -> None:
    finished = cluster("bench", "--concurrency", "1,2", "--note", "hello", "--no-warmup", "--no-probe")
    assert finished.exit_code == 0, finished.output
    ((function, arguments),) = control.asked
    assert function == "bench.run"
    assert arguments["concurrency"] == [1, 2] and arguments["rate"] is None
    assert arguments["note"] == "hello" and arguments["warmup"] is False
    assert arguments["probe"] is False
    assert not any("rate" in name for name in arguments if name != "rate"), (
        "a verdict is told nothing of the lab's faults"
    )
    assert "17" in finished.output and "1.4 s" in finished.output
    folder = tmp_path / "runs" / "20261123T213000Z-tp2-00ff"
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["schema"] == 2 and verdict["class"]
    assert verdict["title"] in finished.output.replace("\n", " ")


def test_bench_json_is_alone_on_standard_output(control: Control, cluster: Any) -> None:
    finished = cluster("bench", "--json", "--rate", "0.5")
    document = json.loads(finished.stdout)
    assert document["schema"] == 1 and document["run"].startswith("2026")
    assert document["points"][0]["headline"]["output_tokens_per_second"] == 17.0
    assert document["verdict"]["class"] and Path(document["folder"]).is_dir()
    assert control.asked[0][1]["rate"] == [0.5]
    assert control.asked[0][1]["probe"] is True


def test_failed_requests_end_with_1_and_say_how_many(control: Control, cluster: Any) -> None:
    control.points[0]["headline"]["failed"] = 3
    finished = cluster("bench")
    assert finished.exit_code == 1
    assert "3 of 16 requests failed: ConnectionError: refused" in finished.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--concurrency", "1", "--rate", "1"),
        ("--concurrency", "1,x"),
        ("--concurrency", "0"),
        ("--concurrency", ""),
        ("--rate", "nan"),
        ("--requests", "0"),
        ("--input", "-1"),
    ],
)
def test_wrong_usage_ends_with_2(control: Control, cluster: Any, options: tuple[str, ...]) -> None:
    finished = cluster("bench", *options)
    assert finished.exit_code == 2, finished.output
    assert control.asked == []


def test_a_failed_bench_fetches_what_there_is(control: Control, cluster: Any, tmp_path: Path) -> None:
    control.reports = [{"stage": "load", "detail": "run x", "run": "x", "folder": "/runs/x"}]
    control.raises = ControlError("tp2-0: the load generator ended with status 1")
    finished = cluster("bench")
    assert finished.exit_code == 1
    assert "the load generator ended with status 1" in finished.stderr
    assert "as a partial run" in finished.stderr
    assert (tmp_path / "runs" / "x" / "verdict.json").exists()


def test_a_bench_refused_at_once_fetches_nothing(control: Control, cluster: Any, tmp_path: Path) -> None:
    control.raises = ControlError("nothing is deployed; deploy it first: cluster deploy tp2")
    finished = cluster("bench")
    assert finished.exit_code == 1 and "cluster deploy tp2" in finished.stderr
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_keeps_the_partial_run(control: Control, cluster: Any, tmp_path: Path) -> None:
    control.reports = [{"stage": "load", "detail": "run x", "run": "x", "folder": "/runs/x"}]
    control.raises = KeyboardInterrupt()
    finished = cluster("bench")
    assert finished.exit_code != 0
    assert (tmp_path / "runs" / "x" / "run.json").exists()


def test_probe_prints_every_ceiling_with_its_interval(control: Control, cluster: Any) -> None:
    messages = {"deployment": "tp2", "backend": "gloo", "link": "direct", "ranks": 2}
    control.ceilings = {
        "nodes": {"node0": {"memory_read_bytes_per_second": SPREAD, "machine": {}}},
        "links": {"direct": {"node0->node1": {"bandwidth_bytes_per_second": SPREAD}}},
        "allreduce": {**messages, "sizes": {"4194304": SPREAD, "2048": {**SPREAD, "median": 0.002}}},
    }
    finished = cluster("probe", "--only", "links", "--force")
    assert finished.exit_code == 0, finished.output
    assert control.asked == [("probe.run", {"only": "links", "force": True})]
    assert "1 GB/s (0.9 GB/s to 1.1 GB/s)" in finished.output
    assert "8 Gbit/s (7.2 Gbit/s to 8.8 Gbit/s)" in finished.output
    assert finished.output.index("2 KiB") < finished.output.index("4 MiB")
    assert "all-reduce of tp2, 2 ranks over direct with gloo" in finished.output


def test_probe_refused_says_why_and_ends_with_1(control: Control, cluster: Any) -> None:
    control.raises = ControlError("tp2 is deployed; run cluster undeploy first, or cluster probe --force")
    finished = cluster("probe", "--json")
    assert finished.exit_code == 1 and finished.stdout == ""
    assert "cluster probe --force" in finished.stderr
    assert cluster("probe", "--only", "disks").exit_code == 2
