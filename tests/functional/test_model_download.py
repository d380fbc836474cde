"""A model that cannot be fetched says why: the hub's real client, and a server in the hub's shape on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.by_file import load
from tests.hub_server import CONFIG, hub

pytestmark = pytest.mark.slow

# Where `cluster apply` puts an engine's environment; the client is a part of it.
CLIENTS = sorted(Path("/var/cache/cluster/engines").glob("*/bin/hf"))


@pytest.fixture
def engine_directory() -> str:
    if not CLIENTS:
        pytest.skip(
            "no engine is installed here (cluster demo makes one): recorded texts are in tests/data/failures/hub.yaml"
        )
    return str(CLIENTS[0].parents[1])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    module = load("_modules/model.py", "model_module")
    module.__opts__ = {"id": "node-a"}
    return module


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("gated", ["org/m is gated", "ask for access", "HF_TOKEN", "next: cluster apply model"]),
        ("not found", ["does not know the model org/m", "private", "next: cluster profile check"]),
        ("token", ["does not accept the node's token"]),
        ("busy", ["limits how often", "2.05 minutes"]),
        ("broken", ["the hub itself fails (status 500)"]),
        ("forbidden", ["refuses the model (status 403)"]),
        ("closing", ["cannot reach the hub", "Server disconnected", "cluster salt -- node-a cmd.run"]),
        ("cut", ["the download broke off"]),
    ],
)
def test_why_a_model_is_not_fetched(
    model: ModuleType,
    engine_directory: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    expected: list[str],
) -> None:
    directory = tmp_path / "models" / "m"
    with hub(mode) as address, pytest.raises(RuntimeError) as raised:
        monkeypatch.setenv("HF_ENDPOINT", address)
        model.download(str(directory), "org/m", engine_directory)
    for part in expected:
        assert part in str(raised.value)
    assert "HF_DEBUG" not in str(raised.value)
    assert not directory.exists()


def test_no_network_is_reported(
    model: ModuleType, engine_directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(RuntimeError, match=r"cannot reach the hub.*Connection refused"):
        model.download(str(tmp_path / "m"), "org/m", engine_directory)


def test_a_node_that_must_not_ask_says_so(
    model: ModuleType, engine_directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE is set"):
        model.download(str(tmp_path / "m"), "org/m", engine_directory)


FULL_DISK = """
import os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", sys.argv[1]], check=True)
sys.path[:0] = [sys.argv[3]]
from tests.by_file import load
model = load("_modules/model.py", "model_module")
model.__opts__ = {"id": "node-a"}
try:
    model.download(sys.argv[1] + "/m", "org/m", sys.argv[2])
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, to mount in a namespace")
def test_a_full_disk_is_reported(engine_directory: str, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    repository = str(Path(__file__).parents[2])
    with hub("", b"x" * (4 << 20)) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            ["unshare", "--mount", sys.executable, "-c", FULL_DISK, str(mount), engine_directory, repository],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
            check=False,
        )
    assert "a disk of the node is full" in done.stdout, done.stderr
    assert "cluster salt -- node-a cmd.run 'df -h'" in done.stdout


def test_a_model_is_fetched_once(
    model: ModuleType, engine_directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "models" / "m"
    with hub("") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert model.download(str(directory), "org/m", engine_directory) is True
    assert (directory / "config.json").read_bytes() == CONFIG
    assert model.download(str(directory), "org/m", engine_directory) is False


def test_an_engine_that_is_not_there_is_reported(model: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="engine is not installed; next: cluster apply engine"):
        model.download(str(tmp_path / "m"), "org/m", str(tmp_path / "nothing"))
