"""One thing at a time changes the cluster: the next one learns what is under way, and a sync waits for it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from control import locks
from tests.by_file import load

HOLD = """
import sys
from control import locks
with locks.{kind}({{"cluster_directory": sys.argv[1]}}, sys.argv[2]{what}):
    print("held", flush=True)
    sys.stdin.read()
"""
REPOSITORY = Path(__file__).parents[2]


@contextmanager
def locked_by_another(folder: Path, name: str, kind: str = "exclusive") -> Iterator[subprocess.Popen[str]]:
    """Have another process hold a lock."""
    what = ', "a deploy of tp2"' if kind == "exclusive" else ""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(kind=kind, what=what), str(folder), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.communicate(timeout=30)


def test_the_second_is_refused_and_told_what_is_under_way(tmp_path: Path) -> None:
    opts = {"cluster_directory": str(tmp_path)}
    with locked_by_another(tmp_path, locks.DEPLOYMENT) as other:
        pattern = rf"a deploy of tp2 is under way since \d\d:\d\d:\d\d UTC, process {other.pid} of the control node"
        with pytest.raises(locks.LockedError, match=pattern), locks.exclusive(opts, locks.DEPLOYMENT, "an undeploy"):
            pytest.fail("two at once")
    with locks.exclusive(opts, locks.DEPLOYMENT, "an undeploy"):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    with locked_by_another(tmp_path, locks.DEPLOYMENT) as other:
        other.kill()
        other.wait(10)
        with locks.exclusive({"cluster_directory": str(tmp_path)}, locks.DEPLOYMENT, "a deploy"):
            pass


def test_marks_do_not_exclude_each_other(tmp_path: Path) -> None:
    opts = {"cluster_directory": str(tmp_path)}
    with locks.shared(opts, locks.BENCH), locks.shared(opts, locks.BENCH):
        pass


def test_a_deploy_that_is_refused_stops_nobodys_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = load("_runners/cluster.py", "cluster_locked")
    asked: list[Any] = []

    class Nodes:
        def __init__(self, _: Any) -> None:
            self.profile = type("Profile", (), {"default_deployment": "tp2", "nodes": {}})()

        def ask(self, *arguments: Any, **_: Any) -> dict[str, Any]:
            asked.append(arguments)
            return {}

    monkeypatch.setattr(cluster, "Nodes", Nodes)
    monkeypatch.setattr(cluster, "_refuse_open", lambda _: None)
    monkeypatch.setattr(cluster, "__opts__", {"cluster_directory": str(tmp_path)}, raising=False)
    with locked_by_another(tmp_path, locks.DEPLOYMENT):
        for call in (cluster.deploy, cluster.undeploy):
            with pytest.raises(locks.LockedError, match="a deploy of tp2 is under way"):
                call()
    assert asked == []


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        (locks.DEPLOYMENT, "exclusive", "workers are being started or stopped"),
        (locks.BENCH, "shared", "a bench is running"),
        ("reprovision.lock", "exclusive", "nodes are being reprovisioned"),
    ],
)
def test_a_sync_does_not_restart_the_master_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, reason: str
) -> None:
    reload = load("remote/master_reload.py", "master_reload_locked")
    configuration = tmp_path / "master"
    configuration.write_text(f"user: root\ncluster_directory: '{tmp_path}'\n")
    monkeypatch.setattr(reload, "CONFIGURATION", configuration)
    assert reload.obstacle() == ""
    with locked_by_another(tmp_path, name, kind):
        assert reload.obstacle() == reason
    assert reload.obstacle() == ""
