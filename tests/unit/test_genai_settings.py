"""The command line of OpenVINO GenAI's server, and what it works out from the model's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from genai_server.settings import SettingsError, block_bytes, settings

CONFIG = {
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_size": 1024,
    "max_position_embeddings": 2048,
    "vocab_size": 8192,
}


def folder(path: Path, **changes: Any) -> str:
    (path / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    (path / "openvino_model.xml").touch()
    return str(path)


def test_a_block_is_as_large_as_the_library_makes_it() -> None:
    # cache_size_in_bytes / num_kv_blocks of OpenVINO GenAI 2026.4.1 on the CPU, with this shape.
    assert block_bytes(CONFIG, 32, "u8") == 155648
    assert block_bytes(CONFIG, 32, "f16") == 2 * 8 * 4 * 64 * 2 * 32


def test_the_cache_is_as_many_blocks_as_its_bytes_hold(tmp_path: Path) -> None:
    found = settings(["--model", folder(tmp_path), "--kv-cache-bytes", str(10 * 155648 + 1), "--device", "CPU"])
    assert (found.cache_blocks, found.cache_tokens, found.max_model_len) == (10, 320, 2048)
    assert found.model_name == tmp_path.name and found.cache_format == "u8"
    on_card = settings(["--model", str(tmp_path), "--num-kv-blocks", "7", "--device", "GPU.1"])
    assert (on_card.cache_blocks, on_card.block_tokens, on_card.cache_format) == (7, 16, "f16")


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (["--device", "HETERO:GPU.0,GPU.1"], {}, "expected CPU, GPU or GPU.N"),
        (["--device", "GPU.x"], {}, "expected CPU, GPU or GPU.N"),
        (["--max-model-len", "4096"], {}, "the model was made for 2048"),
        (["--kv-cache-bytes", "1000"], {}, "0 blocks of 32 tokens"),
        (["--api-key-file", "/nowhere/key"], {}, "no such file"),
        ([], {"vocab_size": None}, "vocab_size is None"),
        ([], {"num_hidden_layers": "many"}, "num_hidden_layers is 'many'"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    tmp_path: Path, arguments: list[str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        settings(["--model", folder(tmp_path, **changes), *arguments])


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"config\.json"):
        settings(["--model", str(tmp_path)])
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"no openvino_model\.xml"):
        settings(["--model", str(tmp_path)])
