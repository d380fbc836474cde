"""The shell's completion comes from this laptop: profiles that were used, runs that are here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bottleneck.profile import find_profile, load_profile
from cli import config
from cli.completion import node_names, remember_nodes, run_names

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CLUSTER_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_nodes_of_the_profiles_that_were_used() -> None:
    assert node_names("") == []
    remember_nodes(load_profile(find_profile("embedded")))
    assert node_names("no") == ["node0", "node1"]
    remember_nodes(load_profile(find_profile("ryzen-ai-max/v0.2")))
    assert {"node0", "node3"} <= set(node_names(""))
    assert node_names("x") == []


def test_a_broken_cache_is_an_empty_one(home: Path) -> None:
    path = config.cache_directory() / "nodes.json"
    path.parent.mkdir(parents=True)
    for text in ("", "[1]", '{"a": 3}', "{"):
        path.write_text(text)
        assert node_names("") == []
    remember_nodes(load_profile(find_profile("embedded")))
    assert node_names("") == ["node0", "node1"]


def test_runs_that_are_here_the_newest_first(home: Path) -> None:
    assert run_names("") == []
    for name in ("20261124T0900", "20261123T2130", "20261124T1000.partial"):
        (home / "runs" / name).mkdir(parents=True)
    assert run_names("") == ["20261124T0900", "20261123T2130"]
    assert run_names("20261123") == ["20261123T2130"]


@pytest.mark.starts_programs
def test_the_shell_is_given_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bash asks: the words so far, and which of them is being written."""
    remember_nodes(load_profile(find_profile("embedded")))
    monkeypatch.setenv("_CLUSTER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "cluster logs no")
    monkeypatch.setenv("COMP_CWORD", "2")
    program = "from cli.main import app; app(prog_name='cluster')"
    found = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == ["node0", "node1"]
