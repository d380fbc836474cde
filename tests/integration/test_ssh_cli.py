"""The `cluster` command against a control node behind a real sshd."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.control import ControlError, control_target
from cli.main import app
from remote import sync as transfer
from remote import sync_effects
from remote.tree import EXCLUDES, compare, manifest
from tests.integration.sshd import Server, laptop_environment, server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
REPOSITORY = Path(__file__).parents[2]
CLUSTER = [sys.executable, "-c", "from cli.main import app; app()"]


@pytest.fixture(scope="module")
def sshd() -> Iterator[Server]:
    with server() as found:
        yield found


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


Cluster = Callable[..., Finished]


@pytest.fixture
def environment(sshd: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = laptop_environment(sshd, tmp_path / "laptop", tmp_path / "there")
    for key in os.environ.keys() - found.keys():
        monkeypatch.delenv(key)
    for key, value in found.items():
        monkeypatch.setenv(key, value)
    return found


@pytest.fixture
def cluster(sshd: Server, environment: dict[str, str], capfd: pytest.CaptureFixture[str]) -> Iterator[Cluster]:
    """The command in this process: what it prints is taken from the descriptors, where ssh writes too."""

    def run(*arguments: str) -> Finished:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(list(arguments))
        return Finished(int(ended.value.code or 0), *capfd.readouterr())

    yield run
    for config in (sshd.folder / "run" / "cluster-ssh").glob("config-*"):
        subprocess.run(["ssh", "-F", str(config), "-O", "exit", sshd.host], capture_output=True, check=False)


@pytest.fixture
def trusted(cluster: Cluster, sshd: Server) -> Cluster:
    assert cluster("control", "trust", "--fingerprint", sshd.fingerprint).returncode == 0
    return cluster


def test_first_contact(cluster: Cluster, sshd: Server) -> None:
    unknown = cluster("control", "cmd", "--", "true")
    assert unknown.returncode == 4
    assert "not known yet" in unknown.stderr
    asked = cluster("control", "trust")
    assert asked.returncode == 4
    assert sshd.fingerprint in asked.stderr
    wrong = cluster("control", "trust", "--fingerprint", "SHA256:" + "A" * 43)
    assert wrong.returncode == 4
    assert cluster("control", "cmd", "--", "true").returncode == 4, "a wrong fingerprint let it in"
    right = cluster("control", "trust", "--fingerprint", sshd.fingerprint, "--json")
    assert json.loads(right.stdout)["fingerprint"] == sshd.fingerprint
    assert cluster("control", "cmd", "--", "true").returncode == 0


def test_a_command_is_as_if_it_ran_here(trusted: Cluster) -> None:
    finished = trusted("control", "cmd", "--", "sh", "-c", 'printf "%s|" "$@" >&2; exit 9', "sh", "a  b", "", "*")
    assert (finished.returncode, finished.stderr) == (9, "a  b||*|")
    assert trusted("control", "cmd", "--", "sh", "-c", "exit 255").returncode == 255


def test_its_input_is_the_commands(trusted: Cluster, environment: dict[str, str]) -> None:
    argv = [*CLUSTER, "control", "cmd", "--", "cat"]
    finished = subprocess.run(argv, cwd=REPOSITORY, env=environment, input=b"in\n\0and out", capture_output=True)
    assert finished.stdout == b"in\n\0and out"


def test_ctrl_c_reaches_it(trusted: Cluster, environment: dict[str, str]) -> None:
    script = "trap 'echo cleaned; exit 5' INT; echo ready; sleep 600; echo not reached"
    running = subprocess.Popen(
        [*CLUSTER, "control", "cmd", "--", "sh", "-c", script],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    assert running.stdout.read() == "cleaned\n"
    assert running.wait(60) == 5


def test_sync_sends_the_tree_and_says_what_changed(trusted: Cluster, tmp_path: Path) -> None:
    tree, there = tmp_path / "tree", tmp_path / "there"
    shutil.copytree(
        REPOSITORY, tree, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__", "runs", "tests")
    )
    (tree / "master.pem").write_text("a secret")
    sync = ("sync", "--source", str(tree), "--json")

    dry = json.loads(trusted(*sync, "--dry-run").stdout)
    assert not dry["sent"]
    assert "salt/top.sls" in dry["added"]
    assert not there.exists()

    first = trusted(*sync)
    assert first.returncode == 0, first.stderr
    expected = manifest(tree, EXCLUDES)
    assert manifest(there / "src", ()) == expected
    assert (there / "src" / "salt" / "_modules").is_symlink()
    assert not (there / "src" / "master.pem").exists()

    (tree / "new file").write_text("new")
    (tree / "README.md").write_text("changed")
    (tree / "Makefile").unlink()
    (tree / ".ci" / "run").chmod(0o644)
    # Same size and same time: only the content tells.
    lock = tree / "requirements.lock"
    before, text = lock.stat(), lock.read_text()
    lock.write_text(text.replace("=", "!", 1))
    os.utime(lock, ns=(before.st_atime_ns, before.st_mtime_ns))

    second = json.loads(trusted(*sync).stdout)
    assert second["added"] == ["new file"]
    assert second["changed"] == [".ci/run", "README.md", "requirements.lock"]
    assert second["deleted"] == ["Makefile"]
    assert second["previous"] == first_release(first)
    assert compare(manifest(tree, EXCLUDES), manifest(there / "src", ())).count == 0

    third = json.loads(trusted(*sync).stdout)
    assert not third["sent"]
    assert (third["added"], third["changed"], third["deleted"]) == ([], [], [])


def first_release(finished: Finished) -> str:
    return str(json.loads(finished.stdout)["release"])


def test_sync_touches_nothing_else_there(trusted: Cluster, tmp_path: Path) -> None:
    there, state = tmp_path / "there", tmp_path / "there" / "state"
    state.mkdir(parents=True)
    (state / "run").write_text("a run")
    for content in ("1", "2", "3", "4", "5"):
        source = small_tree(tmp_path / content, content)
        assert trusted("sync", "--source", str(source)).returncode == 0
    assert (state / "run").read_text() == "a run"
    kept = [path.name for path in (there / "releases").iterdir() if not path.name.startswith(".")]
    assert len(kept) == 3
    assert (there / "src" / "profiles" / "x").read_text() == "5"


def test_sync_refuses_what_is_not_ours(trusted: Cluster, tmp_path: Path) -> None:
    there = tmp_path / "there"
    no_tree = trusted("sync", "--source", str(tmp_path))
    assert no_tree.returncode == 2
    assert "not the cluster's tree" in no_tree.stderr
    source = small_tree(tmp_path / "tree", "1")
    (there / "releases").mkdir(parents=True)
    (there / "releases" / "precious").write_text("mine")
    refused = trusted("sync", "--source", str(source))
    assert refused.returncode == 1
    assert "not ours" in refused.stderr
    assert (there / "releases" / "precious").read_text() == "mine"
    shutil.rmtree(there)
    (there / "src").mkdir(parents=True)
    assert "move it away" in trusted("sync", "--source", str(source)).stderr
    (source / "profiles" / "out").symlink_to("/etc/passwd")
    assert "inside the tree" in trusted("sync", "--source", str(source)).stderr


def test_a_sync_that_is_cut_leaves_the_tree_in_use_whole(
    trusted: Cluster, environment: dict[str, str], sshd: Server, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    assert trusted("sync", "--source", str(small_tree(tmp_path / "one", "1"))).returncode == 0
    source = small_tree(tmp_path / "two", "2")
    (source / "profiles" / "large").write_bytes(os.urandom(1 << 25))
    target = control_target()
    assert target
    planned = transfer.plan(target, source, EXCLUDES)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(transfer.send, target, planned, lambda step: None)
        while not sending.done():  # every connection that it makes, once it works on the new tree
            if list((there / "releases").glob(".partial-*")):
                sshd.cut()
            time.sleep(0.005)
        assert isinstance(sending.exception(), ControlError)
    assert (there / "src" / "profiles" / "x").read_text() == "1"
    assert trusted("sync", "--source", str(source)).returncode == 0
    assert (there / "src" / "profiles" / "x").read_text() == "2"
    assert list((there / "releases").glob(".partial-*")) == []


@dataclass
class Systemd:
    """A stand-in for the control node's systemd and Salt: it notes what it is asked, and answers as it was made to."""

    folder: Path
    configuration: Path

    @property
    def asked(self) -> list[str]:
        """Return what it was asked since the last time."""
        log = self.folder / "asked"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith("systemctl show")]


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    there = tmp_path / "there"
    programs = there / "venv" / "bin"
    programs.mkdir(parents=True)
    found = Systemd(tmp_path / "systemd", tmp_path / "master")
    found.folder.mkdir()
    note = f"""#!/bin/sh
echo "${{0##*/}} $*" >>{found.folder}/asked
"""
    state = f"""case "$1" in
  show) echo ActiveState=active; echo "ExecStart={{ path={programs}/salt-master ; argv[]=x }}" ;;
  restart) [ ! -e {found.folder}/broken ] || {{ echo "Job for $2 failed"; exit 1; }}
    cp --no-dereference --no-target-directory --remove-destination {there}/src {there}/loaded ;;  # as its unit does
esac
"""
    for name, rest in (("systemctl", state), ("salt-run", "echo true; echo 'unclosed Runner' >&2")):
        (programs / name).write_text(note + rest)
        (programs / name).chmod(0o755)
    found.configuration.write_text(f"cluster_directory: {found.folder}\n")
    text = sync_effects._MASTER_RELOAD.read_text().replace('"/etc/salt/master"', repr(str(found.configuration)))
    (tmp_path / "master_reload.py").write_text(text)
    monkeypatch.setattr(sync_effects, "_MASTER_RELOAD", tmp_path / "master_reload.py")
    return found


