"""The start of a deployment becomes a run: while it lasts, when it is over, and when it failed."""

import gzip
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import salt.client
from salt.exceptions import CommandExecutionError

from bottleneck.diagnosis.verdict import analyse
from bottleneck.profile import find_profile
from bottleneck.runs.run_folder import load_run
from tests import sealing
from tests.by_file import load

WORKERS = [{"node": node, "name": "tp2-0", "replica": 0, "rank": rank} for rank, node in enumerate(("node0", "node1"))]


class Local:
    """Stands in for Salt's client."""

    def __init__(self, mopts: Any) -> None:
        pass

    def cmd(self, hosts: list[str], function: str, *arguments: Any) -> dict[str, Any]:
        return {host: {"engine.version": {"vllm": "0"}, "probe.machine": {"cores": 1}}[function] for host in hosts}


@pytest.fixture
def startup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("_runners/start_recording.py", "start_recording_runner")
    sealing.nodes_answer(monkeypatch)
    monkeypatch.setattr(salt.client, "LocalClient", Local)
    module.__opts__ = {"cluster_profile": str(find_profile("embedded")), "cluster_directory": str(tmp_path)}
    module.deployed, module.starting = {}, {}

    def export(start: float, end: float, path: str) -> None:
        """Write a second's samples of workers that wait for storage half of the time."""
        with gzip.open(path, "wt") as file:
            for node in ("node0", "node1"):
                for second in range(int(end - start) + 1):
                    worker = {
                        "storage_wait_s": second / 2,
                        "storage_read_bytes": 4e6 * second,
                        "cpu_user_s": second / 3,
                    }
                    sample = {
                        "t": start + second,
                        "cpu": {"0": [second / 2, 0, 0, 0, 0, 0]},
                        "workers": {"tp2-0": worker},
                    }
                    batch = {"node": node, "boot": "b", "sequence": second + 1, "samples": [sample]}
                    file.write(json.dumps({**batch, "t0": start + second, "t1": start + second + 1}) + "\n")

    module.__salt__ = {
        "cluster.starting_record": lambda: module.starting,
        "cluster.deployment_record": lambda: module.deployed,
        "telemetry.export": export,
    }
    return module


def of(**more: Any) -> dict[str, Any]:
    return {"deployment": "tp2", "overrides": {}, "settings": {}, "workers": WORKERS, **more}


def test_a_start_that_lasts_is_judged_on_what_there_is_so_far(startup: Any) -> None:
    startup.starting = of(began=time.time() - 30)
    startup.deployed = of(began=time.time() - 900, ready=time.time() - 800)
    found = startup.record(note="why so slow")
    assert found["state"] == "starting" and found["start_seconds"] == pytest.approx(30, abs=3)
    run = load_run(found["folder"])
    assert run.start and run.deployment == "tp2" and run.note == "why so slow" and not run.problems[1:]
    verdict = analyse(run)
    assert verdict.name == "weight_loading", verdict.to_json()["evidence"]
    document = json.loads((run.folder / "run.json").read_text()) if run.folder else {}
    assert document["kind"] == "start" and document["state"] == "starting" and document["workload"] == {}


def test_a_start_ends_when_it_serves_or_is_given_up(startup: Any) -> None:
    now = time.time()
    startup.deployed = of(began=now - 100, ready=now - 60, first_token=now - 58)
    served = load_run(startup.record()["folder"])
    assert served.interval == (now - 100, now - 60), "the first answer is a load already"
    startup.starting = of(began=now - 50, ended=now - 10)
    failed = startup.record()
    assert failed["state"] == "failed" and load_run(failed["folder"]).interval == (now - 50, now - 10)


def test_what_cannot_be_recorded_is_reported_and_leaves_nothing(startup: Any, tmp_path: Path) -> None:
    with pytest.raises(CommandExecutionError, match="nothing is deployed"):
        startup.record()
    startup.starting = of(began=time.time() - 0.1)
    with pytest.raises(CommandExecutionError, match="only begun"):
        startup.record()
    startup.starting = of(began=time.time() - 30)
    startup.__salt__["telemetry.export"] = lambda *arguments: 1 / 0
    with pytest.raises(ZeroDivisionError):
        startup.record()
    assert not list((tmp_path / "runs").iterdir())
