"""`cluster image` on a store of this machine: what it prints and what it ends with."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bottleneck.profile import find_profile, load_profile
from cli import image
from cli.image import app
from netboot.image import operations
from netboot.image.commands import BuildError
from netboot.image.store import Store
from tests.unit.image_store_builder import put_image


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def call(store: Store, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--store", str(store.root)])


def data(store: Store, *arguments: str) -> dict[str, Any]:
    result = call(store, *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["schema"] == 1
    return found


def test_an_empty_store_says_what_to_do_next(store: Store) -> None:
    result = call(store, "list")
    assert result.exit_code == 0 and "next: cluster image build" in result.output


def test_the_way_of_an_image(store: Store) -> None:
    old = put_image(store, "old", created="2026-11-01T00:00:00Z", packages={"a": "1"})
    new = put_image(store, "new", created="2026-11-02T00:00:00Z", packages={"a": "2"})
    assert data(store, "activate", old.digest[:8])["active"] == old.digest
    assert data(store, "activate", new.digest)["previous"] == old.digest
    listed = data(store, "list")["images"]
    assert [(each["digest"], each["roles"]) for each in listed] == [
        (new.digest, ["active"]),
        (old.digest, ["previous"]),
    ]
    result = call(store, "diff")
    assert result.exit_code == 0 and "a 1 -> 2" in result.stdout
    assert data(store, "rollback")["active"] == old.digest
    assert data(store, "show")["digest"] == old.digest
    assert data(store, "show", new.digest)["roles"] == ["previous"]
    assert call(store, "show", "--lock").stdout.splitlines()[-1] == "a=1"
    assert data(store, "gc", "--keep", "0")["images"] == []


def test_a_trial(store: Store) -> None:
    old, new = put_image(store, "old"), put_image(store, "new")
    data(store, "activate", old.digest)
    found = data(store, "activate", new.digest, "--canary", "node0", "--deadline", "90 s")
    assert found["active"] == old.digest
    assert found["canary"]["node"] == "node0"
    assert found["canary"]["deadline"] - found["canary"]["started"] == 90.0
    roles = {each["digest"]: each["roles"] for each in data(store, "list")["images"]}
    assert roles == {old.digest: ["active"], new.digest: ["canary on node0"]}
    result = call(store, "rollback")
    assert result.exit_code == 0 and f"node0 boots {old.digest} again" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show", "ffff"], 1, "there is no image ffff"),
        (["show"], 1, "profile embedded has no active image"),
        (["rollback"], 1, "has no previous image"),
        (["diff", "aaaa", "bbbb"], 1, "there is no image aaaa"),
        (["activate", "one", "--canary", "node0", "--deadline", "soon"], 2, "--deadline"),
        (["list", "--profile", "nowhere"], 2, "nowhere"),
    ],
)
def test_what_cannot_be_done_is_reported(store: Store, arguments: list[str], code: int, words: str) -> None:
    put_image(store, "one")
    result = call(store, *arguments)
    assert result.exit_code == code
    assert words in result.stderr and "next:" in result.stderr
    assert result.stdout == ""


def test_a_trial_needs_a_node_and_a_way_back(store: Store) -> None:
    one, two = put_image(store, "one"), put_image(store, "two")
    assert "no image is active yet" in call(store, "activate", one.digest, "--canary", "node0").stderr
    data(store, "activate", one.digest)
    assert "no node node7 in profile embedded" in call(store, "activate", two.digest, "--canary", "node7").stderr
    assert "is active already" in call(store, "activate", one.digest, "--canary", "node0").stderr


def test_a_damaged_image_is_not_activated(store: Store) -> None:
    image = put_image(store, "one")
    kernel = store.folder(image.digest) / "vmlinuz"
    kernel.chmod(0o644)
    kernel.write_text("other")
    result = call(store, "activate", image.digest)
    assert result.exit_code == 1 and "is damaged" in result.stderr
    result = call(store, "show", image.digest, "--verify")
    assert result.exit_code == 1 and "vmlinuz has sha256" in result.stderr


def test_build_reports_progress_and_failure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    built = put_image(store, "built")

    def build_image(recipe: Any, store: Store, progress: Any, *, profile: str) -> Any:
        progress({"stage": "squashfs", "detail": "zstd level 9"})
        return built

    monkeypatch.setattr(operations, "build_image", build_image)
    result = call(store, "build", "--activate", "--json")
    assert "squashfs zstd level 9" in result.stderr
    assert json.loads(result.stdout)["roles"] == ["active"]

    def fail(*_: Any, **__: Any) -> Any:
        raise BuildError("mmdebstrap ended with 25: E: cannot fetch")

    monkeypatch.setattr(operations, "build_image", fail)
    result = call(store, "build", "--json")
    assert result.exit_code == 1 and result.stdout == ""
    assert "mmdebstrap ended with 25" in result.stderr


def test_a_store_on_this_machine_has_every_function_that_a_command_asks_for(tmp_path: Path) -> None:
    asked = set(re.findall(r'"(image\.\w+)"', inspect.getsource(image).partition("def images_of")[2]))
    assert set(image.LocalImages(tmp_path, load_profile(find_profile("embedded"))).functions()) == asked
