"""The failure that `cluster deploy` ends with: which of several workers' it names, and when; and what clients meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from bottleneck.profile import find_profile, load_profile
from control import gateway, readiness, records
from tests.by_file import load

Answer = dict[str, dict[str, Any] | None]

CLOSED = "the other rank could not be reached: Connection closed by peer; next: cluster status"
MEMORY = "the accelerator ran out of memory; next: cluster deploy tp2 --set gpu_memory_utilization=0.8"
SPECS = [{"node": f"node{rank}", "name": "tp2-0", "head": rank == 0} for rank in range(2)]


def failed(reason: str | None, rank: int | None = None, moment: float | None = None) -> dict[str, Any]:
    failure = None if rank is None else {"name": "x", "rank": rank, "sentence": reason, "moment": moment}
    worker = {"stage": "failed", "reason": reason, "failure": failure, "log": "/var/log/cluster/vllm-tp2-0.log"}
    return {"tp2-0": worker}


def at(stage: str) -> dict[str, Any]:
    return {"tp2-0": {"stage": stage, "reason": None, "failure": None}}


class Nodes:
    """Answers polls one after the other; the last answer again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.asked = 0
        self._answers: Iterator[Answer] = itertools.chain(answers, itertools.repeat(answers[-1]))

    def ask_workers(self, names: list[str]) -> Answer:
        self.asked += 1
        return next(self._answers)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(readiness, "POLL_SECONDS", 0.0)
    return readiness


def failure(module: ModuleType, nodes: Nodes) -> str:
    with pytest.raises(CommandExecutionError) as raised:
        module.wait_ready(nodes, SPECS, module.time.monotonic(), 60.0)
    return str(raised.value)


def test_the_cause_is_named_not_the_first_rank(cluster: ModuleType) -> None:
    """Both nodes of a pipeline have failed by one poll: node0 lost node1, and node1 ran out of memory."""
    nodes = Nodes({"node0": failed(CLOSED, 3, 100.0), "node1": failed(MEMORY, 0, 101.0)})
    text = failure(cluster, nodes)
    assert text.startswith(f"tp2-0 on node1 failed: {MEMORY}") and "vllm-tp2-0.log" in text


def test_of_two_causes_the_first_in_time_is_named(cluster: ModuleType) -> None:
    other = "/dev/shm is too small for NCCL's segment; next: cluster salt -- node0 cmd.run 'df -h /dev/shm'"
    nodes = Nodes({"node0": failed(other, 0, 102.0), "node1": failed(MEMORY, 0, 101.0)})
    assert failure(cluster, nodes).startswith("tp2-0 on node1")


def test_a_rank_that_lost_another_waits_for_its_reason(cluster: ModuleType) -> None:
    nodes = Nodes(
        {"node0": failed(CLOSED, 3, 100.0), "node1": at("loading")},
        {"node0": failed(CLOSED, 3, 100.0), "node1": at("loading")},
        {"node0": failed(CLOSED, 3, 100.0), "node1": failed(MEMORY, 0, 99.0)},
    )
    assert failure(cluster, nodes).startswith("tp2-0 on node1")
    assert nodes.asked == 3


def test_a_cause_is_named_at_once(cluster: ModuleType) -> None:
    nodes = Nodes({"node0": at("loading"), "node1": failed(MEMORY, 0, 101.0)})
    assert failure(cluster, nodes).startswith("tp2-0 on node1")
    assert nodes.asked == 1


def test_a_rank_that_hangs_is_not_waited_for_long(cluster: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SETTLE_SECONDS", 0.0)
    nodes = Nodes({"node0": failed(CLOSED, 3, 100.0), "node1": at("loading")})
    text = failure(cluster, nodes)
    assert text.startswith("tp2-0 on node0 failed: the other rank could not be reached")


@pytest.mark.parametrize("reason", ["the other rank could not be reached: x", None])
def test_a_worker_without_a_report_comes_after_one_with(cluster: ModuleType, reason: str | None) -> None:
    nodes = Nodes({"node0": failed(reason), "node1": failed("ValueError: never seen")})
    assert failure(cluster, nodes).startswith("tp2-0 on node1 failed: ValueError")


def test_every_failure_names_the_next_command(cluster: ModuleType) -> None:
    nodes = Nodes({"node0": failed("ValueError: never seen", 1, 5.0), "node1": at("loading")})
    assert failure(cluster, nodes).endswith("; next: cluster logs node0 -n 200")
    nodes = Nodes(
        {
            "node0": failed("NCCL: unhandled system error; next: cluster logs NODE -n 200", 2, 5.0),
            "node1": at("loading"),
        }
    )
    assert "next: cluster logs node0 -n 200" in failure(cluster, nodes)


@pytest.fixture
def deploys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """The runner, with what is done in order in place of nodes and gateway."""
    runner, done = load("_runners/cluster.py", "cluster_deploys"), []
    profile = load_profile(find_profile("embedded"))

    class Asked:
        def __init__(self, _: Any) -> None:
            self.profile = profile

        def ask(self, function: str, **_: Any) -> dict[str, Any]:
            done.append(function)
            return {}

    monkeypatch.setattr(runner, "Nodes", Asked)
    monkeypatch.setattr(runner, "_start", lambda *_: done.append("start"))
    monkeypatch.setattr(readiness, "warm", lambda *_: done.append("warm"))
    monkeypatch.setattr(gateway, "expect", lambda _: done.append("expect"))
    monkeypatch.setattr(gateway, "serve", lambda _, nodes: done.append(f"serve {' '.join(nodes)}"))
    monkeypatch.setattr(
        gateway, "withdraw", lambda _, nodes, awaited: done.append(f"withdraw {' '.join(nodes)} {awaited}")
    )
    monkeypatch.setattr(runner, "__opts__", {"cluster_directory": str(tmp_path)}, raising=False)
    return runner, done


def test_clients_wait_for_a_deployment_that_starts_and_are_served_once_it_is_warm(deploys: Any) -> None:
    runner, done = deploys
    runner.deploy("replicas")
    assert done == ["expect", "start", "warm", "serve node0 node1"]
    done.clear()
    runner.undeploy()
    # What is under way ends before its engine does.
    assert done == ["withdraw node0 node1 False", "worker.stop"]


@pytest.mark.parametrize("again", [None, 1000.0])
def test_of_a_deploy_that_failed_nobody_waits_for_more_unless_it_is_tried_again(
    deploys: Any, monkeypatch: pytest.MonkeyPatch, again: float | None
) -> None:
    runner, done = deploys

    def fails(*_: Any) -> None:
        raise CommandExecutionError("no memory")

    monkeypatch.setattr(runner, "_start", fails)
    if again:
        records.write(runner.__opts__, records.DEPLOYMENT, {"deployment": "tp2", "overrides": {}, "started": again})
    with pytest.raises(CommandExecutionError, match="no memory"):
        runner.deploy("tp2", again=again)
    assert done == ["expect", f"withdraw node0 {again is not None}", "worker.stop"]
