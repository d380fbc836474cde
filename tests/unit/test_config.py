"""Settings: flag before environment before ./cluster.toml upward before the user's before the default."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import config
from cli.main import app


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("CLUSTER_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    yield
    config.set_flags({})


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_each_source_goes_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> config.Value:
        return config.lookup()["control.host"]

    assert seen() == config.Value(None, "default")
    user = write(tmp_path / "home" / "cluster" / "cluster.toml", '[control]\nport = 22\nhost = "user"\n')
    assert seen() == config.Value("user", "user", f"{user}:3")
    file = write(tmp_path / "here" / "cluster.toml", '# a comment\ncontrol.host = "file"\n')
    assert seen() == config.Value("file", "file", f"{file}:2")
    assert config.lookup()["control.port"].origin == "user"
    nearer = write(tmp_path / "here" / "deep" / "cluster.toml", '[control]\nhost = "nearer"\n')
    assert seen() == config.Value("nearer", "file", f"{nearer}:2")
    monkeypatch.setenv("CLUSTER_CONTROL", "environment")
    assert seen() == config.Value("environment", "environment", "CLUSTER_CONTROL")
    config.set_flags({"control.host": ("flag", "--control")})
    assert seen() == config.Value("flag", "flag", "--control")


def test_paths_in_a_file_count_from_it(tmp_path: Path) -> None:
    write(tmp_path / "here" / "cluster.toml", 'runs = "r"\nprofile = "p/mine.yaml"\ncontrol.identity = "~/key"\n')
    values = config.lookup()
    assert values["runs"].value == str(tmp_path / "here" / "r")
    assert values["profile"].value == str(tmp_path / "here" / "p" / "mine.yaml")
    assert values["control.identity"].value == str(Path.home() / "key")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("profile = 1\n", ":1: profile: 1; expected a text"),
        ('\n[control]\nhots = "x"\n', ":3: unknown key control.hots; expected one of profile, lab"),
        ("[control]\nport = 70000\n", ":2: control.port: 70000; expected a port"),
        ("[control]\nport = true\n", ":2: control.port: True; expected a port"),
        ('[control]\nsudo = "yes"\n', ":2: control.sudo: 'yes'; expected true or false"),
        ("[sync]\nexclude = [1]\n", ":2: sync.exclude: [1]; expected a list of texts"),
        ("profile = \n", "Invalid value (at line 1"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, expected: str, tmp_path: Path) -> None:
    file = write(tmp_path / "here" / "cluster.toml", text)
    with pytest.raises(config.ConfigError) as error:
        config.lookup()
    assert str(error.value).startswith(str(file))
    assert expected in str(error.value)


@pytest.mark.parametrize("variable", ["CLUSTER_CONTROL_PORT", "CLUSTER_CONTROL_SUDO"])
def test_a_mistake_in_the_environment_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "maybe")
    with pytest.raises(config.ConfigError, match=f"{variable}=maybe; expected"):
        config.lookup()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_decides_nothing(tmp_path: Path) -> None:
    os.chown(write(tmp_path / "here" / "cluster.toml", 'control.host = "theirs"\n'), 4711, 4711)
    with pytest.raises(config.ConfigError, match="belongs to user 4711"):
        config.lookup()


def test_show_says_where_each_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "here" / "cluster.toml", 'profile = "p"\n')
    monkeypatch.setenv("CLUSTER_LAB", "mine")
    result = CliRunner().invoke(app, ["--control", "root@nuc", "config", "show", "--origin", "--json"])
    assert result.exit_code == 0, result.output
    settings = json.loads(result.stdout)["settings"]
    assert settings["control.host"] == {"value": "root@nuc", "origin": "flag", "where": "--control"}
    assert settings["profile"]["origin"] == "file"
    assert settings["lab"]["origin"] == "environment"
    assert settings["control.directory"] == {"value": "/opt/cluster", "origin": "default", "where": ""}


def test_commands_take_the_profile_from_the_settings(tmp_path: Path) -> None:
    write(tmp_path / "here" / "cluster.toml", 'profile = "no-such-profile"\n')
    configured = CliRunner().invoke(app, ["plan"])
    assert configured.exit_code == 2
    assert "no-such-profile" in configured.output
    by_flag = CliRunner().invoke(app, ["plan", "--profile", "another-one"])
    assert "another-one" in by_flag.output
    write(tmp_path / "here" / "cluster.toml", "nonsense = 1\n")
    assert "unknown key nonsense" in CliRunner().invoke(app, ["plan"]).output


def test_a_hardware_profile_needs_a_control_node(tmp_path: Path) -> None:
    from tests.integration.test_ssh_cli import hardware_profile

    result = CliRunner().invoke(app, ["status", "--profile", str(hardware_profile(tmp_path))])
    assert result.exit_code == 2
    assert "no control node is set" in result.output
