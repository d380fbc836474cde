"""The lab with cards: its profiles, what each node is given of the machine's cards, and its wires."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from bottleneck.plan.environment import node_devices, sampled_cards
from bottleneck.plan.nodes import node_pillar, worker_specs
from bottleneck.profile import Profile, ProfileError, find_profile, load_profile
from lab.layout import CONTROL, Record
from lab.network import address_lines, link_lines, plan_wiring
from tests.by_file import load

PAIR, MESH = "gpu-pair", "gpu-mesh"


def profile(name: str) -> Profile:
    return load_profile(find_profile(name))


def changed(folder: Path, name: str, old: str, new: str) -> Path:
    text = find_profile(name).read_text()
    assert old in text
    path = folder / f"{name}.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("name", [PAIR, MESH])
def test_the_rehearsal_has_the_same_cluster_without_cards(name: str) -> None:
    cards, cpu = profile(name), profile(f"{name}-cpu")
    assert {n: node.links for n, node in cards.nodes.items()} == {n: node.links for n, node in cpu.nodes.items()}
    for deployment in cards.deployments:
        ours, theirs = cards.deployments[deployment], cpu.deployments[deployment]
        parts = ("nodes", "tensor_parallel", "pipeline_parallel", "replicas", "link")
        assert [getattr(ours, part) for part in parts] == [getattr(theirs, part) for part in parts]
    assert list(cards.deployments) == list(cpu.deployments)
    assert not any(node.host_cards for node in cpu.nodes.values())


@pytest.mark.parametrize(("name", "deployment"), [(PAIR, "tp2"), (PAIR, "pp2"), (MESH, "tp4"), (MESH, "tp2pp2")])
def test_a_worker_sees_its_nodes_card_alone_and_talks_over_the_cable(name: str, deployment: str) -> None:
    loaded = profile(name)
    specs = worker_specs(loaded, deployment)
    assert [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs] == [str(index) for index in range(len(specs))]
    for spec in specs:
        found = spec.environment
        assert found["NCCL_SOCKET_IFNAME"] == found["GLOO_SOCKET_IFNAME"] == spec.interface
        assert found["NCCL_NVLS_ENABLE"] == "0"
        assert {found[f"NCCL_{way}_DISABLE"] for way in ("P2P", "SHM", "IB")} == {"1"}
        assert spec.argv[spec.argv.index("--load-format") + 1] == "dummy"
        assert "--nnodes" in spec.argv and ("--headless" in spec.argv) == (not spec.head)
        assert "--enforce-eager" not in spec.argv, "steps of captured graphs"


def test_a_copy_on_each_node_has_its_own_card() -> None:
    specs = worker_specs(profile(PAIR), "replicas")
    assert [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs] == ["0", "1"]


def test_a_sampler_reads_its_nodes_card_alone() -> None:
    loaded = profile(MESH)
    names = [node_pillar(loaded, node)["sampler"]["cards"] for node in loaded.nodes]
    assert names == [["nvidia0"], ["nvidia1"], ["nvidia2"], ["nvidia3"]]
    assert "cards" not in node_pillar(profile(f"{MESH}-cpu"), "node0")["sampler"]


def test_every_command_in_a_node_is_shown_its_card_alone() -> None:
    loaded = profile(PAIR)
    devices = {name: node_devices(loaded.engine_of(name), node) for name, node in loaded.nodes.items()}
    record = Record("x", PAIR, "1", "/p", "d", "b", 1.0, environment={"HOME": "/root"}, devices=devices)
    assert record.environment_of("node1") == {"HOME": "/root", "CUDA_VISIBLE_DEVICES": "1"}
    assert record.environment_of(CONTROL) == {"HOME": "/root"}


def test_what_is_not_of_a_lab_says_nothing_of_the_machines_cards() -> None:
    loaded = profile("nvidia-h200")
    engine, node = loaded.engine_of("node0"), loaded.nodes["node0"]
    assert node_devices(engine, node) == {} and sampled_cards(engine, node) is None


def test_a_mesh_has_a_cable_between_every_two() -> None:
    loaded = profile(MESH)
    wires = [wire for wire in plan_wiring(loaded).wires if wire.near.network == "mesh"]
    ends = [(wire.near.place, wire.far.place) for wire in wires]
    assert ends == list(combinations(loaded.nodes, 2)) and len(wires) == 6
    for wire in wires:
        for own, other in ((wire.near, wire.far), (wire.far, wire.near)):
            assert own.peer == other.place
            assert own.interface == loaded.nodes[own.place].links["mesh"].peers[other.place]
    lines = link_lines(plan_wiring(loaded), {CONTROL: 1, "node0": 2, "node1": 3, "node2": 4, "node3": 5})
    cable = next(line for line in lines["node1"] if "cable1" in line)
    assert cable == "link add name cable1 mtu 1500 type veth peer name cable1 mtu 1500 netns 4"
    assert not any("mesh0" in line for batch in address_lines(plan_wiring(loaded)).values() for line in batch), (
        "addresses and routes over the cables are the network state's"
    )


def test_the_network_state_is_told_every_peer_of_a_mesh() -> None:
    mesh = node_pillar(profile(MESH), "node2")["node"]["links"]["mesh"]
    assert mesh["kind"] == "full-mesh" and mesh["interface"] == "mesh0"
    assert mesh["peers"] == {
        "node0": {"interface": "cable0", "address": "10.79.1.10"},
        "node1": {"interface": "cable1", "address": "10.79.1.11"},
        "node3": {"interface": "cable2", "address": "10.79.1.13"},
    }


MISTAKES = [
    ("host_cards: [1]", "host_cards: [0]", "0, which is node0's; expected each of the machine's once"),
    ("host_cards: [1]", "host_cards: [1, 2]", "2 of the machine's for 1 of node1; expected an index for each"),
    ("kind: cuda-lab", "kind: cuda", "a choice of the machine's, which kind cuda cannot be given; expected sampled_as"),
    ("kind: lab", "kind: hardware", "accelerators of a lab's machine; expected none on hardware"),
]


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES, ids=[each[1] for each in MISTAKES])
def test_a_mistake_with_cards_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(changed(tmp_path, PAIR, old, new))
    assert any(expected in problem.text for problem in caught.value.problems)


def test_only_an_engine_that_makes_weights_up_serves_a_shape(tmp_path: Path) -> None:
    path = changed(tmp_path, "gpu-pair-cpu", "source: generate", "source: dummy")
    head = worker_specs(load_profile(path), "tp2")[0]
    assert "--load-format" in head.argv
    text = path.read_text().replace("    link: direct\n", "    link: direct\n    engine: cpu-llamacpp\n", 1)
    path.write_text(text)
    with pytest.raises(ProfileError, match="makes up no weights by itself"):
        load_profile(path)


@pytest.mark.starts_programs
def test_an_environment_sees_the_packages_of_the_python_it_was_made_with(tmp_path: Path) -> None:
    engine = load("_modules/engine.py", "engine_module_of_cards")
    machine, own = tmp_path / "machine", tmp_path / "own"
    for folder in (machine, own):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = machine.glob("lib/python3*/site-packages")
    (packages / "torch_of_the_machine.py").write_text("where = 'the machine'\n")
    (packages / "of_both.py").write_text("where = 'the machine'\n")
    engine._share_packages(str(machine / "bin/python"), str(own))
    (own_packages,) = own.glob("lib/python3*/site-packages")
    (own_packages / "of_both.py").write_text("where = 'the environment'\n")
    script = "import of_both, torch_of_the_machine as torch; print(torch.where, of_both.where, sep=', ')"
    found = subprocess.run([own / "bin/python", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "the machine, the environment\n"


def test_of_a_model_that_is_made_up_there_is_the_shape_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = load("salt/model/files/make_model.py", "make_model_of_cards")
    monkeypatch.setattr(maker, "write_tokenizer", lambda folder, *_: maker.write_json(folder, "tokenizer.json", {}))
    shape = profile(PAIR).model.shape.model_dump()
    assert maker.main(["--shape", json.dumps(shape), "--out", str(tmp_path / "model"), "--no-weights"]) == 0
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["config.json", "generation_config.json", "tokenizer.json"]
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["num_hidden_layers"] == 56 and config["quantization_config"]["format"] == "pack-quantized"
