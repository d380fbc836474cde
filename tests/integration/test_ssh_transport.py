"""Commands on a control node over a real sshd: words, streams, statuses, Ctrl-C, a lost connection."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bottleneck.profile import find_profile, load_profile
from cli.control import ControlError
from remote.control import RemoteControl
from remote.host_keys import show_key, trust
from remote.session import ConnectionLostError, RemoteError, Session
from remote.target import Target
from tests.integration.sshd import Server, make_key, server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
DEADLINE = 30.0
WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12), min_size=1, max_size=30)
NASTY = [
    "",
    " ",
    "a  b",
    "it's",
    '"quoted"',
    "$HOME `id` $(id)",
    "*",
    "?[a-z]*",
    "line\nline\n",
    "\\",
    "-n",
    "--",
    "~",
    "!x",
    "\t\r",
    "ü€😀",
    "a;b|c&d>e<f#g",
]
PRINT = [
    sys.executable,
    "-I",
    "-c",
    "import json, os, sys; print(json.dumps([os.fsencode(a).hex() for a in sys.argv[1:]]))",
]


@pytest.fixture(scope="module")
def sshd() -> Iterator[Server]:
    with server() as found:
        yield found


@pytest.fixture
def target(sshd: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    runtime = sshd.folder / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    found = Target(
        sshd.host, sshd.folder / "known hosts", sshd.port, sshd.identity, directory=str(sshd.folder / "cluster")
    )
    trust(found, show_key(found))
    yield found
    subprocess.run([*found.ssh(), "-O", "exit", found.host], capture_output=True, check=False)


def finish(target: Target, argv: list[str], stdin: Any = None) -> tuple[int, bytes, bytes]:
    errors = bytearray()
    running = Session(target, argv, stdin=stdin, on_stderr=errors.extend)
    output = running.stdout.read()
    return running.wait(DEADLINE), output, bytes(errors)


def wait_until(condition: Any, what: str) -> Any:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {DEADLINE:.0f} s")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
def test_any_words_arrive_as_they_are(target: Target, words: list[str]) -> None:
    code, output, _ = finish(target, [*PRINT, *words])
    assert code == 0
    assert [bytes.fromhex(word).decode() for word in json.loads(output)] == words


def test_the_words_that_shells_stumble_over_arrive(target: Target) -> None:
    code, output, _ = finish(target, [*PRINT, *NASTY])
    assert code == 0
    assert [bytes.fromhex(word).decode() for word in json.loads(output)] == NASTY


def test_streams_stay_apart_and_bytes_are_kept(target: Target) -> None:
    every = bytes(range(256)) * 1000
    script = "import sys; b = sys.stdin.buffer.read(); sys.stdout.buffer.write(b); sys.stderr.buffer.write(b[::-1])"
    errors = bytearray()
    running = Session(target, [sys.executable, "-c", script], stdin=subprocess.PIPE, on_stderr=errors.extend)
    with running.stdin as stdin:
        writer = threading.Thread(target=lambda: (stdin.write(every), stdin.close()))
        writer.start()
        output = running.stdout.read()
        writer.join()
    assert running.wait(DEADLINE) == 0
    assert output == every
    assert bytes(errors) == every[::-1]


@pytest.mark.parametrize("code", [0, 1, 2, 127, 128, 254, 255])
def test_every_status_is_the_commands_own(target: Target, code: int) -> None:
    assert finish(target, ["sh", "-c", f"exit {code}"])[0] == code


def test_a_command_that_a_signal_ended(target: Target) -> None:
    assert finish(target, ["sh", "-c", "kill -SEGV $$"])[0] == 128 + signal.SIGSEGV


def test_a_command_that_does_not_exist(target: Target) -> None:
    code, _, errors = finish(target, ["no such command"])
    assert (code, errors) == (127, b"no such command: command not found\n")


def test_programs_of_the_control_node_come_first(target: Target) -> None:
    assert finish(target, ["sh", "-c", "echo $PATH"])[1].decode().startswith(f"{target.programs}:")


def test_one_connection_serves_all(target: Target, sshd: Server) -> None:
    finish(target, ["true"])
    parents = {finish(target, ["sh", "-c", "ps -o ppid= -p $PPID"])[1].split()[0] for _ in range(3)}
    assert len(parents) == 1


def test_an_interrupt_reaches_the_whole_group_and_its_clean_up_is_seen(target: Target) -> None:
    # The shell runs its trap only once its child has ended, so the child has to get the signal too.
    script = "trap 'echo cleaned; exit 7' INT; echo $$; sleep 600; echo not reached"
    running = Session(target, ["sh", "-c", script], on_stderr=lambda data: None)
    shell = int(running.stdout.readline())
    running.signal(signal.SIGINT)
    assert running.stdout.read() == b"cleaned\n"
    assert running.wait(DEADLINE) == 7
    assert is_gone(shell)


def test_a_command_that_ignores_ctrl_c_is_ended_all_the_same(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Session(target, ["sh", "-c", "trap '' INT; echo $$; sleep 600"], on_stderr=lambda data: None)
    pid = int(running.stdout.readline())
    running.signal(signal.SIGINT)
    running.signal(signal.SIGTERM)
    assert running.wait(DEADLINE) == 128 + signal.SIGTERM
    wait_until(lambda: is_gone(pid), "the end of the command")


@pytest.mark.parametrize("how", ["client", "master", "sshd"])
def test_a_lost_connection_says_so_and_ends_the_remote_work(
    target: Target, sshd: Server, tmp_path: Path, how: str
) -> None:
    noted = tmp_path / "ended"
    script = f"trap 'echo interrupted > {noted}; exit' INT; echo $$; while :; do sleep 0.1; done"
    running = Session(target, ["sh", "-c", script], on_stderr=lambda data: None)
    pid = int(running.stdout.readline())
    if how == "client":
        running.process.kill()
    elif how == "master":
        os.kill(_master(target), signal.SIGKILL)
    else:
        sshd.cut()
    with pytest.raises(ConnectionLostError, match=r"was lost"):
        running.wait(DEADLINE)
    wait_until(lambda: is_gone(pid), "the end of the remote command")
    assert noted.read_text() == "interrupted\n", "it was to be ended as by Ctrl-C"
    assert finish(target, ["echo", "again"])[1] == b"again\n"


def test_the_end_of_this_process_ends_the_remote_command(target: Target, tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from remote.session import Session
from remote.target import Target
target = Target({target.host!r}, Path({str(target.known_hosts)!r}), {target.port}, Path({str(target.identity)!r}))
running = Session(target, ["sh", "-c", "echo $$; exec sleep 600"], on_stderr=lambda data: None)
print(running.stdout.readline().decode(), flush=True)
running.wait()
"""
    local = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert local.stdout
    pid = int(local.stdout.readline())
    local.kill()
    local.wait()
    wait_until(lambda: is_gone(pid), "the end of the remote command")


