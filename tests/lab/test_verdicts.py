"""Causes, made on purpose, are told apart from what was measured alone."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.conftest import Cluster

RUN_FILES = {
    *("run.json", "profile.yaml", "plan.json", "versions.json", "ceilings.json", "samples.jsonl.gz"),
    *("engine_before.node0.prom", "engine_after.node0.prom", "client.json", "verdict.json"),
}


@pytest.fixture
def restored(configured: Cluster) -> Iterator[Cluster]:
    yield configured
    configured.run("lab", "throttle", "direct", "--restore", check=False)
    configured.run("lab", "slow", "node1", "--restore", check=False)


def verdict_of(cluster: Cluster, *options: str) -> dict[str, Any]:
    result = cluster.json("bench", *options)
    assert result["failed"] == 0, result["first_error"]
    verdict: dict[str, Any] = result["verdict"]
    parts = sum(entry["seconds"] for entry in verdict["ledger"]["entries"])
    assert parts == pytest.approx(verdict["ledger"]["total"], rel=1e-6), "the ledger's parts sum to the whole"
    assert verdict["evidence"] and verdict["advice"]
    return {**verdict, "folder": result["folder"]}


def described(verdict: dict[str, Any]) -> str:
    lines = [f"{verdict['class']} {verdict['where']} {verdict['confidence']}, then {verdict['runners_up']}"]
    return "\n".join(lines + [evidence["statement"] for evidence in verdict["evidence"]])


@pytest.mark.timeout(1500)
def test_causes_under_one_deployment(deployed: Callable[..., Cluster], restored: Cluster) -> None:
    restored.run("undeploy")
    restored.run("probe")
    cluster = deployed("tp2")

    healthy = verdict_of(cluster, "--requests", "8")
    assert healthy["class"] not in (
        "link_bandwidth",
        "straggler",
        "sequence_limit",
        "kv_cache_capacity",
        "client_limited",
    ), described(healthy)
    found = set(cluster.run("run", "list", "--json").stdout.split('"'))
    assert healthy["folder"].rpartition("/")[2] in found
    assert {path.name for path in cluster.runs.glob("*/*")} >= RUN_FILES

    cluster.run("lab", "throttle", "direct", "--rate", "40 Mbit/s")
    throttled = verdict_of(cluster, "--requests", "8")
    assert (throttled["class"], throttled["where"]["link"]) == ("link_bandwidth", "direct"), described(throttled)
    cluster.run("lab", "throttle", "direct", "--restore")

    cluster.run("lab", "slow", "node1", "--cores", "0.35")
    slowed = verdict_of(cluster, "--requests", "8")
    assert (slowed["class"], slowed["where"]["node"]) == ("straggler", "node1"), described(slowed)
    cluster.run("lab", "slow", "node1", "--restore")

    idle = verdict_of(cluster, "--rate", "0.15", "--requests", "5")
    assert idle["class"] == "client_limited", described(idle)

    compared = cluster.run("run", "compare", healthy["folder"], throttled["folder"])
    assert "beyond noise" in compared.stdout


@pytest.mark.timeout(900)
def test_too_few_sequences_allowed(deployed: Callable[..., Cluster]) -> None:
    verdict = verdict_of(deployed("tp2", "max_num_seqs=1"), "--requests", "8")
    assert verdict["class"] == "sequence_limit", described(verdict)


@pytest.mark.timeout(900)
def test_kv_cache_too_small(deployed: Callable[..., Cluster]) -> None:
    cluster = deployed("tp2", "max_model_len=512", 'kv_cache_memory="8 MiB"')
    # 16 blocks of 128 tokens, and 12 requests that want 3 each.
    verdict = verdict_of(cluster, "--requests", "20", "--concurrency", "12", "--output", "128")
    assert verdict["class"] == "kv_cache_capacity", described(verdict)
