"""llama.cpp as one more engine: deployed over remote calls, sent load, and judged like the others."""

import json
from collections.abc import Callable

import pytest

from tests.lab.conftest import Cluster


@pytest.mark.timeout(1200)
def test_layers_over_remote_calls_serve_and_are_judged(deployed: Callable[..., Cluster]) -> None:
    cluster = deployed("llamacpp")
    workers = {node: seen["workers"]["llamacpp-0"] for node, seen in cluster.json("status")["nodes"].items()}
    assert {worker["stage"] for worker in workers.values()} == {"ready"}
    # Without authentication: it listens on the link alone, and lets in the head alone.
    assert "10.77.1.11:50052" in cluster.on("node1", "ss", "-Hltn")
    assert cluster.on("node1", "ss", "-Hltn").count(":50052") == 1
    assert "10.77.1.10" in cluster.on("node1", "nft", "list", "table", "inet", "cluster_peers")

    # Neither is root, nor can become it.
    for node, program in (("node0", "llama-server"), ("node1", "ggml-rpc-server")):
        assert cluster.users(node, program) == {"cluster-engine"}

    assert cluster.refuses_strangers()

    # Long enough that the sampler reads its metrics meanwhile, which it does every few seconds.
    run = cluster.json("bench", "--requests", "12", "--concurrency", "2", "--input", "64", "--output", "96")
    (point,) = run["points"]
    assert (point["headline"]["completed"], point["headline"]["failed"]) == (12, 0)
    folder = cluster.runs / run["run"]
    plan, versions = (json.loads((folder / name).read_text()) for name in ("plan.json", "versions.json"))
    assert plan["settings"]["engine"] == "llamacpp"
    assert plan["settings"]["pipeline_parallel"] == 2
    assert versions["nodes"]["node0"]["engine"]["llama.cpp-tools"]

    verdict = cluster.json("bottleneck", run["run"])["verdict"]
    (engine,) = verdict["measured"]["engines"]
    # Its own counters, in its own dialect: what it generated and computed, and in how many steps.
    assert engine["generation_tokens"] == pytest.approx(12 * 96, abs=12)
    assert engine["steps"] > 0
    # What it has no counter for is missing, and the ledger says so.
    assert engine["cache_usage_max"] is None
    assert any("counts no requests" in note for note in verdict["notes"])
    assert verdict["ledger"]["source"].startswith("client") and verdict["ledger"]["entries"]

    cluster.run("undeploy")
    names = cluster.on("node0", "ps", "-eo", "args") + cluster.on("node1", "ps", "-eo", "args")
    assert "llama-server" not in names and "ggml-rpc-server" not in names


@pytest.mark.timeout(300)
def test_a_setting_that_it_does_not_have_is_refused(configured: Cluster) -> None:
    seen = configured.run("deploy", "llamacpp", "--set", "kv_cache_memory=64 MiB", check=False)
    assert seen.returncode != 0
    assert "llama.cpp has no such setting" in " ".join(seen.stderr.split())
