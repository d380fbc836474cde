"""Salt takes the nodes from bare to ready, once; what they measure arrives and is kept."""

import json
import time
from typing import Any

import pytest

from tests.lab.conftest import Cluster


def returned_by_salt(cluster: Cluster, *command: str) -> dict[str, Any]:
    """Run `salt ... --out=json --static` on the control node, as a person would, and return what it printed."""
    printed = cluster.on("control", "salt", "--out=json", "--static", *command)
    found: dict[str, Any] = json.loads(printed)
    return found


@pytest.mark.timeout(1800)
def test_the_second_apply_changes_nothing(configured: Cluster) -> None:
    by_hand = returned_by_salt(configured, "*", "state.apply")
    assert sorted(by_hand) == ["node0", "node1"]
    for node, states in by_hand.items():
        assert len(states) > 15, f"{node}: {states}"
        wrong = {name: state for name, state in states.items() if state["changes"] or state["result"] is not True}
        assert not wrong, f"{node}: {wrong}"
    planned = configured.json("plan")["nodes"]
    assert {node: (summary["changed"], summary["failed"]) for node, summary in planned.items()} == {
        "node0": ([], []),
        "node1": ([], []),
    }


@pytest.mark.timeout(600)
def test_plan_says_what_apply_then_does(configured: Cluster) -> None:
    configured.on("node0", "rm", "/opt/cluster/model")
    configured.on("node0", "ip", "address", "flush", "dev", "usb4")
    planned = configured.json("plan", "network,model")["nodes"]
    assert [state["name"] for state in planned["node0"]["changed"]] == ["usb4", "/opt/cluster/model"]
    assert planned["node1"]["changed"] == []
    assert "10.77.1.10" not in configured.on("node0", "ip", "address", "show", "usb4"), "a plan changes nothing"
    applied = configured.json("apply", "network,model")["nodes"]
    assert [state["name"] for state in applied["node0"]["changed"]] == ["usb4", "/opt/cluster/model"]
    assert "10.77.1.10" in configured.on("node0", "ip", "address", "show", "usb4")
    assert configured.json("plan", "network,model")["nodes"]["node0"]["changed"] == []


@pytest.mark.timeout(300)
def test_a_node_sees_its_own_slice_alone(configured: Cluster) -> None:
    own = returned_by_salt(configured, "node0", "pillar.get", "node", "unmask=True")["node0"]
    assert own["name"] == "node0"
    assert own["links"]["direct"]["address"] == "10.77.1.10"
    assert "10.77.1.11" not in json.dumps(own)
    served = returned_by_salt(configured, "node0", "cp.list_master")["node0"]
    assert served and not any("pillar" in path or "profiles" in path or path.endswith(".pem") for path in served)


@pytest.mark.timeout(300)
def test_samples_arrive_in_order_and_are_acknowledged(configured: Cluster) -> None:
    def status() -> dict[str, Any]:
        printed = configured.on("control", "salt-run", "--out=json", "telemetry.status")
        found: dict[str, Any] = json.loads(printed)
        return found

    deadline = time.monotonic() + 90
    while True:
        sampled = returned_by_salt(configured, "*", "telemetry.status")
        acknowledged = {node: (state.get("acknowledged") or 0) for node, state in sampled.items()}
        if len(acknowledged) == 2 and min(acknowledged.values()) > 5:
            break
        assert time.monotonic() < deadline, f"no acknowledgement: {sampled} {status()}"
        time.sleep(1)
    assert all(state["dropped"] == 0 for state in sampled.values()), sampled
    assert {"node0", "node1"} <= status()["nodes"].keys()


@pytest.mark.timeout(300)
def test_errors_name_the_next_command(configured: Cluster) -> None:
    for arguments, words in (
        (("logs", "node7"), "no node node7"),
        (("bench",), "deploy"),
        (("deploy", "tp2", "--set", "max_num_seqs"), "expected key=value"),
        (("deploy", "tp2", "--set", "max_nun_seqs=4"), "max_num_seqs"),
    ):
        finished = configured.run(*arguments, check=False)
        assert finished.returncode != 0, arguments
        assert words in finished.stderr, finished.stderr
        assert "Traceback" not in finished.stderr, finished.stderr
