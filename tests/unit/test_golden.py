"""Each node's slice of its profile is what was agreed: one golden file a profile."""

import difflib
from pathlib import Path

import pytest

from bottleneck.profile import list_profiles, profile_name
from bottleneck.profile.paths import repository_directory
from tests.golden import COMMAND, FOLDER, golden_file, text_of


@pytest.fixture(autouse=True)
def _own_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLUSTER_PROFILES_DIR", raising=False)


@pytest.mark.parametrize("path", list_profiles(), ids=profile_name)
def test_the_merged_map_is_the_golden_one(path: Path) -> None:
    if path.with_name(path.name.removesuffix(".yaml") + ".local.yaml").exists():
        pytest.skip("a local file is laid over this profile")
    golden = golden_file(path)
    assert golden.is_file(), f"no golden file {golden.name}; next: {COMMAND}"
    expected, seen = golden.read_text().splitlines(), text_of(path).splitlines()
    changes = list(difflib.unified_diff(expected, seen, golden.name, "now", lineterm="", n=2))
    assert not changes, "\n".join([*changes[:60], f"next, if this is meant: {COMMAND}"])


def test_every_golden_file_has_a_profile() -> None:
    assert set(FOLDER.glob("*.yaml")) == {golden_file(path) for path in list_profiles()}


def test_a_golden_file_names_no_path_of_a_machine() -> None:
    here = str(repository_directory())
    assert all(here not in path.read_text() for path in FOLDER.glob("*.yaml"))
