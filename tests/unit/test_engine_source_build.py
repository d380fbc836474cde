"""A package of an engine that is built from its source: what pip is told, with which environment; nothing is built."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bottleneck.profile import find_profile, load_profile
from bottleneck.profile.paths import lock_file
from bottleneck.profile.types import EngineSpec
from tests.by_file import load

URL = "https://example.org/vllm-0.33.0.tar.gz"
BUILD = {"package": "vllm", "url": URL, "sha256": "ab" * 32, "environment": {"VLLM_TARGET_DEVICE": "xpu"}}
LOCK = "somewhere/lock.txt"
URLS = ["https://example.org/xpu", "https://example.org/more"]


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
    engine._make(str(tmp_path), LOCK, {"python": "python3", "source_build": BUILD})
    (_, (install, _), (build, keywords)) = engine.commands
    assert LOCK in install
    assert install[install.index("--only-binary") + 1] == ":all:", "nothing else is built"
    assert {"--no-deps", "--no-build-isolation", "--require-hashes"} < set(build)
    wanted = Path(build[build.index("-r") + 1])
    assert wanted.read_text() == f"vllm @ {URL} --hash=sha256:{'ab' * 32}\n"
    environment = keywords["environment"]
    assert environment["VLLM_TARGET_DEVICE"] == "xpu"
    assert environment["PATH"].startswith(f"{tmp_path}/bin:")


def test_what_is_on_an_index_of_its_own_is_asked_for_there_and_nowhere_else(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], str]] = []

    def output_of(command: list[str], **_: Any) -> str:
        wanted = Path(command[command.index("-r") + 1]) if "-r" in command else tmp_path / "none"
        asked.append((command, wanted.read_text() if wanted.exists() else ""))
        return ""

    monkeypatch.setattr(engine.node_commands, "output_of", output_of)
    index = {"urls": URLS, "packages": {"torch==2.14.0+xpu": "ab" * 32, "triton==3.8.0": None}}
    engine._make(str(tmp_path), LOCK, {"python": "python3", "indexes": [index]})
    _, (lock, _), *own = asked
    assert "--require-hashes" in lock and not [word for word in lock if "example.org" in word]
    assert [text for _, text in own] == [f"torch==2.14.0+xpu --hash=sha256:{'ab' * 32}\n", "triton==3.8.0\n"]
    for command, _ in own:
        assert command[command.index("--index-url") + 1] == URLS[0]
        assert f"--extra-index-url={URLS[1]}" in command and "--no-deps" in command


def test_an_engine_without_one_is_installed_as_before(engine: Any, tmp_path: Path) -> None:
    engine._make(str(tmp_path), LOCK, {"python": "python3"})
    assert len(engine.commands) == 2 and "--require-hashes" in engine.commands[1][0]
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
    lock = tmp_path / "lock.txt"
    digests = [f"--hash=sha256:{letter * 64}" for letter in "ab"]
    both = " \\\n    ".join(digests)
    lock.write_text(f"six==1 \\\n    {digests[0]}\ntorch==2.13.0+cpu \\\n    {both}\ntqdm==2\n")
    engine._make(str(tmp_path), str(lock), {"python": "python3", "fallback_index": fallback})
    _, first, its_own, again = tried
    assert its_own[its_own.index("--index-url") + 1] == fallback["url"]
    assert {"--no-deps", "--only-binary", "--require-hashes"} < set(its_own)
    assert Path(its_own[-1]).read_text().split() == ["torch==2.13.0+cpu", *digests]
    assert first == again and not [word for word in (*first, *again) if "example.org" in word]


def test_what_is_built_is_part_of_the_environments_name() -> None:
    spec = load_profile(find_profile("arc-a770/v0.1")).engine_of("node0")
    assert spec.source_build is not None
    other = spec.source_build.model_copy(update={"sha256": "0" * 64})
    changed = spec.model_copy(update={"source_build": other})
    assert changed.directory() != spec.directory()
    assert spec.installation()["source_build"]["package"] == "vllm"


def test_an_index_of_a_recorded_map_is_an_address() -> None:
    found = EngineSpec.model_validate({"engine": "vllm", "indexes": [URLS[0]]}).indexes
    assert [(index.urls, index.packages) for index in found] == [([URLS[0]], {})]


@pytest.mark.parametrize("profile", ["arc-a770/v0.1", "ryzen-ai-max/v0.2"])
def test_what_a_lock_leaves_out_is_on_an_index_that_the_map_names(profile: str) -> None:
    spec = load_profile(find_profile(profile)).engine_of("node0")
    assert spec.lock is not None
    locked = {line.partition("==")[0] for line in lock_file(spec.lock).read_text().splitlines() if "==" in line}
    named = [package.partition("==")[0] for index in spec.indexes for package in index.packages]
    assert len(locked) > 100 and "torch" in named and len(named) == len(set(named)) and not locked & set(named)
    assert not [name for name in locked if name.startswith("nvidia-")]
    fewer = spec.model_copy(update={"indexes": spec.indexes[1:]})
    assert fewer.directory() != spec.directory(), "they are part of what is installed"
