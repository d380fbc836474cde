"""The probe runner asks the right nodes, keeps what they measured, and ends everything when one fails."""

import json
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from bottleneck.profile import find_profile
from tests import sealing
from tests.by_file import load

REPOSITORY = Path(__file__).parents[2]
VALUES = {
    "memory_read_bytes_per_second": [1e10, 1.1e10, 1.2e10],
    "gemm_bf16_flops_per_second": [2e11] * 3,
    "disk_read_bytes_per_second": [],
}
MACHINE = {"cpu_model": "x", "cores": 1, "memory_bytes": 1, "kernel": "6", "machine_id_digest": "aa"}


class Local:
    """Stands in for Salt's client and notes what was asked of whom."""

    asked: list[tuple[str, str, list[Any]]]
    workers: dict[str, Any]
    failing: str | None = None
    measured_on = "cpu"

    def __init__(self, mopts: Any) -> None:
        pass

    def cmd(self, hosts: list[str], function: str, arguments: list[Any]) -> dict[str, Any]:
        self.asked += [(host, function, arguments) for host in hosts]
        if function == "worker.status":
            return dict.fromkeys(hosts, self.workers)
        if function == self.failing:
            return {host: sealing.Failed(f"Traceback\n  ...\nRuntimeError: {host} is tired") for host in hosts}
        return {host: self.answer(host, function, arguments) for host in hosts}

    def answer(self, host: str, function: str, arguments: list[Any]) -> Any:
        if function == "probe.node":
            specification = arguments[0][host]
            sizes = [{str(size): [1e-3] * 3 for size in each["sizes_bytes"]} for each in specification["collectives"]]
            found = [
                {"kind": each["kind"], "sizes": size}
                for each, size in zip(specification["collectives"], sizes, strict=True)
            ]
            return {
                "values": VALUES if arguments[1] else {},
                "notes": {},
                "collectives": found,
                "machine": MACHINE,
                "device": {"kind": self.measured_on, "name": "", "by": "torch"},
            }
        if function == "probe.link":
            return {
                "latency_seconds": [5e-5],
                "to_peer_bytes_per_second": [1e9, 1.1e9, 1.2e9],
                "from_peer_bytes_per_second": [9e8],
            }
        return []


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = load("_runners/probe.py", "probe_runner")
    client = type("Client", (Local,), {"asked": [], "workers": {}})
    sealing.nodes_answer(monkeypatch)
    monkeypatch.setattr("salt.client.LocalClient", client)
    module.__opts__ = {"cluster_profile": str(find_profile("embedded")), "cluster_directory": str(tmp_path)}
    module.__salt__ = {"cluster.deployment_record": lambda: {"deployment": "tp2"}}
    module.client = client
    return module


def asked(probe: Any, function: str) -> list[str]:
    return [host for host, name, _ in probe.client.asked if name == function]


def test_everything_is_measured_and_kept(probe: Any, tmp_path: Path) -> None:
    result = probe.run()
    stored = json.loads((tmp_path / "ceilings.json").read_text())
    assert stored == result["ceilings"] == probe.show()
    assert set(stored["nodes"]) == {"node0", "node1"}
    assert stored["nodes"]["node0"]["memory_read_bytes_per_second"]["median"] == 1.1e10
    assert stored["nodes"]["node0"]["machine"]["cpu_model"] == "x"
    assert set(stored["links"]) == {"ethernet", "direct"}
    assert stored["links"]["direct"]["node0->node1"]["bandwidth_bytes_per_second"]["median"] == 1.1e9
    assert stored["links"]["direct"]["node1->node0"]["bandwidth_bytes_per_second"]["median"] == 9e8
    assert stored["allreduce"]["deployment"] == "tp2" and stored["allreduce"]["link"] == "direct"
    assert list(stored["allreduce"]["sizes"]) == ["2048", "8192", "524288", "4194304"]
    assert stored["send_receive"]["deployment"] == "pp2"
    # One job for both nodes: they run side by side, and torch is imported once on each.
    assert asked(probe, "probe.node") == ["node0", "node1"]
    # The end that serves is told to stop after each link.
    assert asked(probe, "probe.serve") == asked(probe, "probe.stop") == ["node1", "node1"]
    engine = next(arguments for _, name, arguments in probe.client.asked if name == "probe.node")[0]["node0"]["engine"]
    assert engine["directory"].startswith("/var/cache/cluster/engines/cpu-") and engine["preload"]


def test_a_figure_of_another_device_is_no_ceiling_of_this_one(probe: Any) -> None:
    probe.client.measured_on = "cuda"
    node = probe.run()["ceilings"]["nodes"]["node0"]
    assert "memory_read_bytes_per_second" not in node and "gemm_bf16_flops_per_second" not in node
    assert node["notes"]["accelerator"].startswith("left out, being measured on cuda and not on cpu")
    sent = next(arguments for _, name, arguments in probe.client.asked if name == "probe.node")[0]["node0"]
    assert sent["device"] == "cpu", "the engine map says where torch is to measure"


