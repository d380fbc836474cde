"""`cluster profile`, run in this process."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bottleneck.profile.paths import repository_directory
from cli.profile import app

PROFILES = repository_directory() / "profiles"
runner = CliRunner()


@pytest.fixture(autouse=True)
def _own_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLUSTER_PROFILES_DIR", raising=False)
    monkeypatch.delenv("CLUSTER_PROFILE", raising=False)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of profiles with a sound and a broken one."""
    monkeypatch.setenv("CLUSTER_PROFILES_DIR", str(tmp_path))
    shutil.copy(PROFILES / "engines.yaml", tmp_path)
    text = (PROFILES / "embedded.yaml").read_text()
    (tmp_path / "good.yaml").write_text(text)
    (tmp_path / "bad.yaml").write_text(text.replace("cores: 1", "cores: [1]").replace("mtu: 1500  ", "mtu: 90000  "))
    return tmp_path


def test_list() -> None:
    result = runner.invoke(app, ["list", "--json"])
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["schema"] == 1
    embedded = next(row for row in data["profiles"] if row["name"] == "embedded")
    assert embedded["valid"] is True
    assert embedded["deployments"][0] == "tp2"
    assert "embedded" in runner.invoke(app, ["list"]).stdout


def test_list_goes_on_past_a_broken_profile(broken: Path) -> None:
    rows = json.loads(runner.invoke(app, ["list", "--json"]).stdout)["profiles"]
    assert [(row["name"], row["valid"], len(row["problems"])) for row in rows] == [("bad", False, 3), ("good", True, 0)]
    assert "3 problems" in runner.invoke(app, ["list"]).stdout


def test_show() -> None:
    result = runner.invoke(app, ["show", "embedded", "--json"])
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["networks"]["direct"]["rate_bytes_per_second"] == 1e9
    assert data["engines"]["cpu"]["engine"] == "vllm"
    human = runner.invoke(app, ["show", "embedded"]).stdout
    assert "8 Gbit/s" in human
    assert "tp2 (default)" in human


def test_show_without_a_name_is_the_default() -> None:
    assert json.loads(runner.invoke(app, ["show", "--json"]).stdout)["name"] == "embedded"


def test_check_says_what_was_checked() -> None:
    result = runner.invoke(app, ["check", "embedded"])
    assert result.exit_code == 0
    assert "tp2 node0: 1.82 GiB = weights 38.2 MiB + KV cache 256 MiB" in result.stdout
    data = json.loads(runner.invoke(app, ["check", "embedded", "--json"]).stdout)
    assert data["valid"] is True
    fit = data["memory"]["tp2"][0]
    parts = ("weights_bytes", "kv_cache_bytes", "activations_bytes", "runtime_bytes")
    assert fit["total_bytes"] == sum(fit[part] for part in parts) <= fit["limit_bytes"]


def test_check_prints_every_problem(broken: Path) -> None:
    result = runner.invoke(app, ["check", "bad"])
    assert result.exit_code == 1
    lines = [line for line in result.stdout.splitlines() if line]
    assert [line.split(": ")[1] for line in lines] == ["networks.direct.mtu", "nodes.node0.cores", "nodes.node1.cores"]
    assert lines[1].startswith(f"{broken}/bad.yaml:")
    assert "3 problems" in result.stderr


def test_check_prints_problems_as_data(broken: Path) -> None:
    result = runner.invoke(app, ["check", "bad", "--json"])
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["valid"] is False
    assert data["problems"][0]["key"] == "networks.direct.mtu"
    assert data["problems"][0]["text"] == "90000; expected at most 65535"
    assert isinstance(data["problems"][0]["line"], int)


def test_an_unknown_profile(broken: Path) -> None:
    result = runner.invoke(app, ["check", "god"])
    assert result.exit_code == 1
    assert "no such profile (did you mean good?)" in result.stdout
    assert runner.invoke(app, ["show", "god"]).exit_code == 1
