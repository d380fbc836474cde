"""Clusters that people own: unlike accelerators, unequal counts, layers split unevenly, rings of cables, arm64.

Each profile under tests/data/clusters names where it is from; what an engine cannot do with it is refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bottleneck.plan.cables import through
from bottleneck.plan.nodes import deployment_memory, deployment_record, node_pillar, worker_specs
from bottleneck.profile import Profile, ProfileError, load_profile
from cli.main import app

CLUSTERS = Path(__file__).parents[1] / "data" / "clusters"
CARDS, LAYERS, COUNTS = "three-3090-and-a-3080", "layers-16-to-32", "four-and-three-cards"
SPARKS, RING, KINDS = "three-sparks-in-a-ring", "four-in-a-ring", "nvidia-and-amd"


def cluster(name: str) -> Profile:
    return load_profile(CLUSTERS / f"{name}.yaml")


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_it_is_checked_planned_and_handed_to_its_nodes(path: Path) -> None:
    answer = CliRunner().invoke(app, ["profile", "check", str(path)])
    assert answer.exit_code == 0, answer.output
    answer = CliRunner().invoke(app, ["profile", "show", str(path)])
    assert answer.exit_code == 0, answer.output
    profile = load_profile(path)
    for name in profile.deployments:
        assert deployment_record(profile, name)["workers"]
    for name in profile.nodes:
        assert node_pillar(profile, name)["engine"]["kind"] == profile.nodes[name].accelerator.kind


def test_the_smallest_card_of_a_node_decides() -> None:
    profile = cluster(CARDS)
    assert [card.model for card in profile.nodes["node0"].cards] == 3 * ["RTX 3090"] + ["RTX 3080"]
    (fit,) = deployment_memory(profile, "tp4")
    assert fit.limit_bytes == int(int(9.77 * 2**30) * 0.9)
    assert fit.limit_text.endswith("the memory of its RTX 3080 accelerator")
    (fit,) = deployment_memory(profile, "tp2")
    assert fit.limit_bytes == int(int(23.69 * 2**30) * 0.9)


def test_a_choice_of_cards_and_a_deployments_own_environment_reach_the_worker() -> None:
    (worker,) = worker_specs(cluster(CARDS), "tp2")
    assert worker.environment["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert worker.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert worker.environment["NCCL_P2P_DISABLE"] == "1"
    (worker,) = worker_specs(cluster(CARDS), "tp4")
    assert "CUDA_VISIBLE_DEVICES" not in worker.environment and "NCCL_P2P_DISABLE" not in worker.environment


def test_an_engine_that_is_told_the_ranks_of_a_node_is_told_them(tmp_path: Path) -> None:
    text = (CLUSTERS / f"{COUNTS}.yaml").read_text().replace("kind: cuda", "kind: xpu")
    (tmp_path / "cards.yaml").write_text(text)
    profile = load_profile(tmp_path / "cards.yaml")
    assert worker_specs(profile, "pp6")[0].environment["LOCAL_WORLD_SIZE"] == "3"
    assert worker_specs(profile, "four")[0].environment["LOCAL_WORLD_SIZE"] == "4"


def test_layers_are_split_as_the_profile_says() -> None:
    profile = cluster(LAYERS)
    (worker,) = worker_specs(profile)
    assert worker.environment["VLLM_PP_LAYER_PARTITION"] == "16,32"
    assert deployment_record(profile)["settings"]["stage_layers"] == [16, 32]
    (fit,) = deployment_memory(profile, "pp2")
    assert (fit.memory.stage, fit.memory.layers) == (0, 16)
    # A third of the cache of 262,144 tokens that the thread prints, 24.0 GiB.
    whole = deployment_memory(profile, "pp2", {"max_model_len": 4096, "max_num_seqs": 4})[0].memory
    assert 262144 / 4096 * whole.sequence_bytes == 8 * 2**30


def test_nodes_with_unequal_counts_have_as_many_ranks_each() -> None:
    workers = worker_specs(cluster(COUNTS), "pp6")
    assert [worker.argv[worker.argv.index("--node-rank") + 1] for worker in workers] == ["0", "1"]
    assert workers[0].argv[workers[0].argv.index("--pipeline-parallel-size") + 1] == "6"


def test_rdma_devices_of_a_link_reach_the_worker() -> None:
    for worker in worker_specs(cluster(SPARKS)):
        assert worker.environment["NCCL_IB_HCA"] == "=rocep1s0f0,roceP2p1s0f0,rocep1s0f1,roceP2p1s0f1"
        assert worker.environment["NCCL_SOCKET_IFNAME"] == "ring0"
        assert worker.environment["NCCL_IB_SUBNET_AWARE_ROUTING"] == "1"


def test_three_in_a_ring_are_all_neighbours() -> None:
    link = node_pillar(cluster(SPARKS), "node1")["node"]["links"]["ring"]
    assert link["through"] == {} and set(link["peers"]) == {"node0", "node2"}


def test_opposite_nodes_of_a_ring_are_reached_through_a_neighbour() -> None:
    profile = cluster(RING)
    ways = {name: node_pillar(profile, name)["node"]["links"]["ring"]["through"] for name in profile.nodes}
    # Both directions over the same cables.
    assert ways["node0"] == {"node2": {"address": "10.44.1.12", "via": "10.44.1.11"}}
    assert ways["node2"] == {"node0": {"address": "10.44.1.10", "via": "10.44.1.11"}}
    assert ways["node1"] == {"node3": {"address": "10.44.1.13", "via": "10.44.1.10"}}


def test_the_shortest_way_around() -> None:
    ring = {str(node): [str((node + 1) % 6), str((node - 1) % 6)] for node in range(6)}
    assert through(ring, "0") == {"2": "1", "3": "1", "4": "5"}


def test_a_card_with_memory_of_its_own_is_not_part_of_main_memory() -> None:
    profile = cluster(KINDS)
    assert profile.nodes["node1"].accelerator.memory_bytes > profile.nodes["node1"].memory_bytes


REFUSED = {
    "seven ranks": (
        COUNTS,
        [("pipeline_parallel: 6", "pipeline_parallel: 7")],
        "7 ranks over 2 nodes with 4 + 3 accelerators; expected the same number of ranks on every node:"
        " vLLM starts as many on each, so 3, or each node has a deployment of its own",
    ),
    "too many ranks for the smaller node": (
        COUNTS,
        [("pipeline_parallel: 6", "pipeline_parallel: 8")],
        "8 ranks over 2 nodes with 4 + 3 accelerators; expected at most one rank for each accelerator",
    ),
    "two kinds in a replica": (
        KINDS,
        [("    replicas: 2", "    pipeline_parallel: 2")],
        "accelerators cuda, rocm; expected one kind within a replica, whose ranks talk through one library",
    ),
    "two kinds on a node": (
        CARDS,
        [("- {kind: cuda, model: RTX 3080", "- {kind: rocm, model: RTX 3080")],
        "nodes.node0.further_accelerators.0.kind: rocm beside cuda; expected one kind a node",
    ),
    "an APU's memory rule": (
        KINDS,
        [(", shares_host_memory: false", "")],
        "nodes.node1.accelerator.memory: 1 x 24 GiB, part of main memory; expected at most 15.9 GiB",
    ),
    "layers that are not the model's": (
        LAYERS,
        [("layers: [16, 32]", "layers: [16, 31]")],
        "deployments.pp2.layers: 16 + 31 = 47 layers in 2 stages;"
        " expected the model's 48 layers in 2 stages, pipeline_parallel",
    ),
    "layers without stages": (
        LAYERS,
        [("pipeline_parallel: 2", "pipeline_parallel: 1")],
        "expected the model's 48 layers in 1 stages",
    ),
    "layers evenly": (
        LAYERS,
        [("    layers: [16, 32]\n", "")],
        "deployments.pp2: does not fit node0: ",
    ),
    "a cache for the longer stage": (
        LAYERS,
        # 262,144 tokens of 32 layers take 16 GiB; 512 MiB hold them of 16 layers up to half as far.
        [("max_model_len: 32768", "max_model_len: 32768\n      kv_cache_memory: 1 GiB")],
        "room for 16384 tokens of 65536 bytes on node0; expected at least max_model_len 32768 tokens, 2 GiB",
    ),
    "layers that the engine cannot be told": (
        LAYERS,
        [
            ("kind: cuda, model: RTX 5070", "kind: tpu, model: RTX 5070"),
            ("kind: cuda, model: RTX 5090", "kind: tpu, model: RTX 5090"),
        ],
        "deployments.pp2.layers: layers of each stage, which the engine of kind tpu cannot be told",
    ),
    "cards that are not there": (
        CARDS,
        [("cards: {node0: [1, 2]}", "cards: {node0: [3, 4]}")],
        "deployments.tp2.cards.node0: 3, 4; expected some of 0 to 3, each once",
    ),
    "cards of another node": (
        CARDS,
        [("cards: {node0: [1, 2]}", "cards: {node1: [1, 2]}")],
        "unknown node of this deployment node1",
    ),
    "fewer cards than ranks": (
        CARDS,
        [("cards: {node0: [1, 2]}", "cards: {node0: [1]}")],
        "2 ranks over 1 nodes with 1 accelerator each; expected at most one rank for each accelerator",
    ),
    "a variable of the plan": (
        CARDS,
        [('{NCCL_P2P_DISABLE: "1"}', '{CUDA_VISIBLE_DEVICES: "0"}')],
        "environment.CUDA_VISIBLE_DEVICES: a variable that is set by cards for kind cuda",
    ),
    "a secret": (
        CARDS,
        [('{NCCL_P2P_DISABLE: "1"}', '{HF_TOKEN: "abc"}')],
        "environment.HF_TOKEN: a secret by its name; expected none in a profile",
    ),
    "RDMA that the engine cannot be told": (
        RING,
        [
            (f"node{(node - 1) % 4}: thunderbolt1}}", f"node{(node - 1) % 4}: thunderbolt1}}, rdma: [mlx5_0]")
            for node in range(4)
        ],
        "has RDMA devices, which the engine of kind cpu cannot be told",
    ),
    "RDMA beyond a cable": (
        RING,
        [("kind: cpu", "kind: cuda")] * 4
        + [
            (f"node{(node - 1) % 4}: thunderbolt1}}", f"node{(node - 1) % 4}: thunderbolt1}}, rdma: [mlx5_0]")
            for node in range(4)
        ],
        "where no cable leads from node0 to node2: RDMA is not passed on",
    ),
    "RDMA on some nodes": (
        SPARKS,
        [("        rdma: [rocep1s0f0, roceP2p1s0f0, rocep1s0f1, roceP2p1s0f1]\n", "")],
        "expected them on all of a replica's nodes, or on none",
    ),
    "an RDMA device that is none": (
        SPARKS,
        [("rdma: [rocep1s0f0,", "rdma: [rocep1s0f0/1,")],
        "expected an RDMA device such as rocep1s0f0",
    ),
    "a processor without packages": (
        SPARKS,
        [("kind: cuda", "kind: xpu")] * 3,
        "nodes.node0.architecture: aarch64, for which the engine of kind xpu has no packages; expected x86_64",
    ),
    "a processor without an image": (
        SPARKS,
        [
            ("  network: ethernet\n  address", "  network: ethernet\n  interface: eth1\n  address"),
            ("\nmodel:", "\nboot: {}\n\nmodel:"),
        ],
        "nodes.node0.architecture: aarch64 beside a boot section, whose image is for x86_64",
    ),
    "a ring that is open": (
        RING,
        [("peers: {node1: thunderbolt0, node3: thunderbolt1}", "peers: {node1: thunderbolt0}")],
        "nodes.node0.links.ring.peers: node1; expected cables to two of node1, node2, node3",
    ),
    "a cable with one end": (
        RING,
        [("peers: {node1: thunderbolt0, node3: thunderbolt1}", "peers: {node1: thunderbolt0, node2: thunderbolt1}")],
        "nodes.node0.links.ring.peers: node2, which has no cable to node0; expected both ends of it",
    ),
}


def refusal(folder: Path, name: str, replacements: list[tuple[str, str]]) -> str:
    text = (CLUSTERS / f"{name}.yaml").read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    engines = (Path(__file__).parents[2] / "profiles" / "engines.yaml").read_text()
    # A kind of accelerator whose engine can be told nothing of its layers.
    (folder / "engines.yaml").write_text(f"{engines}\ntpu:\n  engine: vllm\n  untested: made up\n")
    (folder / "changed.yaml").write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profile(folder / "changed.yaml")
    return str(caught.value)


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_in_a_sentence(tmp_path: Path, what: str) -> None:
    name, replacements, expected = REFUSED[what]
    assert expected in refusal(tmp_path, name, replacements)


def test_two_rings_are_not_one(tmp_path: Path) -> None:
    text = (CLUSTERS / f"{RING}.yaml").read_text()
    first = text.index("  node0:\n")
    block = text[first : text.index("  node1:\n")]
    made = ""
    for node in range(6):
        others = [other for other in range(node // 3 * 3, node // 3 * 3 + 3) if other != node]
        made += (
            block.replace("node0", f"node{node}")
            .replace(".10,", f".1{node},")
            .replace(".10}", f".1{node}}}")
            .replace(
                "node1: thunderbolt0, node3: thunderbolt1",
                f"node{others[0]}: thunderbolt0, node{others[1]}: thunderbolt1",
            )
        )
    end = text.index("\nmodel:")
    (tmp_path / "changed.yaml").write_text(text[:first] + made + text[end:])
    with pytest.raises(ProfileError) as caught:
        load_profile(tmp_path / "changed.yaml")
    assert "node0 - node1 - node2 is a ring without node3, node4, node5; expected one ring" in str(caught.value)


@pytest.mark.parametrize("key", ["count", "memory", "memory_bandwidth"])
def test_a_number_of_a_further_accelerator_needs_a_source(tmp_path: Path, key: str) -> None:
    seen = refusal(tmp_path, CARDS, [("  nodes.*.further_accelerators:", "  nodes.*.links:")])
    assert f"expected an entry such as sources.nodes.*.further_accelerators.*.{key}" in seen
