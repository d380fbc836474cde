"""Imports of the rooms are those of the contracts, the rooms that are no packages too; and the pages show them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli import rooms

ROOT = rooms.ROOT


@pytest.mark.parametrize("room", rooms.rooms(), ids=lambda room: room.name)
def test_a_room_imports_only_what_it_may(room: rooms.Room) -> None:
    assert not room.broken, f"{room.name} imports {', '.join(sorted(room.broken))} (see pyproject.toml)"


def test_every_room_with_code_has_a_rule() -> None:
    ruled = {room.name for room in rooms.rooms()} | {"bench", "tests", "typings"}
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    folders = {path.parts[0] if path.parts[0] != "salt" else path.parent.as_posix() for path in files}
    # Links in salt/ lead to rooms that have a rule.
    assert {name for name in folders if not (ROOT / name).is_symlink()} - ruled - {"build", "runs"} == set()


def test_every_room_of_the_analysis_stands_on_a_floor_and_says_what_it_does() -> None:
    named = {name for floor in rooms.floors() for name in floor}
    found = {
        path.stem for path in (ROOT / "bottleneck").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert named == found - {"__init__"}
    assert all(rooms.purpose(path) for path in (ROOT / "bottleneck").glob("*/__init__.py"))


def test_a_forbidden_import_is_seen(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.importlinter]\nroot_packages = ["plain"]\n[[tool.importlinter.contracts]]\ntype = "forbidden"\n'
        'source_modules = ["plain"]\nforbidden_modules = ["salt"]\n[tool.cluster.loader-rooms]\n'
        '_modules = ["_utils"]\n_utils = []\n'
    )
    for name, text in {
        "plain/a.py": "import json\nif True:\n    import salt.client\n",
        "_utils/shared.py": "import os\n",
        "_modules/b.py": "import shared\nimport yaml\nif TYPE_CHECKING:\n    import numpy\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    found = {room.name: room for room in rooms.rooms(tmp_path)}
    assert found["plain"].broken == {"salt"} and found["_modules"].broken == {"yaml"}
    assert found["_modules"].imports == {"_utils", "yaml"} and not found["_utils"].imports


def test_a_made_part_without_an_end_is_named() -> None:
    with pytest.raises(ValueError, match="has no end"):
        rooms.filled("<!-- made by `make reference`: imports -->\n| x |\n")
    assert rooms.filled("nothing made here\n") == "nothing made here\n"


# A file that passes this asks for a second room. Without exceptions: data and pages are no source.
MOST_LINES = 400
SOURCE = {".py", ".sls", ".jinja", ".j2", ".css", ".sh", ""}


def test_no_source_file_is_longer_than_a_person_reads() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
    folders -= {"build", "doc", "profiles", "runs", "typings"}
    files = [path for name in sorted(folders) for path in (ROOT / name).rglob("*")]
    files = [
        path
        for path in files
        if path.is_file() and not path.is_symlink() and path.suffix in SOURCE and "data" not in path.parts
    ]
    assert len(files) > 400
    long = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in files}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_the_files_that_the_architecture_page_names_exist() -> None:
    """A page that sends people nowhere is worse than none."""
    text = (ROOT / "doc" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text))
    assert len(named) > 15
    places = (ROOT, ROOT / "bottleneck", ROOT / "bottleneck" / "diagnosis")
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []
