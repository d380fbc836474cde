"""The control node downloads a model of the hub once: resumed, checked, and given to nodes as any other."""

from __future__ import annotations

import fcntl
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from bottleneck.profile import find_profile, load_profile
from netboot.boot import hub, model_transfer
from netboot.boot.hub import Hub, wanted
from netboot.boot.models import ModelError, read_index
from tests.boot_bench import bench
from tests.by_file import load
from tests.hub_folder import COMMIT, HubFolder, serve
from tests.hub_server import hub as refusing

NAME = "m-0123456789ab"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_transfer, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(model_transfer, "REPORT_SECONDS", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path: Path) -> HubFolder:
    folder = tmp_path / "hub"
    (folder / "original").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes(range(256)) * (2000 * number))
    (folder / "consolidated.safetensors").write_bytes(b"again" * 1000)
    (folder / "original" / "params.json").write_text("{}")
    return HubFolder(folder)


def same(folder: Path, other: Path) -> bool:
    names = [path.name for path in folder.iterdir() if path.name != "index.json"]
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_a_model_is_downloaded_resumed_and_published(tmp_path: Path, model: HubFolder) -> None:
    store, seen = tmp_path / "models", []
    model.break_after = 100_000
    with serve(model) as address:
        index = hub.download("org/m", store, NAME, Hub(address, "secret"), report=lambda *each: seen.append(each))
        again = hub.download("org/m", store, NAME, Hub("http://127.0.0.1:1"))
    assert again == index == read_index(store / NAME), "it is there, and nobody is asked"
    weights = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert sorted(index.files) == ["config.json", *weights]
    assert same(store / NAME, model.folder)
    assert index.files["config.json"].sha256 == hashlib.sha256(b"{}").hexdigest()
    assert model.ranges == ["model-00001-of-00002.safetensors bytes=100000-"]
    total = sum(file.bytes for file in index.files.values())
    assert model.sent_bytes == total, "no byte came twice"
    # The token is for the hub, and not for the server that it leads to.
    assert model.tokens == {"hub": {"Bearer secret"}, "store": {""}}
    assert seen and all(0 < there <= total == whole for there, whole in seen)
    assert index.source == "org/m" and index.commit == COMMIT
    assert sorted(path.name for path in store.iterdir()) == [f".{NAME}.lock", NAME]


def test_a_download_that_ended_goes_on_and_what_is_wrong_comes_again(tmp_path: Path, model: HubFolder) -> None:
    store = tmp_path / "models"
    partial = store / f".{NAME}.downloaded"
    partial.mkdir(parents=True)
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    (partial / first).write_bytes((model.folder / first).read_bytes()[:70_000])
    (partial / second).write_bytes(b"\0" * 1000)
    (partial / "of another revision").touch()
    with serve(model) as address:
        hub.download("org/m", store, NAME, Hub(address))
    assert same(store / NAME, model.folder) and not partial.exists()
    assert f"{first} bytes=70000-" in model.ranges and f"{second} bytes=1000-" in model.ranges
    assert not (store / NAME / "of another revision").exists()


def test_content_that_the_hub_has_another_digest_of_is_not_taken(tmp_path: Path, model: HubFolder) -> None:
    name = "model-00001-of-00002.safetensors"
    for damaged in (name, "config.json"):
        given = HubFolder(model.folder)
        given.siblings()
        content = (model.folder / damaged).read_bytes()
        (model.folder / damaged).write_bytes(bytes(len(content)))
        with serve(given) as address, pytest.raises(ModelError, match=r"is not that of the index.*model download"):
            hub.download("org/m", tmp_path / damaged, NAME, Hub(address))
        (model.folder / damaged).write_bytes(content)
        assert not (tmp_path / damaged / NAME).exists()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("gated", "401: Access to model org/m is restricted.*HF_TOKEN"),
        ("not found", "404: Repository not found"),
        ("busy", "429: limits how often"),
        ("forbidden", "403: Forbidden"),
        ("closing", "can the control node reach the hub"),
    ],
)
def test_why_the_hub_gives_nothing(tmp_path: Path, mode: str, expected: str) -> None:
    with refusing(mode) as address, pytest.raises(ModelError, match=expected):
        hub.download("org/m", tmp_path, NAME, Hub(address))
    assert not (tmp_path / NAME).exists()


def test_what_is_no_name_of_the_hub_is_refused(tmp_path: Path) -> None:
    for source in ("generate", "/srv/models/m", "../../m", "org/m/tree"):
        with pytest.raises(ModelError, match="expected the name of a model on the hub"):
            hub.download(source, tmp_path, NAME)


def test_a_disk_that_is_too_small_is_seen_before_anything_comes(
    tmp_path: Path, model: HubFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with serve(model) as address, pytest.raises(ModelError, match=r"0\.0 GB free; expected"):
        hub.download("org/m", tmp_path / "models", NAME, Hub(address))
    assert model.sent_bytes == 0


def test_one_download_of_a_model_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / f".{NAME}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("4711")
        handle.flush()
        with pytest.raises(ModelError, match="process 4711 downloads it already"):
            hub.download("org/m", tmp_path, NAME)


def test_weights_are_fetched_in_one_form() -> None:
    files = ["config.json", "pytorch_model.bin", "a/model.safetensors", "consolidated.00.pth"]
    assert wanted(files) == ["config.json", "consolidated.00.pth", "pytorch_model.bin"]
    assert wanted([*files, "model.safetensors"]) == ["config.json", "model.safetensors"]


def test_the_runner_downloads_the_profiles_model_and_a_node_fetches_it(
    tmp_path: Path, model: HubFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runner: Any = load("_runners/model.py", "model_runner_of_hub")
    node: Any = load("_modules/model.py", "model_module_of_hub")
    profile = load_profile(find_profile("embedded"))
    of_hub = profile.model.model_copy(update={"source": "org/m"})
    monkeypatch.setattr(runner, "profile_of", lambda _: profile.model_copy(update={"model": of_hub}))
    folder = Path(of_hub.directory()).name
    with bench(tmp_path) as service, serve(model) as address:
        runner.__opts__ = {"cluster_models": str(service.images.with_name("models"))}
        monkeypatch.setenv("HF_ENDPOINT", address)
        found = runner.download()
        assert found["name"] == folder and set(runner.published()) == {folder}
        progress = [json.loads(line.removeprefix("@progress ")) for line in capfd.readouterr().err.splitlines()]
        assert progress and progress[-1]["stage"] == "downloading" and "MB/s" in progress[-1]["detail"]
        target = tmp_path / "node" / folder
        monkeypatch.setattr(node.model_transfer, "REPORT_SECONDS", 0.0)
        shares = []
        monkeypatch.setattr(
            node.node_files, "write_json", lambda path, content: shares.append((Path(path).name, content))
        )
        assert node.fetch(str(target), f"http://127.0.0.1:{service.port}/models")
        assert same(target, model.folder)
        assert {name for name, _ in shares} == {f"{folder}.partial.progress"}
        assert [content["share"] for _, content in shares] == sorted(content["share"] for _, content in shares)
        assert shares[-1][1]["share"] == 1.0 and node.progress(str(target)) == {}
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        with pytest.raises(CommandExecutionError, match="can the control node reach the hub"):
            runner.download("org/other", name="other")