def test_a_sync_has_the_master_take_up_what_it_has_in_memory(
    trusted: Cluster, systemd: Systemd, tmp_path: Path
) -> None:
    source = small_tree(tmp_path / "tree", "1")
    (source / "_engines").mkdir()
    sync = ("sync", "--source", str(source), "--json")

    def change(path: str, *options: str) -> dict[str, Any]:
        (source / path).write_text((source / path).read_text() + "#" if (source / path).exists() else "")
        found: dict[str, Any] = json.loads(trusted(*sync, *options).stdout)
        return found

    first = json.loads(trusted(*sync).stdout)
    assert (first["master"], first["event"]) == ("restarted", "cluster/profile/changed")
    restarted, fired = systemd.asked
    assert restarted == "systemctl restart salt-master.service"
    assert fired.endswith("event.send cluster/profile/changed")
    # An engine's code: no profile changed, so nobody is told of one.
    engine = change("_engines/boot.py")
    assert (engine["master"], engine["event"], engine["init_needed"]) == ("restarted", None, False)
    assert systemd.asked == ["systemctl restart salt-master.service"]
    # States are read at each use, the program of the laptop never runs there.
    assert change("salt/top.sls")["master"] == "untouched"
    assert change("_engines/boot.py", "--no-restart")["master"] == "untouched"
    assert systemd.asked == []
    # What was not done then, as by a sync that was cut off, is made up for: there is nothing to send.
    late = json.loads(trusted(*sync).stdout)
    assert (late["sent"], late["master"], late["event"]) == (False, "restarted", None)
    assert systemd.asked == ["systemctl restart salt-master.service"]
    # The MAC addresses that were filled in lie beside the profile, out of git: they go along.
    local = change("profiles/x.local.yaml")
    assert (tmp_path / "there" / "src" / "profiles" / "x.local.yaml").exists()
    assert (local["event"], local["init_needed"]) == ("cluster/profile/changed", True)
    last = json.loads(trusted(*sync).stdout)
    assert (last["sent"], last["master"]) == (False, "untouched")


