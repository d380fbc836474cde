"""A file is replaced whole: the old content or the new one, with its permissions, and nothing beside it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from bottleneck import atomic_files


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for content in ({"a": 1}, {"b": "é"}):
        atomic_files.replace_json(path, content, durable=True)
        assert json.loads(path.read_text(encoding="utf-8")) == content
    atomic_files.replace(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_permissions_are_those_asked_for_whatever_the_old_file_had(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o666)
    atomic_files.replace(path, "new", mode=mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_cannot_be_stored_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record"
    atomic_files.replace(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        atomic_files.replace(path, "new", durable=True)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        atomic_files.replace(tmp_path / "nowhere" / "record", "new")


def test_a_file_that_something_else_writes_takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "samples.gz"
    for content in (b"old", b"new"):
        with atomic_files.replacing(path) as partial:
            assert partial.suffix == path.suffix, "some writers go by it"
            partial.write_bytes(content)
            assert content == b"old" or path.read_bytes() == b"old"
    with pytest.raises(KeyError), atomic_files.replacing(path) as partial:
        partial.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_with_its_content_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "above" / "made"
    with pytest.raises(KeyError), atomic_files.new_folder(path) as partial:
        (partial / "half").touch()
        raise KeyError
    assert list((tmp_path / "above").iterdir()) == []
    with atomic_files.new_folder(path) as partial:
        (partial / "whole").touch()
        assert not path.exists()
    assert [each.name for each in path.iterdir()] == ["whole"]
    with pytest.raises(OSError, match="not empty"), atomic_files.new_folder(path) as partial:
        (partial / "other").touch()
    assert list((tmp_path / "above").iterdir()) == [path] and [each.name for each in path.iterdir()] == ["whole"]
