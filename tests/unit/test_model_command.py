"""`cluster model fit` at the command line, and a profile whose model is given by its own configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bottleneck.profile import ProfileError, load_profile
from bottleneck.profile.types import Model
from cli.main import app

TESTS = Path(__file__).resolve().parents[1]
CONFIGS = TESTS / "data" / "model_configs"
PROFILES = TESTS.parent / "profiles"
GIB = 2**30


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["model", "fit", *arguments], env={"COLUMNS": "140"})


def document(*arguments: str, code: int = 0) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict) and found["schema"] == 1
    return found


def test_what_each_rank_needs() -> None:
    found = document(str(CONFIGS / "qwen3-30b-a3b.json"), "--tensor-parallel", "4", "--memory", "24 GiB")
    assert found["weights_bytes"] / GIB == pytest.approx(14.25, rel=0.03)
    assert found["kv_bytes_per_token"] == 98304 // 4 and found["fits"] is True
    rank = found["ranks"][0]
    left = int(0.9 * 24 * GIB) - rank["weights_bytes"] - rank["activations_bytes"] - rank["runtime_bytes"]
    assert found["tokens_that_fit"] == left // (16 * 24576) * 16


def test_stages_are_distinguished() -> None:
    found = document(str(CONFIGS / "llama-3.1-8b.json"), "--pipeline-parallel", "3")
    assert [rank["layers"] for rank in found["ranks"]] == [11, 11, 10]
    assert found["weights_bytes"] == max(rank["weights_bytes"] for rank in found["ranks"])
    assert found["tokens_that_fit"] is None and found["fits"] is None


def test_a_folder_and_a_gguf_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((CONFIGS / "llama-3.1-8b.json").read_text(encoding="utf-8"))
    found = document(str(tmp_path), "--quantization", "Q4_K_M")
    assert found["weights_bytes"] / 1e9 == pytest.approx(4.92, rel=0.03)


def test_an_eight_bit_cache_of_a_hybrid_model() -> None:
    found = document(str(CONFIGS / "qwen3.6-35b-a3b.json"), "--kv-cache-dtype", "fp8")
    assert found["kv_bytes_per_token"] == pytest.approx(11305, rel=0.03)
    assert found["ranks"][0]["kv_growing_bytes_per_token"] == 10240


def test_gpt_oss_does_not_fit_a_card_of_24_gigabytes() -> None:
    found = document(str(CONFIGS / "gpt-oss-120b.json"), "--memory", "24 GB", code=1)
    assert found["fits"] is False and found["tokens_that_fit"] == 0
    result = run(str(CONFIGS / "gpt-oss-120b.json"), "--memory", "24 GB")
    assert result.exit_code == 1
    assert "does not fit: 71.8 GiB = weights 65.8 GiB" in " ".join(result.stderr.split())
    assert "in windows" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["no-such.json"], 1, "no-such.json: No such file or directory; expected a model's config.json"),
        (["{llama}", "--quantization", "ternary"], 2, "--quantization ternary; expected one of bf16"),
        (["{llama}", "--memory", "plenty"], 2, "--memory: 'plenty'"),
        (["{llama}", "--tensor-parallel", "3"], 2, "tensor parallel 3; expected a divisor"),
        (["{llama}", "--max-model-len", "200000"], 2, "expected at most the model's 131072"),
        (["{llama}", "--kv-cache-dtype", "int2"], 2, "expected one of auto, bf16, fp8"),
    ],
)
def test_what_cannot_be_worked_out_is_reported(arguments: list[str], code: int, expected: str) -> None:
    result = run(*(each.replace("{llama}", str(CONFIGS / "llama-3.1-8b.json")) for each in arguments))
    assert result.exit_code == code
    assert expected in " ".join(result.stderr.split()) and result.stdout == ""


def profile_with(folder: Path, model: str) -> Path:
    """Write the H200 profile with another model, on cards of 24 GB."""
    text = (PROFILES / "nvidia-h200" / "v1.yaml").read_text(encoding="utf-8")
    start = text.index("\nmodel:")
    end = text.index("\n\n", start)
    (folder / "engines.yaml").write_text((PROFILES / "engines.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    rest = text[end:]
    if "config:" in model:
        rest = re.sub(r"  model\.quantization:.*\n(    .*\n)*", "", rest.replace("  model.shape:", "  model.config:"))
    path = folder / "mine.yaml"
    path.write_text(text[:start] + "\nmodel:\n" + model + rest, encoding="utf-8")
    return path


GPT_OSS_BY_SHAPE = """\
  name: gpt-oss-120b
  source: openai/gpt-oss-120b
  quantization: {bits: 4, group_size: 32}
  shape: {layers: 36, hidden_size: 2880, intermediate_size: 2880, attention_heads: 64, key_value_heads: 8,
    head_dim: 64, vocabulary_size: 201088, context_length: 131072}
"""


def test_a_profile_does_not_take_a_mixture_of_experts_for_a_dense_model(tmp_path: Path) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(profile_with(tmp_path, GPT_OSS_BY_SHAPE))
    assert any("3.01 B parameters; expected about 120 B" in line for line in caught.value.lines()), caught.value.lines()


def by_config(name: str, source: str) -> str:
    content = json.dumps(json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")))
    return f"  name: {name}\n  source: {source}\n  config: {content}\n"


def test_a_profile_with_the_models_own_configuration_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = profile_with(tmp_path, by_config("gpt-oss-120b", "openai/gpt-oss-120b"))
    path.write_text(path.read_text(encoding="utf-8").replace("memory: 141 GB", "memory: 24 GB"), encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert any("does not fit node0" in line and "weights 65.8 GiB" in line for line in caught.value.lines())


def test_a_profile_with_the_models_own_configuration_loads_and_dumps(tmp_path: Path) -> None:
    profile = load_profile(profile_with(tmp_path, by_config("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B")))
    model = profile.model
    assert (model.shape.layers, model.shape.head_dim, model.quantization.bits) == (48, 128, 16)
    assert len(model.model_shape().layers) == 48 and model.weight_format().name == "bf16"
    again = Model.model_validate(model.model_dump(mode="json", by_alias=True))
    assert again == model and again.model_shape() == model.model_shape()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("  name: x\n  source: a/b\n  config: {model_type: mamba}\n", "config: model_type: 'mamba'; expected one of"),
        (
            by_config("llama-3.1-8b", "meta-llama/Llama-3.1-8B") + "  quantization: {bits: 4}\n",
            "config beside quantization; expected either",
        ),
        (by_config("llama-3.1-8b", "generate"), "beside source generate"),
    ],
)
def test_a_wrong_model_configuration_is_named(tmp_path: Path, model: str, expected: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(profile_with(tmp_path, model))
    assert any(expected in line for line in caught.value.lines()), caught.value.lines()
