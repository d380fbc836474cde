"""OpenVINO GenAI as one more engine: installed and converted once, a copy on each node, sent load, judged, reported."""

import json
from collections.abc import Callable

import pytest

from tests.lab.conftest import Cluster

TEXT = {"model": "mistral-tiny-w4a16", "prompt": "Brain stoug gra tean", "max_tokens": 6, "temperature": 0}


@pytest.mark.timeout(1800)
def test_a_copy_on_each_node_serves_and_is_judged(deployed: Callable[..., Cluster]) -> None:
    cluster = deployed("genai")
    status = cluster.json("status")
    assert cluster.stages() == {"node0": "ready", "node1": "ready"}
    heads = [worker for worker in status["deployment"]["workers"] if worker["head"]]
    assert [head["node"] for head in heads] == ["node0", "node1"]
    (folder,) = {head["argv"][head["argv"].index("--model") + 1] for head in heads}
    conversion = json.loads(cluster.on("node1", "cat", f"{folder}/conversion.json"))
    assert (conversion["weights"], conversion["group_size"]) == ("int4", 128)
    assert cluster.refuses_strangers()
    # Both copies say the same.
    answers = [
        json.loads(
            cluster.on(
                "control",
                *("curl", "-sS", "--fail-with-body", "-H", f"Authorization: Bearer {cluster.key()}"),
                *("-d", json.dumps(TEXT)),
                f"http://{head['api_address']}:{head['api_port']}/v1/completions",
            )
        )
        for head in heads
    ]
    assert answers[0]["choices"] == answers[1]["choices"] and answers[0]["usage"]["completion_tokens"] == 6

    # Long enough for several readings of the engine's metrics.
    run = cluster.json("bench", "--requests", "48", "--concurrency", "8", "--input", "128", "--output", "32")
    (point,) = run["points"]
    assert (point["headline"]["completed"], point["headline"]["failed"]) == (48, 0)
    recorded = cluster.runs / run["run"]
    plan, versions = (json.loads((recorded / name).read_text()) for name in ("plan.json", "versions.json"))
    assert plan["settings"]["engine"] == "openvino" and plan["settings"]["replicas"] == 2
    assert versions["nodes"]["node0"]["engine"]["openvino-genai"].startswith("2026.")

    verdict = cluster.json("bottleneck", run["run"])["verdict"]
    engines = verdict["measured"]["engines"]
    assert [engine["head"] for engine in engines] == ["node0", "node1"]
    for engine in engines:
        # Its own counters, in its own dialect.
        assert engine["generation_tokens"] == 24 * 32 and engine["requests"] == 24
        assert 6 * 32 <= engine["steps"] < 24 * 32
        assert engine["prefill_seconds"] > 0 and engine["decode_seconds"] > 0
        assert 0 < engine["cache_usage_max"] < 1
        # What it does not know is missing, not zero.
        assert engine["preemptions"] is None and engine["flops"] is None
    assert verdict["ledger"]["entries"]
    cluster.run("report", run["run"])

    # Two requests at a time: the others wait for a place, and the sampler sees it.
    small = deployed("genai", "max_num_seqs=2")
    load = ("--requests", "64", "--concurrency", "16", "--input", "64", "--output", "48")
    run = small.json("bench", *load)
    assert run["points"][0]["headline"]["failed"] == 0
    engines = small.json("bottleneck", run["run"])["verdict"]["measured"]["engines"]
    for engine in engines:
        assert engine["running_max"] <= 2 and engine["waiting_share"] > 0.5, engine

    cluster.run("undeploy")
    names = cluster.on("node0", "ps", "-eo", "args") + cluster.on("node1", "ps", "-eo", "args")
    assert "genai_server" not in names


@pytest.mark.timeout(300)
def test_what_it_cannot_do_is_refused(configured: Cluster) -> None:
    seen = configured.run("deploy", "genai", "--set", "enforce_eager=true", check=False)
    assert seen.returncode != 0
    assert "OpenVINO GenAI has no such setting" in " ".join(seen.stderr.split())
