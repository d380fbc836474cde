"""A rank that dies: the cluster brings the deployment back by itself, and answers for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.conftest import Cluster

# A start of the engine takes 35 to 90 s on two cores; the rest is room for a slow machine.
DEADLINE_SECONDS = 500.0


def rank_processes(cluster: Cluster, node: str) -> list[int]:
    """Return the engine's rank processes on a node, by the name that the engine gives them."""
    lines = cluster.on(node, "ps", "-eo", "pid,args").splitlines()
    return [int(line.split()[0]) for line in lines if "VLLM::Worker" in line or "VLLM::EngineCore" in line]


def entries(cluster: Cluster, count: int) -> list[dict[str, Any]]:
    """Wait until the record of actions has so many entries."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        found: list[dict[str, Any]] = cluster.json("audit")["entries"]
        if len(found) >= count:
            return found
        time.sleep(2.0)
    raise AssertionError(f"no {count} entries in {DEADLINE_SECONDS} s: {cluster.json('audit')}")


@pytest.mark.timeout(1800)
def test_a_killed_follower_is_named_and_all_ranks_come_back(deployed: Callable[..., Cluster]) -> None:
    cluster = deployed("tp2")
    before = len(cluster.json("audit")["entries"])
    victims = rank_processes(cluster, "node1")
    assert victims
    cluster.on("node1", "kill", "-9", str(victims[-1]))
    (restart,) = entries(cluster, before + 1)[before:]
    assert (restart["action"], restart["result"]) == ("restart", "serves again"), restart
    assert "node1" in restart["cause"], restart
    status = cluster.json("status")
    assert len(status["recovery"]["restarts"]) == 1 and status["recovery"]["given_up"] is None
    assert cluster.stages() == {"node0": "ready", "node1": "ready"}
    assert not set(victims) & set(rank_processes(cluster, "node1"))

    # Paused, the same fault leaves it as it is; resumed, it is found at once.
    cluster.run("pause", "a test")
    cluster.on("node0", "kill", "-9", str(rank_processes(cluster, "node0")[-1]))
    found = cluster.json("resume", timeout=DEADLINE_SECONDS)
    assert found["serves"] is True and found["restarted"] is True, found
    actions = [entry["action"] for entry in cluster.json("audit")["entries"][before:]]
    assert actions == ["restart", "pause", "resume", "restart"]

    # What a person takes down stays down.
    cluster.run("undeploy", timeout=180)
    assert cluster.json("status")["deployment"] == {}
    assert len(cluster.json("audit")["entries"]) == before + 4