def test_a_part_alone_keeps_the_rest(probe: Any) -> None:
    before = probe.run()["ceilings"]
    probe.client.asked.clear()
    after = probe.run(only="links")["ceilings"]
    assert asked(probe, "probe.node") == []
    assert after["nodes"] == before["nodes"] and after["allreduce"] == before["allreduce"]
    probe.client.asked.clear()
    probe.run(only="allreduce")
    (_, _, arguments) = next(each for each in probe.client.asked if each[1] == "probe.node")
    assert arguments[1] is False and asked(probe, "probe.serve") == []
    with pytest.raises(CommandExecutionError, match="expected one of nodes, links, allreduce"):
        probe.run(only="disks")


def test_a_failure_ends_the_probes_everywhere(probe: Any, tmp_path: Path) -> None:
    probe.client.failing = "probe.node"
    with pytest.raises(CommandExecutionError, match="node0: node0 is tired"):
        probe.run()
    assert asked(probe, "probe.stop") == ["node0", "node1"]
    assert not (tmp_path / "ceilings.json").exists()


def test_ctrl_c_ends_the_probes_everywhere(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "_links", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe.run()
    assert asked(probe, "probe.stop") == ["node0", "node1"]


def test_it_refuses_beside_a_deployment_unless_forced(probe: Any) -> None:
    probe.client.workers = {"tp2-0": {"stage": "ready", "requests": {"running": 2.0}}}
    with pytest.raises(CommandExecutionError, match=r"tp2 is deployed with 4 requests .*cluster undeploy first, or"):
        probe.run()
    assert {name for _, name, _ in probe.client.asked} == {"worker.status"}
    assert probe.run(force=True)["ceilings"]["nodes"]


WORKERS = [{"node": f"node{rank}", "name": "tp2-0", "replica": 0, "rank": rank, "link": "direct"} for rank in (0, 1)]
IDLE = {"tp2-0": {"stage": "ready", "requests": {"running": 0.0, "waiting": 0.0}}}


def deployed(probe: Any, workers: list[dict[str, Any]], status: Any = IDLE) -> None:
    probe.__salt__ = {"cluster.deployment_record": lambda: {"deployment": "tp2", "workers": workers}}
    probe.client.workers = status


def test_fresh_measures_the_deployments_link_beside_it_and_keeps_the_rest(probe: Any, tmp_path: Path) -> None:
    before = probe.run()["ceilings"]
    earlier = len(list(tmp_path.glob("ceilings-*.json")))
    deployed(probe, WORKERS)
    probe.client.asked.clear()
    answer = probe.fresh()
    assert (answer["measured"], answer["left"]) == (["direct: node0, node1"], [])
    assert asked(probe, "probe.node") == [] and asked(probe, "probe.serve") == ["node1"]
    ((_, _, arguments),) = [each for each in probe.client.asked if each[1] == "probe.link"]
    assert arguments[0] == "10.77.1.10" and arguments[-1] == 1, "one second a direction"
    after = probe.show()
    link = after["links"]["direct"]["node0->node1"]
    assert link["measured"] > before["links"]["direct"]["node0->node1"]["measured"]
    assert after["links"]["ethernet"] == before["links"]["ethernet"] and after["nodes"] == before["nodes"]
    assert len(list(tmp_path.glob("ceilings-*.json"))) == earlier, "benches must not drive whole probes out"


@pytest.mark.parametrize(
    ("requests", "reason"),
    [({"running": 1.0, "waiting": 1.0}, "4 requests are under way"), ({}, "does not report whether requests")],
)
def test_fresh_refuses_while_the_engine_is_not_known_to_be_idle(probe: Any, requests: Any, reason: str) -> None:
    deployed(probe, WORKERS, {"tp2-0": {"stage": "ready", "requests": requests}})
    with pytest.raises(CommandExecutionError, match=reason):
        probe.fresh()
    assert {name for _, name, _ in probe.client.asked} == {"worker.status"}


def test_fresh_has_nothing_to_do_without_messages(probe: Any) -> None:
    deployed(probe, WORKERS[:1])
    assert probe.fresh() == {"measured": [], "left": [], "seconds": 0.0}
    assert probe.client.asked == []


def test_fresh_names_what_time_did_not_allow(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "FRESH_BUDGET_SECONDS", 0.0)
    deployed(probe, [*WORKERS, {"node": "node0", "name": "x", "replica": 0, "rank": 2, "link": "ethernet"}])
    answer = probe.fresh()
    assert answer["measured"] == ["direct: node0, node1"] and len(answer["left"]) == 2


def test_fresh_ends_its_probes_when_one_fails(probe: Any) -> None:
    deployed(probe, WORKERS)
    probe.client.failing = "probe.link"
    with pytest.raises(CommandExecutionError, match="node0 is tired"):
        probe.fresh()
    assert set(asked(probe, "probe.stop")) == {"node0", "node1"}


def test_a_silent_node_is_named(probe: Any) -> None:
    probe.client.workers = False
    with pytest.raises(CommandExecutionError, match="node0, node1 did not answer: see cluster status"):
        probe.run()
