"""A node fetches a model from the control node's boot service: by name, resumed, and checked file by file."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from netboot.boot.models import ModelError, model_file, publish, read_index
from tests.boot_bench import bench
from tests.by_file import load

NAME = "tiny-gguf-0123456789ab"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made" / NAME
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(bytes(range(256)) * 5000)
    (folder / ".converted").touch()
    return folder


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    module: ModuleType = load("_modules/model.py", "model_module_of_published")
    transfer: Any = module.__dict__["model_transfer"]
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)
    return module


def test_a_node_has_what_the_control_node_has(tmp_path: Path, made: Path, model: ModuleType) -> None:
    target = tmp_path / "node" / NAME
    with bench(tmp_path) as service:
        server = f"http://127.0.0.1:{service.port}/models"
        assert not model.fetch(str(target), server), "it has none of this name yet"
        publish(made, service.images.with_name("models"))
        assert model.fetch(str(target), server)
        assert not model.fetch(str(target), server), "it is there"
    assert model.converted(str(target))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == [NAME]


@pytest.mark.parametrize("broken", [b"\0" * 1000, bytes(range(256)) * 100])
def test_a_transfer_goes_on_and_what_is_wrong_is_fetched_again(
    tmp_path: Path, made: Path, model: ModuleType, broken: bytes
) -> None:
    """An earlier try left the beginning of the file, or something else."""
    target = tmp_path / "node" / NAME
    partial = target.with_name(NAME + ".fetched")
    partial.mkdir(parents=True)
    (partial / "model.gguf").write_bytes(broken)
    (partial / "of another one").touch()
    with bench(tmp_path) as service:
        publish(made, service.images.with_name("models"))
        assert model.fetch(str(target), f"http://127.0.0.1:{service.port}/models")
    assert (target / "model.gguf").read_bytes() == (made / "model.gguf").read_bytes()
    assert sorted(path.name for path in target.iterdir()) == [".converted", "model.gguf"]


def test_a_file_that_is_not_what_the_index_says_is_not_taken(tmp_path: Path, made: Path, model: ModuleType) -> None:
    target = tmp_path / "node" / NAME
    with bench(tmp_path) as service:
        store = service.images.with_name("models")
        publish(made, store)
        (store / NAME / "model.gguf").unlink()
        (store / NAME / "model.gguf").write_bytes(b"x" * (256 * 5000))
        with pytest.raises(RuntimeError, match=r"model\.gguf: its content is not that of the index, 5 times"):
            model.fetch(str(target), f"http://127.0.0.1:{service.port}/models")
    assert not target.exists()


def test_a_boot_service_that_does_not_answer_is_named(tmp_path: Path, model: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"index\.json: .*refused.*cluster doctor"):
        model.fetch(str(tmp_path / NAME), "http://127.0.0.1:1/models")


def test_an_index_that_names_a_path_is_refused(tmp_path: Path, made: Path, model: ModuleType) -> None:
    with bench(tmp_path) as service:
        store = service.images.with_name("models")
        publish(made, store)
        index = read_index(store / NAME)
        escaped = {"files": {"../escaped": index.files["model.gguf"].model_dump()}}
        (store / NAME / "index.json").write_text(json.dumps(escaped))
        with pytest.raises(RuntimeError, match="expected names of files"):
            model.fetch(str(tmp_path / "node" / NAME), f"http://127.0.0.1:{service.port}/models")


def test_an_index_that_cannot_be_read_is_named(tmp_path: Path, made: Path) -> None:
    publish(made, tmp_path / "models")
    index = tmp_path / "models" / NAME / "index.json"
    index.write_text('{"files": {"model.gguf": {"bytes": 1}}}')
    with pytest.raises(ModelError, match=r"index\.json: files\.model\.gguf\.sha256: field required; take"):
        publish(made, tmp_path / "models")
    index.unlink()
    with pytest.raises(ModelError, match=r"index\.json: no such file"):
        read_index(index.parent)


def test_only_published_models_are_given_out(tmp_path: Path, made: Path) -> None:
    store = tmp_path / "models"
    publish(made, store)
    (tmp_path / "secret").touch()
    (store / "unpublished").mkdir()
    (store / "unpublished" / "model.gguf").touch()
    assert model_file(store, NAME, "model.gguf") and model_file(store, NAME, ".converted")
    for name, file in (
        ("unpublished", "model.gguf"),
        (NAME, "none"),
        (NAME, "../secret"),
        ("..", "secret"),
        (NAME, ".."),
    ):
        assert model_file(store, name, file) is None, (name, file)


def test_a_model_that_the_control_node_has_is_not_made(tmp_path: Path, made: Path, model: ModuleType) -> None:
    state: Any = load("_states/model.py", "model_state_of_published")
    state.__opts__ = {"test": False}

    def never(*_arguments: object) -> bool:
        raise AssertionError("it is fetched, not made")

    functions = {name: getattr(model, name) for name in ("present", "converted", "fetch")}
    state.__salt__ = {f"model.{name}": call for name, call in functions.items()}
    state.__salt__ |= dict.fromkeys(("model.make", "model.convert", "model.download"), never)
    checkpoint = tmp_path / "made" / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    with bench(tmp_path) as service:
        server = f"http://127.0.0.1:{service.port}/models"
        for folder in (made, checkpoint):
            publish(folder, service.images.with_name("models"))
        gguf = state.converted(str(tmp_path / "node" / NAME), {"engine": {"engine": "llamacpp"}}, "/none", server)
        assert gguf["result"] and gguf["changes"] and server in gguf["comment"]
        # A folder that a person would else put on every node as well.
        for source in ("generate", "/srv/models/checkpoint"):
            target = str(tmp_path / source.strip("/") / "checkpoint")
            found = state.present(target, {"name": "m", "source": source}, "/none", "/none", server)
            assert found["result"] and found["changes"] == {"checkpoint": target}
        missing = state.present("/none/other", {"name": "m", "source": "/none/other"}, "/none", "/none", None)
    assert missing["result"] is False and "put the checkpoint there first" in missing["comment"]


def test_a_person_puts_a_model_there(tmp_path: Path, made: Path) -> None:
    runner: Any = load("_runners/model.py", "model_runner")
    runner.__opts__ = {"cluster_models": str(tmp_path / "models")}
    assert runner.published() == {}
    assert set(runner.put(str(made))["files"]) == {".converted", "model.gguf"}
    assert runner.published() == {NAME: 256 * 5000}
    with pytest.raises(CommandExecutionError, match="No such file"):
        runner.put(str(tmp_path / "nothing"))


def test_what_is_no_model_is_not_published(tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    folder.mkdir()
    with pytest.raises(ModelError, match="empty"):
        publish(folder, tmp_path / "models")
    (folder / "inner").mkdir()
    with pytest.raises(ModelError, match="inner; expected a folder of files"):
        publish(folder, tmp_path / "models")
    assert not (tmp_path / "models" / "wrong").exists()
