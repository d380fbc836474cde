"""A control node where a person logs in and uses sudo; and what happens on a terminal: the shell, the first contact."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.sshd import PERSON_ID, Server, laptop_environment, server
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="a person for one server alone is made in a mount namespace: root"),
    pytest.mark.skipif(shutil.which("sudo") is None, reason="sudo is not installed (setup/packages test)"),
]
REPOSITORY = Path(__file__).parents[2]
CLUSTER = [sys.executable, "-c", "from cli.main import app; app()"]
DEADLINE = 60.0


@pytest.fixture(scope="module")
def sshd() -> Iterator[Server]:
    with server("somebody") as found:
        yield found


@pytest.fixture
def environment(sshd: Server, tmp_path: Path) -> Iterator[dict[str, str]]:
    found = laptop_environment(sshd, tmp_path / "laptop", tmp_path / "there") | {"TERM": "dumb"}
    yield found | {"CLUSTER_CONTROL_SUDO": "true"}
    for config in (sshd.folder / "run" / "cluster-ssh").glob("config-*"):
        subprocess.run(["ssh", "-F", str(config), "-O", "exit", sshd.host], capture_output=True, check=False)


def cluster(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLUSTER, *words],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.fixture
def trusted(environment: dict[str, str], sshd: Server) -> dict[str, str]:
    made = cluster(environment, "control", "trust", "--fingerprint", sshd.fingerprint)
    assert made.returncode == 0, made.stderr
    return environment


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, environment: dict[str, str], *words: str) -> None:
        self.output = ""
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(REPOSITORY)
            os.execve(CLUSTER[0], [*CLUSTER, *words], environment)

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until it says something, from what it has not been asked for yet; return it."""
        deadline = time.monotonic() + DEADLINE
        while not (found := re.search(pattern, self.output)):
            assert self._read(deadline), f"expected {pattern!r}, seen {self.output!r}"
        self.output = self.output[found.end() :]
        return found

    def write(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def status(self) -> int:
        """Wait for its end; return its status."""
        deadline = time.monotonic() + DEADLINE
        while self._read(deadline):
            pass
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
            return False
        try:
            data = os.read(self._descriptor, 4096)
        except OSError:  # the other side is closed
            return False
        self.output += data.decode("utf-8", "replace")
        return bool(data)


def test_the_first_contact_asks_and_takes_no_for_an_answer(environment: dict[str, str], sshd: Server) -> None:
    for answer, status, reached in (("n", 4, 4), ("y", 0, 0)):
        asking = Terminal(environment, "control", "trust")
        asking.expect(re.escape(sshd.fingerprint))
        asking.expect(r"Is it the same\? \[y/N\]")
        asking.write(f"{answer}\n")
        assert asking.status() == status
        assert cluster(environment, "control", "cmd", "--", "true").returncode == reached


def test_a_shell_is_one_on_a_terminal_and_its_status_comes_through(trusted: dict[str, str]) -> None:
    shell = Terminal(trusted, "control", "shell")
    shell.expect(r"[#$] $")
    shell.write("tty; id -u; echo path=$PATH\n")
    shell.expect(r"/dev/pts/\d+\r\n0\r\n")
    # At hand; a root's own .bashrc may put more before them.
    assert f"{trusted['CLUSTER_CONTROL_DIRECTORY']}/venv/bin" in shell.expect(r"path=(\S+)\r").group(1).split(":")
    # Ctrl-C is the shell's: it ends what runs in it, not the shell.
    shell.write("sleep 600; echo gone on\n")
    shell.expect("sleep 600")
    shell.write("\x03")
    shell.expect(r"[#$] $")
    shell.write("exit 7\n")
    assert shell.status() == 7


def test_with_sudo_a_command_is_root_s_and_without_it_the_person_s(trusted: dict[str, str]) -> None:
    assert cluster(trusted, "control", "cmd", "--", "id", "-u").stdout == "0\n"
    without = trusted | {"CLUSTER_CONTROL_SUDO": "false"}
    assert cluster(without, "control", "cmd", "--", "id", "-u").stdout == f"{PERSON_ID}\n"
    odd = cluster(
        trusted, "control", "cmd", "--", "sh", "-c", 'printf "%s|" "$@"; exit 9', "sh", "a  b", "", "*", "$HOME"
    )
    assert (odd.returncode, odd.stdout) == (9, "a  b||*|$HOME|")


def test_without_the_right_to_sudo_it_says_what_was_expected(trusted: dict[str, str], sshd: Server) -> None:
    rules = sshd.folder / "etc" / "sudoers.d" / "somebody"
    before = rules.read_bytes()
    rules.write_text("somebody ALL=(root) ALL\n")
    try:
        refused = cluster(trusted, "control", "cmd", "--", "true")
    finally:
        rules.write_bytes(before)
    assert refused.returncode == 4
    assert "sudo that asks for no password" in " ".join(refused.stderr.split())


def start(environment: dict[str, str], script: str) -> tuple[subprocess.Popen[str], int]:
    """Start a script there; return the local command and the number of the shell there, which has begun."""
    errors = ""
    # On a machine that is very busy, ssh's own limit for a connection may run out.
    for _ in range(3):
        running = subprocess.Popen(
            [*CLUSTER, "control", "cmd", "--", "sh", "-c", script],
            cwd=REPOSITORY,
            env=environment,
            # Input that stays open: a command that reads nothing of it does not see it end.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stdout
        if number := running.stdout.readline():
            return running, int(number)
        errors = running.communicate(timeout=DEADLINE)[1]
    pytest.fail(f"it did not start: {errors}")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_gone(pid: int) -> None:
    wait_for(lambda: is_gone(pid), DEADLINE, "the end of the remote command", 0.02)


def test_ctrl_c_reaches_what_sudo_runs(trusted: dict[str, str]) -> None:
    running, pid = start(trusted, "trap 'echo cleaned; exit 5' INT; echo $$; sleep 600; echo not reached")
    running.send_signal(signal.SIGINT)
    assert running.wait(DEADLINE) == 5
    assert running.stdout
    assert running.stdout.read() == "cleaned\n"
    wait_gone(pid)


@pytest.mark.parametrize("sudo", ["true", "false"])
@pytest.mark.parametrize("victim", ["ssh", "cluster", "sshd"])
def test_the_work_ends_as_by_ctrl_c_when_the_laptop_s_side_is_killed(
    trusted: dict[str, str], sshd: Server, victim: str, sudo: str
) -> None:
    """`control cmd` whose input is open: killed are ssh, the command itself, or the server's end of the line."""
    noted = sshd.folder / "home" / f"ended-{victim}-{sudo}"
    script = f"trap 'echo interrupted > {noted}; exit' INT; echo $$; while :; do sleep 0.1; done"
    running, pid = start(trusted | {"CLUSTER_CONTROL_SUDO": sudo}, script)
    try:
        if victim == "ssh":
            os.kill(ssh_of(running.pid), signal.SIGKILL)
        elif victim == "cluster":
            running.kill()
        else:
            sshd.cut()
        wait_gone(pid)
        assert noted.read_text() == "interrupted\n"
        if victim != "cluster":
            _, errors = running.communicate(timeout=DEADLINE)
            assert running.returncode == 4
            assert "was lost" in " ".join(errors.split())
    finally:
        with suppress(OSError):
            running.kill()
        running.wait()


def ssh_of(pid: int) -> int:
    """Return the ssh that a command has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = [int(child) for child in children if Path(f"/proc/{child}/comm").read_text().strip() == "ssh"]
    return found


def test_sync_writes_as_root(trusted: dict[str, str], tmp_path: Path) -> None:
    tree, there = tmp_path / "tree", tmp_path / "root's"
    for name in ("pyproject.toml", "salt/top.sls", "pillar/top.sls", "cli/main.py", "profiles/x.local.yaml"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    there.mkdir(mode=0o700)
    environment = trusted | {"CLUSTER_CONTROL_DIRECTORY": str(there)}
    sent = cluster(environment, "sync", "--source", str(tree), "--json")
    assert sent.returncode == 0, sent.stderr
    arrived = there / "src" / "profiles" / "x.local.yaml"
    assert arrived.stat().st_uid == 0
    person = environment | {"CLUSTER_CONTROL_SUDO": "false"}
    assert cluster(person, "sync", "--source", str(tree), "--json").returncode != 0