def _master(target: Target) -> int:
    asked = subprocess.run([*target.ssh(), "-O", "check", target.host], capture_output=True, text=True, check=True)
    return int("".join(c for c in asked.stderr + asked.stdout if c.isdigit()))


def test_nobody_is_let_in_with_a_key_that_was_not_trusted(target: Target, sshd: Server, tmp_path: Path) -> None:
    stranger = Target(target.host, tmp_path / "known_hosts", target.port, target.identity, sudo=False)
    subprocess.run([*target.ssh(), "-O", "exit", target.host], capture_output=True, check=False)
    with pytest.raises(RemoteError, match=r"host key .* not known yet"):
        finish(stranger, ["true"])


def test_another_host_key_is_refused(target: Target, sshd: Server) -> None:
    subprocess.run([*target.ssh(), "-O", "exit", target.host], capture_output=True, check=False)
    sshd.stop()
    sshd.make_host_key()
    sshd.start()
    try:
        with pytest.raises(RemoteError, match=r"another host key"):
            finish(target, ["true"])
        trust(target, show_key(target))
        assert finish(target, ["echo", "new"])[1] == b"new\n"
        assert len(target.known_hosts.read_text().splitlines()) == 1
    finally:
        with suppress(RemoteError):
            trust(target, show_key(target))


def test_a_server_that_does_not_run(target: Target) -> None:
    with pytest.raises(RemoteError, match=r"cannot reach .*refused"):
        finish(Target("127.0.0.1", target.known_hosts, 1, target.identity), ["true"])


def test_a_key_that_is_not_let_in(target: Target, sshd: Server, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    with pytest.raises(RemoteError, match=r"does not let you in"):
        finish(Target("nobody@127.0.0.1", target.known_hosts, target.port, tmp_path / "other"), ["true"])


def test_what_ssh_leaves_is_only_its_connection(target: Target, sshd: Server) -> None:
    folder = sshd.folder / "run" / "cluster-ssh"
    before = set(folder.iterdir())
    stale = folder / "log-of-a-process-that-was-killed"
    stale.touch()
    os.utime(stale, (0, 0))
    finish(target, ["true"])
    running = Session(target, ["sh", "-c", "echo runs; exec sleep 600"], on_stderr=lambda data: None)
    assert running.stdout.readline() == b"runs\n"
    running.interrupt()
    assert running.wait() == 128 + signal.SIGINT
    # The connection's socket may have come; nothing else, and what a killed process left is gone.
    assert {path.name for path in set(folder.iterdir()) - before if not path.is_socket()} == set()


def test_a_runner_and_a_folder_come_through(target: Target, tmp_path: Path) -> None:
    programs = Path(target.programs)
    programs.mkdir(parents=True)
    runner = programs / "salt-run"
    # Stands for Salt's program: what comes through is the transport's doing.
    runner.write_text(
        "#!/bin/sh\n"
        'echo \'@progress {"stage": "one", "detail": "ü"}\' >&2\n'
        "echo 'a warning' >&2\n"
        'case "$3" in\n'
        '  good.one) printf \'{"arguments": "%s"}\' "$4" | sed \'s/\\\\"/x/g\' ;;\n'
        "  *) echo 'salt.exceptions.CommandExecutionError: it went wrong' >&2; exit 1 ;;\n"
        "esac\n"
    )
    runner.chmod(0o755)
    control = RemoteControl(profile(), Path("x"), target)
    seen: list[dict[str, Any]] = []
    assert control.runner("good.one", {"name": 1}, seen.append) == {"arguments": "name=1"}
    assert seen == [{"stage": "one", "detail": "ü"}]
    with pytest.raises(ControlError, match=r"^it went wrong$"):
        control.runner("bad.one")

    run = tmp_path / "there" / "run"
    (run / "deep").mkdir(parents=True)
    (run / "deep" / "data").write_bytes(bytes(range(256)))
    control.fetch(str(run), tmp_path / "here")
    assert (tmp_path / "here" / "deep" / "data").read_bytes() == bytes(range(256))
    with pytest.raises(ControlError, match=r"could not read .*nothing"):
        control.fetch(str(tmp_path / "nothing"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert control.run(["cat"], input="ü\n").stdout == "ü\n"


def profile() -> Any:
    return load_profile(find_profile("embedded"))
