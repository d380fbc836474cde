"""Setting a control node up: what is refused before anything is touched, and how an apply is told."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from remote import setup
from remote.session import ConnectionLostError
from remote.target import Target

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        ("embedded", "is a lab"),
        # Not bought yet: nobody knows its interface.
        ("ryzen-ai-max/v0.2", "control.interface is missing"),
        ("no-such", "no-such"),
    ],
)
def test_a_profile_that_has_no_control_node_to_set_up(profile: str, reason: str) -> None:
    result = CliRunner().invoke(app, ["control", "init", "root@nowhere.invalid", "--profile", profile])
    assert result.exit_code == 2
    assert reason in result.output


def test_an_apply_is_known_by_what_changed_and_what_failed() -> None:
    reported = setup.summary(
        {
            "file_|-one_|-/a_|-managed": {"result": True, "changes": {"diff": "x"}, "comment": "updated"},
            "file_|-two_|-/b_|-managed": {"result": True, "changes": {}, "comment": "in place"},
            "service_|-three_|-c_|-running": {"result": False, "changes": {}, "comment": "no such unit"},
            # What `--test` says of a state that would change.
            "file_|-four_|-/d_|-managed": {"result": None, "changes": {"diff": "y"}, "comment": "would be"},
        }
    )
    assert reported["states"] == 4
    assert [each["name"] for each in reported["changed"]] == ["one", "four"]
    assert reported["failed"] == [{"id": "three", "comment": "no such unit"}]


def test_a_connection_lost_under_an_apply_is_answered_by_doing_it_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Lost:
        def __init__(self, *_: object, **__: object) -> None:
            self.stdout = io.BytesIO(b"")

        def wait(self) -> int:
            raise ConnectionLostError("the connection to nuc was lost", "cluster status")

    monkeypatch.setattr(setup, "Session", Lost)
    target = Target("root@nuc", tmp_path / "known_hosts")
    with pytest.raises(ConnectionLostError, match="was lost") as caught:
        setup.apply_states(target, "arc-a770/v0.1", False, lambda _: None)
    assert caught.value.next_command == "cluster control init root@nuc"


@pytest.mark.starts_programs
def test_what_is_installed_first_asks_apt_for_nothing_that_is_there(tmp_path: Path) -> None:
    """The text that runs there, before a shell, with programs that stand for Debian's."""
    script = setup._FIRST.replace("/etc/os-release", str(tmp_path / "os-release"))
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian 13"\n')
    programs = {
        "dpkg-query": 'case "$3" in here) echo "ii " ;; *) exit 1 ;; esac',
        "apt-get": f'echo "$@" >> {tmp_path / "asked"}',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def run(*packages: str) -> subprocess.CompletedProcess[str]:
        path = f"{tmp_path}:/usr/bin:/bin"
        argv = ["sh", "-c", script, "sh", *packages]
        return subprocess.run(argv, capture_output=True, text=True, env={"PATH": path}, check=False)

    assert (run("here").returncode, run("here").stdout) == (0, "")
    assert not (tmp_path / "asked").exists()
    assert run("here", "missing").stdout == "missing\n"
    assert (tmp_path / "asked").read_text().splitlines()[-1].endswith("--no-install-recommends missing")
    (tmp_path / "os-release").write_text('ID=fedora\nPRETTY_NAME="Fedora 43"\n')
    refused = run("here")
    assert refused.returncode == 3
    assert "it runs Fedora 43; expected Debian 12 or later" in refused.stderr
