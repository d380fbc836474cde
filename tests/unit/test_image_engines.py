"""Engines of a package index become layers of an image: made by the nodes' own module where the image is built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bottleneck.profile import find_profile, load_profile
from netboot.image import engines, operations
from netboot.image.commands import BuildError
from netboot.image.recipe import Recipe
from netboot.image.store import Store

PROFILE = load_profile(find_profile("arc-a770/v0.1"))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sequence[object]]]:
    """Calls of the nodes' modules; every Python is there."""
    calls: list[tuple[str, Sequence[object]]] = []
    monkeypatch.setattr(engines.Masterless, "call", lambda _, function, given: calls.append((function, given)))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return calls


def test_what_nodes_cannot_install_is_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: list[tuple[str, Sequence[object]]]
) -> None:
    built: list[Recipe] = []

    def build(recipe: Recipe, *_: object, **__: object) -> None:
        built.append(recipe)
        raise BuildError("far enough")

    monkeypatch.setattr(operations, "build_image", build)
    steps: list[dict[str, Any]] = []
    for asked in (True, False):
        with pytest.raises(BuildError, match="far enough"):
            operations.build(Store(tmp_path), PROFILE, steps.append, engines=asked, accept_expired=asked)
    made = {layer.name: (layer.directory, layer.prefix) for layer in built[0].layers if layer.directory}
    vllm, genai = PROFILE.engines["xpu"], PROFILE.engines["xpu-openvino"]
    # Where nodes look for it, under the digest of what is in it: they find it installed.
    assert made == {f"engine-{each.kind}": (each.directory(), each.directory()) for each in (vllm, genai)}
    assert built[0].accept_expired and not built[1].accept_expired
    assert [layer.name for layer in built[1].layers if layer.directory] == []
    assert [function for function, _ in called] == ["saltutil.sync_all", "engine.install", "engine.install"]
    directory, lock, engine = called[1][1]
    assert directory == vllm.directory() and str(lock).endswith("vllm-xpu-0.33.0.txt")
    assert engine == vllm.installation()
    assert steps[0] == {"stage": "engine", "detail": f"xpu in {vllm.directory()}"}


def test_an_environment_is_not_made_with_another_python(
    monkeypatch: pytest.MonkeyPatch, called: list[tuple[str, Sequence[object]]]
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(BuildError, match=r"xpu wants python3\.13, which is not here: apt-get install python3\.13-venv"):
        engines.make([PROFILE.engines["xpu"]], lambda _: None)
    assert called == []


@pytest.mark.starts_programs
def test_a_module_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "salt-call"
    program.write_text("#!/bin/sh\necho 'the index cannot be reached' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(BuildError, match=r"engine\.install failed: the index cannot be reached"):
        engines.Masterless(tmp_path).call("engine.install", ["/somewhere"])
