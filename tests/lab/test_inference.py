"""Clustered inference: a model split over nodes says what one node says."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.conftest import Cluster

PROMPTS = (
    "Brain stoug gra tean",
    "Vou lai destan pronea mur",
    "The link between the nodes",
    "Zeand hist fol graint cout bre sou tan",
)
TOKENS = 24
# Two tokens whose log-probabilities differ by less than this are a tie for bfloat16: the sum over
# ranks is taken in another order, and either may win.
NEAR_TIE = 0.05
# Largest difference of a log-probability from another order of bfloat16 sums (measured: 0.017).
TOLERANCE = 0.05


def complete(cluster: Cluster, prompt: str) -> list[dict[str, Any]]:
    """Return for each output token the token, its log-probability and the best five."""
    status = cluster.json("status")
    (head,) = [worker for worker in status["deployment"]["workers"] if worker["head"]][:1]
    request = {
        "model": "mistral-tiny-w4a16",
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": 5,
        "ignore_eos": True,
        "return_tokens_as_token_ids": True,
    }
    url = f"http://{head['api_address']}:{head['api_port']}/v1/completions"
    headers = ("-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {cluster.key()}")
    answer = cluster.on("control", "curl", "-sS", "--fail-with-body", *headers, "-d", json.dumps(request), url)
    found = json.loads(answer)["choices"][0]["logprobs"]
    return [
        {"token": token, "logprob": logprob, "top": top}
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    ]


def assert_agrees(reference: list[dict[str, Any]], other: list[dict[str, Any]]) -> int:
    """Compare up to the first near-tie; return how many tokens were compared."""
    assert len(reference) == len(other) == TOKENS
    for position, (one, two) in enumerate(zip(reference, other, strict=True)):
        best, second = sorted(one["top"].values(), reverse=True)[:2]
        if best - second < NEAR_TIE and one["token"] != two["token"]:
            return position
        assert one["token"] == two["token"], f"token {position}: {one} against {two}"
        assert abs(one["logprob"] - two["logprob"]) < TOLERANCE, f"token {position}: {one} against {two}"
    return TOKENS


@pytest.mark.timeout(900)
def test_tensor_and_pipeline_parallel_agree_with_one_node(deployed: Callable[..., Cluster]) -> None:
    reference = [complete(deployed("single"), prompt) for prompt in PROMPTS]
    for deployment in ("tp2", "pp2"):
        cluster = deployed(deployment)
        compared = [
            assert_agrees(expected, complete(cluster, prompt))
            for expected, prompt in zip(reference, PROMPTS, strict=True)
        ]
        assert sum(compared) >= TOKENS, f"{deployment}: ties stopped the comparison too early: {compared}"


@pytest.mark.timeout(600)
def test_a_worker_is_owned_whole(deployed: Callable[..., Cluster]) -> None:
    cluster = deployed("single")
    seen = cluster.json("status")["nodes"]["node0"]["workers"]["single-0"]
    assert seen["stage"] == "ready"
    assert seen["processes"] >= 3, "API server, engine core and worker"
    assert cluster.users("node0", "vllm") == cluster.users("node0", "VLLM::EngineCore") == {"cluster-engine"}
    assert cluster.refuses_strangers()
    cluster.run("undeploy")
    names = cluster.on("node0", "ps", "-eo", "args")
    assert "VLLM::" not in names and "vllm serve" not in names
    # No port is held: the same deployment starts again at once.
    cluster.run("deploy", "single", timeout=600)


@pytest.mark.timeout(600)
def test_a_failure_is_named_and_leaves_nothing(configured: Cluster) -> None:
    configured.run("undeploy")
    settings = ("--set", 'extra_arguments=["--no-such-flag"]')
    finished = configured.run("deploy", "single", *settings, check=False, timeout=600)
    assert finished.returncode == 1
    output = " ".join(finished.stderr.split())
    assert "single-0 on node0 failed: error: unrecognized arguments: --no-such-flag" in output
    assert "log: /var/log/cluster/vllm-single-0.log" in output
    assert "VLLM::" not in configured.on("node0", "ps", "-eo", "args")
    unknown = configured.run("deploy", "tp3", check=False)
    assert unknown.returncode != 0
    assert "tp3" in unknown.stderr and "tp2" in unknown.stderr