def test_a_master_that_is_busy_or_broken_is_reported(trusted: Cluster, systemd: Systemd, tmp_path: Path) -> None:
    source = small_tree(tmp_path / "tree", "1")
    sync = ("sync", "--source", str(source))
    with (systemd.folder / "reprovision.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = trusted(*sync)
    assert busy.returncode == 0
    assert "nodes are being reprovisioned" in busy.stderr
    assert "systemctl restart salt-master" in busy.stderr
    assert systemd.asked == []
    (systemd.folder / "broken").touch()
    (source / "profiles" / "x").write_text("2")
    broken = trusted(*sync)
    assert broken.returncode == 1
    assert "did not come up again: Job for salt-master.service failed" in broken.stderr


def test_a_lab_has_nothing_to_send(
    cluster: Cluster, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLUSTER_CONTROL")
    refused = cluster("sync")
    assert refused.returncode == 2
    assert "reads this tree where it is" in refused.stderr


def small_tree(root: Path, content: str) -> Path:
    for name in ("pyproject.toml", "salt/top.sls", "pillar/top.sls", "cli/main.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / "profiles").mkdir()
    (root / "profiles" / "x").write_text(content)
    return root


def test_every_other_command_runs_there(trusted: Cluster, tmp_path: Path) -> None:
    """`salt` and a runner's command, on a hardware profile; the programs there say what they were given."""
    programs = tmp_path / "there" / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, output in (("salt", 'printf "%s|" "$@"; exit 3'), ("salt-run", """echo '{"node0": {"log": ["x"]}}'""")):
        (programs / name).write_text(f"#!/bin/sh\n{output}\n")
        (programs / name).chmod(0o755)
    profile = hardware_profile(tmp_path)
    salt = trusted("salt", "--profile", str(profile), "--", "*", "test.echo", "a  'b'")
    assert (salt.returncode, salt.stdout) == (3, "*|test.echo|a  'b'|")
    logs = trusted("logs", "node0", "--profile", str(profile), "--json")
    assert json.loads(logs.stdout)["logs"] == {"node0": {"log": ["x"]}}


def hardware_profile(folder: Path) -> Path:
    document = yaml.safe_load((REPOSITORY / "profiles" / "embedded.yaml").read_text())
    document["kind"] = "hardware"
    document["control"]["interface"] = "eth1"
    numbers = (
        "model.*",
        "networks.*.mtu",
        "networks.*.rate",
        "nodes.*.accelerator.*",
        "nodes.*.memory",
        "nodes.*.cores",
    )
    document["sources"] = {key: {"basis": "assumed", "says": "made up for this test"} for key in numbers}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(document))
    shutil.copy(REPOSITORY / "profiles" / "engines.yaml", folder)
    return path
