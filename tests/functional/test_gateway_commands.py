"""Commands of the gateway: given over its socket, with what failed said; and the files that it starts with."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bottleneck.plan import gateway as plan
from bottleneck.profile import find_profile, load_profile
from control import engine_key, gateway, write_gateway

ACLS = (
    "# id (file) description\n0 () acl 'src' file 'x' line 1.\n4 (/run/key) pattern loaded from file '/run/key' used\n"
)
STAT = "# pxname,svname,qcur,scur,status,\nheads,node0,0,3,UP,\nheads,node1,0,0,DOWN 1/2,\n"


class Haproxy:
    """Takes one command a connection, as HAProxy does, and answers from a table."""

    def __init__(self, path: Path) -> None:
        self.commands: list[str] = []
        self.answers = {"show acl": ACLS, "show stat heads 4 -1": STAT}
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, connection.makefile("rw") as stream:
                command = stream.readline().rstrip("\n")
                self.commands.append(command)
                stream.write(self.answers.get(command, "\n"))

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def opts(tmp_path: Path) -> dict[str, str]:
    return {"cluster_directory": str(tmp_path), gateway.OPTION: str(tmp_path / "admin.sock")}


@pytest.fixture
def haproxy(opts: dict[str, str]) -> Iterator[Haproxy]:
    made = Haproxy(Path(opts[gateway.OPTION]))
    yield made
    made.close()


def test_heads_that_serve_are_ready_and_the_key_is_the_one_of_now(haproxy: Haproxy, opts: dict[str, str]) -> None:
    engine_key.path(opts).parent.mkdir()
    engine_key.path(opts).write_text("a-word;of-a-persons\\own\n")
    assert gateway.serve(opts, ["node0", "node1"]) is None
    assert haproxy.commands == [
        "show acl",
        "clear acl #4",
        r"add acl #4 a-word\;of-a-persons\\own",
        "set server heads/node0 state ready",
        "set server heads/node1 state ready",
        "set server awaited/head state ready",
    ]


@pytest.mark.parametrize(("awaited", "state"), [(True, "ready"), (False, "maint")])
def test_heads_that_are_withdrawn_lose_what_they_have(
    haproxy: Haproxy, opts: dict[str, str], awaited: bool, state: str
) -> None:
    assert gateway.withdraw(opts, ["node1"], awaited=awaited) is None
    assert haproxy.commands == [
        # First, so that nobody who comes between is refused.
        f"set server awaited/head state {state}",
        "set server heads/node1 state maint",
        "shutdown sessions server heads/node1",
    ]


def test_a_head_is_drained_and_nobody_waits_for_it(haproxy: Haproxy, opts: dict[str, str]) -> None:
    assert gateway.drain(opts, ["node0"]) is None
    assert haproxy.commands == ["set server awaited/head state maint", "set server heads/node0 state drain"]


def test_what_it_refuses_is_said_and_the_key_is_not(haproxy: Haproxy, opts: dict[str, str]) -> None:
    haproxy.answers["set server heads/node7 state drain"] = "No such server.\n"
    assert gateway.drain(opts, ["node7"]) == "set server heads/node7 state drain: No such server."
    key = engine_key.key(opts)
    haproxy.answers[f"add acl #4 {key}"] = "Out of memory error.\n"
    assert gateway.serve(opts, []) == "add acl: Out of memory error."
    haproxy.answers["show acl"] = "# id (file) description\n"
    assert "has no list of keys" in str(gateway.serve(opts, []))


def test_one_that_is_not_there_is_named_with_the_next_command(opts: dict[str, str]) -> None:
    for found in (gateway.expect(opts), gateway.status(opts)["reason"]):
        assert "does not answer at" in str(found) and "cluster doctor" in str(found)
    assert gateway.status(opts)["up"] is False


def test_the_state_of_each_head_is_known(haproxy: Haproxy, opts: dict[str, str]) -> None:
    heads = {"node0": {"state": "UP", "requests": 3}, "node1": {"state": "DOWN", "requests": 0}}
    assert gateway.status(opts) == {"up": True, "reason": None, "heads": heads}
    haproxy.answers["show stat heads 4 -1"] = "Can't find backend.\n"
    assert gateway.status(opts)["heads"] == {}


def test_its_files_are_written_once_and_the_key_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["arc-a770/v0.1", str(tmp_path / "gateway"), "--state", str(tmp_path)]
    assert write_gateway.main(argv) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    key = engine_key.path({"cluster_directory": str(tmp_path)})
    made = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    assert write_gateway.main(argv) == 0
    assert capsys.readouterr().out.strip() == "" and key.read_bytes() == made
    assert made.decode().strip() not in "".join(path.read_text() for path in (tmp_path / "gateway").iterdir())
    assert write_gateway.main(["no-such-profile", str(tmp_path / "gateway")]) == 1


@pytest.mark.skipif(not shutil.which("haproxy"), reason="needs haproxy")
@pytest.mark.parametrize("name", ["arc-a770/v0.1", "embedded", "gpu-mesh"])
def test_haproxy_takes_its_configuration(name: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sixteen-letters-or-more\n")
    for path, text in plan.files(load_profile(find_profile(name)), str(key), tmp_path).items():
        path.write_text(text)
    checked = subprocess.run(
        ["haproxy", "-c", "-f", str(tmp_path / plan.CONFIGURATION)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr + checked.stdout
