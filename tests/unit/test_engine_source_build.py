"""A package of an engine that is built from its source: what pip is told, with which environment; nothing is built."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bottleneck.profile import find_profile, load_profile
from bottleneck.profile.paths import lock_file
from tests.by_file import load

URL = "https://example.org/vllm-0.33.0.tar.gz"
BUILD = {"package": "vllm", "url": URL, "sha256": "ab" * 32, "environment": {"VLLM_TARGET_DEVICE": "xpu"}}
LOCK = "somewhere/lock.txt"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: ModuleType = load("_modules/engine.py", "engine_module")
    module.commands = []  # type: ignore[attr-defined]

    def output_of(command: list[str], **keywords: Any) -> str:
        module.commands.append((command, keywords))  # type: ignore[attr-defined]
        return ""

    monkeypatch.setattr(module.node_commands, "output_of", output_of)
    return module


def test_it_is_built_last_by_its_digest_with_the_environments_own_tools(engine: Any, tmp_path: Path) -> None:
    entry = {"python": "python3", "indexes": ["https://example.org/xpu"], "source_build": BUILD}
    engine._make(str(tmp_path), LOCK, entry)
    (_, (install, _), (build, keywords)) = engine.commands
    assert LOCK in install and "--extra-index-url=https://example.org/xpu" in install
    assert install[install.index("--only-binary") + 1] == ":all:", "nothing else is built"
    assert {"--no-deps", "--no-build-isolation", "--require-hashes"} < set(build)
    wanted = Path(build[build.index("-r") + 1])
    assert wanted.read_text() == f"vllm @ {URL} --hash=sha256:{'ab' * 32}\n"
    environment = keywords["environment"]
    assert environment["VLLM_TARGET_DEVICE"] == "xpu"
    assert environment["PATH"].startswith(f"{tmp_path}/bin:")


def test_an_engine_without_one_is_installed_as_before(engine: Any, tmp_path: Path) -> None:
    engine._make(str(tmp_path), LOCK, {"python": "python3"})
    assert len(engine.commands) == 2
    assert engine.commands[1][1]["environment"] is None


def test_a_fallback_index_answers_for_its_own_package_and_for_no_other(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[str]] = []

    def output_of(command: list[str], **_: Any) -> str:
        tried.append(command)
        if "-r" in command and sum("-r" in each for each in tried) == 1:
            raise RuntimeError("no matching distribution of torch")
        return ""

    monkeypatch.setattr(engine.node_commands, "output_of", output_of)
    fallback = {"package": "torch==2.13.0+cpu", "url": "https://example.org/cpu"}
    engine._make(str(tmp_path), LOCK, {"python": "python3", "fallback_index": fallback})
    _, first, its_own, again = tried
    assert its_own[its_own.index("--index-url") :] == ["--index-url", fallback["url"], fallback["package"]]
    assert {"--no-deps", "--only-binary"} < set(its_own)
    assert first == again and not [word for word in (*first, *again) if "example.org" in word]


def test_what_is_built_is_part_of_the_environments_name() -> None:
    spec = load_profile(find_profile("arc-a770/v0.1")).engine_of("node0")
    assert spec.source_build is not None
    other = spec.source_build.model_copy(update={"sha256": "0" * 64})
    changed = spec.model_copy(update={"source_build": other})
    assert changed.directory() != spec.directory()
    assert spec.installation()["source_build"]["package"] == "vllm"


@pytest.mark.parametrize("profile", ["arc-a770/v0.1", "ryzen-ai-max/v0.2"])
def test_every_line_of_a_lock_has_the_digest_of_its_wheel_or_is_said_to_be_by_hand(profile: str) -> None:
    spec = load_profile(find_profile(profile)).engine_of("node0")
    assert spec.lock is not None
    text = lock_file(spec.lock).read_text()
    by_hand, _, resolved = text.partition("\n# On PyPI.\n")
    lines = [line for line in resolved.splitlines() if line]
    assert len(lines) > 100 and all(len(line.partition("  # sha256:")[2]) == 64 for line in lines)
    names = [line.partition("==")[0] for line in [*by_hand.splitlines(), *lines] if line and line[0] != "#"]
    assert len(names) == len(set(names)), "each once"
    assert "torch" in names and not [name for name in names if name.startswith("nvidia-")]
