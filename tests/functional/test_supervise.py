"""A unit's whole process tree is owned: nothing it started outlives it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import unit_keeper
import unit_sandbox

from tests.waiting import wait_for

# One child in the unit's session, one in a session of its own, as vLLM's workers may be.
FAMILY = ["bash", "-c", "(setsid sleep 300 &); (sleep 300 &); exec sleep 300"]


@pytest.fixture
def supervise(loaders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = loaders.modules.supervise
    namespace = loaders.modules["supervise.start"].__globals__
    monkeypatch.setitem(namespace, "DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    yield module
    for name in module.units():
        module.stop(name)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in status_of(pid)]


def status_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_stop_ends_the_whole_tree(supervise: Any, tmp_path: Path) -> None:
    started = supervise.start("family", FAMILY, None, str(tmp_path / "log"))
    assert started["running"]
    wait_for(lambda: len(supervise.processes("family")) == 3)
    tree = supervise.processes("family")
    assert supervise.status("family")["stopped_processes"] == []
    os.kill(tree[-1], signal.SIGSTOP)
    wait_for(lambda: supervise.status("family")["stopped_processes"] == [tree[-1]])
    assert supervise.status("family")["processes"] == 3
    ended = supervise.stop("family")
    assert not ended["running"] and ended["stopped"]
    assert alive(tree) == []
    assert supervise.stop("family")["stopped"], "stopping twice is no error"


def test_stop_at_once_leaves_nobody_the_time_to_end_by_itself(supervise: Any, tmp_path: Path) -> None:
    began, asked = tmp_path / "began", tmp_path / "asked"
    command = ["sh", "-c", f"trap 'touch {asked}' TERM; sleep 600 & touch {began}; while :; do wait; done"]
    supervise.start("deaf", command, None, str(tmp_path / "log"))
    wait_for(began.exists)
    tree = supervise.processes("deaf")
    ended = supervise.stop("deaf", at_once=True)
    assert ended["stopped"] and ended["exit_code"] == -signal.SIGKILL and alive(tree) == []
    assert not asked.exists()


def test_start_twice_is_one_unit(supervise: Any, tmp_path: Path) -> None:
    first = supervise.start("once", ["sleep", "300"], None, str(tmp_path / "log"))
    second = supervise.start("once", ["sleep", "300"], None, str(tmp_path / "log"))
    assert first["pid"] == second["pid"]


def test_the_end_of_the_main_process_ends_the_rest(supervise: Any, tmp_path: Path) -> None:
    supervise.start("orphans", ["bash", "-c", "(setsid sleep 300 &); exit 3"], None, str(tmp_path / "log"))
    wait_for(lambda: supervise.status("orphans")["exit_code"] is not None)
    seen = supervise.status("orphans")
    assert seen["exit_code"] == 3 and not seen["running"] and not seen["stopped"]
    assert supervise.processes("orphans") == []


def test_a_killed_keeper_is_seen_and_cleaned_up(supervise: Any, tmp_path: Path) -> None:
    started = supervise.start("keeperless", ["sleep", "300"], None, str(tmp_path / "log"))
    keeper = int(status_of(started["pid"]).split("PPid:\t")[1].split()[0])
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: not supervise.status("keeperless")["running"])
    supervise.stop("keeperless")
    assert alive([started["pid"]]) == []


def test_what_cannot_start_says_so(supervise: Any, tmp_path: Path) -> None:
    seen = supervise.start("missing", ["/nonexistent/program"], None, str(tmp_path / "log"))
    assert seen["exit_code"] == 127
    assert "cannot start" in (tmp_path / "log").read_text()


def test_the_environment_is_given_but_not_shown(supervise: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    supervise.start("secret", ["sh", "-c", "echo $TOKEN; sleep 300"], {"TOKEN": "t-0-k"}, str(log))
    wait_for(lambda: "t-0-k" in log.read_text())
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in supervise.processes("secret")]
    assert commands and not any(b"t-0-k" in command for command in commands)
    assert not list((tmp_path / "run").glob("*.spec")), "the file that carried it is gone"


@pytest.mark.parametrize("name", ["", "../x", "Upper", "a b"])
def test_a_bad_name_is_refused(supervise: Any, name: str) -> None:
    with pytest.raises(ValueError, match="unit name"):
        supervise.start(name, ["true"])


def test_systemd_learns_that_a_unit_is_up_and_lives(tmp_path: Path) -> None:
    """The keeper's words to systemd, read from the socket that it is given; the unit's program has no such socket."""
    specification = tmp_path / "told.spec"
    log = tmp_path / "log"
    command = ["sh", "-c", "echo socket=${NOTIFY_SOCKET-none}; exec sleep 300"]
    content = {"name": "told", "command": command, "environment": {}, "log": str(log), "started": 0.0}
    specification.write_text(json.dumps(content))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        subprocess.run(
            [sys.executable, unit_keeper.__file__, str(specification)], env=environment, check=True, timeout=30
        )
        received = [systemd.recv(100).decode() for _ in range(3)]
        wait_for(lambda: log.exists() and "socket=" in log.read_text())
    record = json.loads((tmp_path / "told.json").read_text())
    os.kill(record["keeper"], signal.SIGTERM)
    wait_for(lambda: not alive([record["keeper"], record["pid"]]))
    assert received == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
    assert log.read_text() == "socket=none\n"


# What stands in systemd's place: it notes what it is called with, and runs what it is to run.
SYSTEMD_RUN = """#!{python}
import json, os, sys
with open("{folder}/called.json", "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
if sys.argv[0].endswith("systemd-run"):
    command = [word for word in sys.argv[1:] if not word.startswith("--")]
    os.execv(command[0], command)
print("oom-kill")
"""


def test_where_systemd_runs_it_has_the_unit_with_its_settings(
    supervise: Any, loaders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("systemd-run", "systemctl"):
        (programs / name).write_text(SYSTEMD_RUN.format(python=sys.executable, folder=tmp_path))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    keeper = loaders.modules["supervise.start"].__globals__["unit_keeper"]
    monkeypatch.setattr(keeper, "SYSTEMD", str(programs))
    environment = {"TOKEN": "t-0-k"}
    started = supervise.start("kept", ["sleep", "300"], environment, str(tmp_path / "log"), unit_sandbox.SAMPLER)
    assert started["running"] and started["result"] is None
    called = [json.loads(line) for line in (tmp_path / "called.json").read_text().splitlines()]
    forgotten, made = called
    assert forgotten[1:] == ["reset-failed", "cluster-kept"]
    assert "--unit=cluster-kept" in made
    assert {f"--property={setting}" for setting in unit_sandbox.SAMPLER} <= set(made)
    assert "t-0-k" not in str(called)
    # Ended by systemd, with its keeper: the keeper wrote nothing, systemd knows why.
    record = json.loads((tmp_path / "run" / "kept.json").read_text())
    for pid in (record["keeper"], record["pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive([record["keeper"], record["pid"]]))
    seen = supervise.status("kept")
    assert (seen["running"], seen["exit_code"], seen["result"]) == (False, None, "oom-kill")
