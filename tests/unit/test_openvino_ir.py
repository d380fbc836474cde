"""OpenVINO's form of a checkpoint: which checkpoints are taken, how far it is, and what is never written over."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bottleneck.profile import load_profile
from bottleneck.profile.paths import find_profile
from tests.by_file import load

SCRIPT = Path(__file__).parents[2] / "salt" / "model" / "files" / "make_openvino_ir.py"
maker = load(SCRIPT)


def quantization(**changes: Any) -> dict[str, Any]:
    scheme = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": scheme | changes}},
    }


def test_packed_weights_are_written_out_and_plain_ones_are_not() -> None:
    assert maker.packed_form({"quantization_config": quantization()}) == (4, 128)
    assert maker.packed_form({"hidden_size": 4}) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "the checkpoint is gptq"),
        (quantization() | {"format": "float-quantized"}, "float-quantized"),
        (quantization(symmetric=False), '"symmetric": false'),
        (quantization(num_bits=2), '"num_bits": 2'),
        (quantization(type="float"), '"type": "float"'),
    ],
)
def test_a_form_that_cannot_be_read_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(SystemExit, match=r"make_openvino_ir: .*expected compressed-tensors") as seen:
        maker.packed_form({"quantization_config": config})
    assert words in str(seen.value)


def test_how_far_it_is_can_be_read_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = maker.Progress(str(tmp_path / "model.partial.progress"))
    shares = []
    for stage in (("unpacking",), ("unpacking", 0.5, maker.STAGES["exporting"]), ("exporting",), ("checking",)):
        progress.stage(*stage)
        shares.append(json.loads((tmp_path / "model.partial.progress").read_text())["share"])
    assert shares == sorted(set(shares)) and shares[0] == 0 and shares[-1] < 1
    assert "exporting (10%)" in capsys.readouterr().err
    progress.end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: (folder / "out").mkdir() or (folder / "out" / "notes").touch(), "has other files in it"),
        (lambda folder: None, r"config\.json is missing or no JSON object; expected a checkpoint's folder"),
    ],
)
def test_a_folder_that_is_not_fit_is_left_alone(tmp_path: Path, prepare: Any, words: str) -> None:
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=words):
        maker.main(["--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert sorted(tmp_path.rglob("*")) == before


# Every value of 4 bits in a known place, against plain Python; runs where the converter is installed.
UNPACK = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from make_openvino_ir import unpacked
values = [[(row * 7 + column * 3) % 16 - 8 for column in range(16)] for row in range(3)]
words = [[sum(((row[8 * word + place] + 8) & 15) << (4 * place) for place in range(8)) for word in range(2)]
         for row in values]
packed = torch.tensor(words, dtype=torch.int64).to(torch.int32)
scale = torch.tensor([[0.5, 2.0], [1.0, 0.25], [4.0, 1.0]], dtype=torch.bfloat16)
expected = [[value * float(scale[row][column // 8]) for column, value in enumerate(line)] for row, line in
            enumerate(values)]
assert unpacked(packed, scale, 16, 4).tolist() == expected
print("same")
"""


@pytest.mark.slow
@pytest.mark.starts_programs
def test_packed_values_are_those_that_were_packed() -> None:
    engine = load_profile(find_profile("embedded")).engines["openvino-converter"]
    python = Path(engine.directory(), "bin/python")
    if not python.exists():
        pytest.skip(f"{python} is not there; next: cluster deploy genai, in a lab")
    seen = subprocess.run(
        [python, "-c", UNPACK, str(SCRIPT.parent)], capture_output=True, text=True, timeout=120, check=False
    )
    assert seen.stdout == "same\n", seen.stderr
