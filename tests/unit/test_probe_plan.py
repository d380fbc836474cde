"""Specifications of the probes, and when they refuse."""

from typing import Any

import pytest

from bottleneck.plan import probing
from bottleneck.profile import Profile, find_profile, load_profile


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(find_profile("embedded"))


def test_messages_are_those_of_the_deployment(profile: Profile) -> None:
    hidden = profile.model.shape.hidden_size * 2
    tensor = probing.message_sizes(profile, "tp2")
    assert tensor == {"all_reduce": [hidden, 4 * hidden, 256 * hidden, 2048 * hidden], "send_receive": []}
    # A stage hands on the hidden state and the residual.
    assert probing.message_sizes(profile, "pp2") == {
        "all_reduce": [],
        "send_receive": [2 * size for size in tensor["all_reduce"]],
    }
    assert probing.message_sizes(profile, "single") == {"all_reduce": [], "send_receive": []}


def test_an_engine_with_torch_is_not_asked_for_a_bench_of_its_own(profile: Profile) -> None:
    assert probing.own_bench(profile, "node0") is None


def test_an_engine_without_torch_measures_itself_with_the_model_it_serves() -> None:
    changed = load_profile(find_profile("embedded"))
    llama = changed.engines["cpu-llamacpp"]
    changed.engines["cpu"] = llama
    bench = probing.own_bench(changed, "node1")
    assert bench is not None and bench["program"] == "llama-bench" and bench["host"] is True
    words = dict(zip(bench["argv"][::2], bench["argv"][1::2], strict=True))
    assert words["-m"].endswith("/model.gguf") and words["-o"] == "json"
    assert words["-t"] == str(changed.nodes["node1"].cores)
    assert probing.collectives(changed) == [], "its messages are its own"


def test_each_rank_is_given_the_same_but_its_own_place(profile: Profile) -> None:
    found = {each.kind: each for each in probing.collectives(profile)}
    assert set(found) == {"all_reduce", "send_receive"}
    assert (found["all_reduce"].deployment, found["send_receive"].deployment) == ("tp2", "pp2")
    assert found["all_reduce"].port != found["send_receive"].port
    specifications = [found["all_reduce"].for_node(node) for node in ("node0", "node1")]
    assert specifications[0] and specifications[1]
    assert [each["rank"] for each in specifications if each] == [0, 1]
    assert {each["address"] for each in specifications if each} == {"10.77.1.10"}, "they meet on the deployment's link"
    assert specifications[0]["interface"] == "usb4"
    assert specifications[0]["interface_environment"] == ["GLOO_SOCKET_IFNAME"]
    differing = {key for key in specifications[0] if specifications[0][key] != specifications[1][key]}
    assert differing == {"rank"}
    assert found["all_reduce"].for_node("node7") is None


def test_every_two_nodes_of_a_network_are_a_pair(profile: Profile) -> None:
    assert probing.node_pairs(profile) == [("ethernet", "node0", "node1"), ("direct", "node0", "node1")]
    assert [probing.link_seconds(pairs) for pairs in (0, 1, 2, 3, 6, 100)] == [2, 2, 2, 1, 1, 1]


def test_only_nodes_of_one_replica_are_pairs_neighbours_first(profile: Profile) -> None:
    def workers(replicas: list[str]) -> list[dict[str, Any]]:
        return [
            {"node": node, "replica": index, "rank": rank, "link": "direct"}
            for index, nodes in enumerate(replicas)
            for rank, node in enumerate(nodes)
        ]

    assert probing.replica_pairs(workers(["a", "b"])) == [] == probing.replica_pairs([])
    assert probing.replica_pairs(workers(["ab", "cd"])) == [("direct", "a", "b"), ("direct", "c", "d")]
    four = probing.replica_pairs(workers(["abcd"]))
    assert [one + two for _, one, two in four] == ["ab", "bc", "cd", "ac", "bd", "ad"]


def test_probes_refuse_beside_a_deployment() -> None:
    head: dict[str, Any] = {"stage": "ready", "requests": {"running": 3.0, "waiting": 1.0}}
    reason = probing.busy_reason("tp2", {"node0": {"tp2-0": head}, "node1": {"tp2-0": {"stage": "ready"}}})
    assert reason is not None
    assert reason.startswith("tp2 is deployed with 4 requests (tp2-0 on node0, tp2-0 on node1)")


@pytest.mark.parametrize("stage", ["installing", "loading", "warming", "ready"])
def test_any_worker_that_is_up_counts(stage: str) -> None:
    reason = probing.busy_reason(None, {"node1": {"x-0": {"stage": stage}}})
    assert reason is not None and reason.startswith("workers are up (x-0 on node1)")


def test_probes_run_when_workers_ended() -> None:
    ended: dict[str, Any] = {
        "node0": {"tp2-0": {"stage": "stopped"}},
        "node1": {"tp2-0": {"stage": "failed", "requests": None}},
    }
    assert probing.busy_reason("tp2", ended) is None
    assert probing.busy_reason(None, {}) is None
