"""Checkpoints that are made here: their weights as the profile says, or a refusal that names the key."""

import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bottleneck.performance.model_config import read_model_config
from bottleneck.plan.nodes import node_pillar
from bottleneck.profile import Quantization, find_profile, load_profile
from tests.by_file import load

SHAPE = {
    "layers": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "attention_heads": 2,
    "key_value_heads": 1,
    "head_dim": 64,
    "vocabulary_size": 512,
    "context_length": 512,
}


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: ModuleType = load("salt/model/files/make_model.py", "make_model_alone")
    monkeypatch.setattr(module, "write_tokenizer", lambda *_: None)
    return module


def made(maker: Any, folder: Path, quantization: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a checkpoint of shape alone."""
    words = ["--shape", json.dumps(SHAPE), "--quantization", json.dumps(quantization), "--out", str(folder)]
    assert maker.main([*words, "--no-weights"]) == 0
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (4, 32), (8, 64), (16, 128)])
def test_a_checkpoint_is_stored_as_the_profile_says(maker: Any, tmp_path: Path, bits: int, group_size: int) -> None:
    asked = Quantization.model_validate({"bits": bits, "group_size": group_size})
    config = made(maker, tmp_path / "model", asked.model_dump())
    # As the analysis reads any checkpoint.
    assert read_model_config(config, where="config").weights == asked.weight_format()


def test_left_out_it_is_as_it_was(maker: Any, tmp_path: Path) -> None:
    assert maker.main(["--shape", json.dumps(SHAPE), "--out", str(tmp_path / "model"), "--no-weights"]) == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config == made(maker, tmp_path / "other", {"bits": 4, "group_size": 128, "symmetric": True})


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"bits": 5}, "quantization.bits is 5, expected 4, 8 or 16"),
        ({"symmetric": False}, "quantization.symmetric is false, expected true"),
        ({"group_size": 96}, "model.layers.0.self_attn.q_proj has 128 inputs, expected a multiple of"),
    ],
)
def test_what_is_not_made_is_refused_by_name(
    maker: Any, tmp_path: Path, quantization: dict[str, Any], words: str
) -> None:
    with pytest.raises(SystemExit, match=words):
        made(maker, tmp_path / "model", quantization)
    assert list(tmp_path.iterdir()) == []


def test_a_node_hands_the_profiles_quantization_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("_modules/model.py", "model_module_alone")
    ran: list[list[str]] = []
    monkeypatch.setattr(module, "_run", ran.append)
    profile = load_profile(find_profile("embedded"))
    assert module.make(str(tmp_path / "tiny"), node_pillar(profile, "node0")["model"], "/engine", "make_model.py")
    (command,) = ran
    assert json.loads(command[command.index("--quantization") + 1]) == profile.model.quantization.model_dump()


# Cut small: what is in several files is what is in one, a layer's scales stay with its weights, and a reader finds
# them where they do not.
SHARDS = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import make_model, make_openvino_ir
import torch
from safetensors.torch import load_file, save_file

shape, quantization, out = json.loads(sys.argv[2]), make_model.DEFAULT_QUANTIZATION, sys.argv[3]
for name, size in (("whole", 1 << 30), ("cut", 64 << 10)):
    os.makedirs(os.path.join(out, name))
    make_model.SHARD_BYTES = size
    make_model.write_weights(os.path.join(out, name), shape, quantization, 1)
assert os.listdir(os.path.join(out, "whole")) == ["model.safetensors"]
whole = load_file(os.path.join(out, "whole", "model.safetensors"))
place = json.load(open(os.path.join(out, "cut", "model.safetensors.index.json")))["weight_map"]
files = {name: load_file(os.path.join(out, "cut", name)) for name in set(place.values())}
assert len(files) > 2 and set(place) == set(whole)
assert all(torch.equal(files[place[key]][key], tensor) for key, tensor in whole.items())
stems = [key.removesuffix(".weight_packed") for key in place if key.endswith(".weight_packed")]
assert all(place[stem + ".weight_packed"] == place[stem + ".weight_scale"] for stem in stems)

apart = os.path.join(out, "apart")
os.makedirs(apart)
scales = {key: tensor for key, tensor in whole.items() if key.endswith("_scale")}
save_file(scales, os.path.join(apart, "model-00001-of-00002.safetensors"))
rest = {key: tensor for key, tensor in whole.items() if key not in scales}
save_file(rest, os.path.join(apart, "model-00002-of-00002.safetensors"))
class Quiet:
    def stage(self, *arguments): pass
plain = [dict(make_openvino_ir.plain_tensors(os.path.join(out, name), 4, Quiet())) for name in ("whole", "apart")]
assert set(plain[0]) == set(plain[1]) and len(plain[0]) == len(whole) - 2 * len(stems)
assert all(torch.equal(plain[0][key], plain[1][key]) for key in plain[0])
print("same")
"""


@pytest.mark.slow
@pytest.mark.starts_programs
def test_a_large_checkpoint_is_in_several_files(tmp_path: Path) -> None:
    python = Path(load_profile(find_profile("embedded")).engine_of("node0").directory(), "bin/python")
    if not python.exists():
        pytest.skip(f"{python} is not there; next: cluster demo")
    scripts = Path(__file__).parents[2] / "salt/model/files"
    seen = subprocess.run(
        [python, "-c", SHARDS, str(scripts), json.dumps(SHAPE), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert seen.stdout == "same\n", seen.stderr
