"""The probe module runs the script under the supervisor and leaves nothing."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, sys, time
command, specification = sys.argv[1], json.loads(sys.argv[2])
if specification.get("cores") == 66:
    print("starting"); print("RuntimeError: no such thing", file=sys.stderr); sys.exit(1)
if specification.get("cores") == 77:
    time.sleep(60)
if command == "serve":
    import socket
    listener = socket.create_server((specification["address"], specification["port"] + 1))
    time.sleep(60)
result = {"command": command, "specification": specification, "started": sys.orig_argv[1],
          "preload": os.environ.get("LD_PRELOAD"), "flag": os.environ.get("FLAG")}
with open(sys.argv[3] + ".partial", "w") as file:
    json.dump(result, file)
os.replace(sys.argv[3] + ".partial", sys.argv[3])
"""


@pytest.fixture
def probe(loaders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "engine" / "bin").mkdir(parents=True)
    (tmp_path / "engine" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "probe.py").write_text(SCRIPT)
    supervised = loaders.modules["supervise.start"].__globals__
    monkeypatch.setitem(supervised, "DIRECTORY", str(tmp_path / "supervise"))
    namespace = loaders.modules["probe.stop"].__globals__
    monkeypatch.setitem(namespace, "SCRIPT", str(tmp_path / "probe.py"))
    monkeypatch.setitem(namespace, "RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setitem(namespace, "STATE_DIRECTORY", str(tmp_path / "state"))
    real_supervise = loaders.modules["supervise.start"]

    def start(unit: str, command: list[str], environment: dict[str, str], log: str) -> Any:
        return real_supervise(unit, command, environment, str(tmp_path / Path(log).name))

    monkeypatch.setitem(namespace, "__salt__", _Salt(loaders.modules, start))
    yield loaders.modules.probe
    loaders.modules.probe.stop()


class _Salt(dict[str, Any]):
    """Salt's functions, with the log in the test's folder."""

    def __init__(self, modules: Any, start: Any) -> None:
        super().__init__({name: modules[name] for name in ("supervise.status", "supervise.stop")})
        self["supervise.start"] = start


def specifications(tmp_path: Path, cores: int = 1) -> dict[str, Any]:
    engine = {"directory": str(tmp_path / "engine"), "preload": [], "environment": {"FLAG": "on"}}
    return {"node0": {"cores": cores, "collectives": [{"kind": "all_reduce"}], "engine": engine, "device": "cpu"}}


def left(tmp_path: Path) -> list[str]:
    return [
        path.name for name in ("run", "state") if (tmp_path / name).is_dir() for path in (tmp_path / name).iterdir()
    ]


def test_a_node_is_given_its_own_part_and_says_what_it_is(probe: Any, tmp_path: Path) -> None:
    found = probe.node(specifications(tmp_path), measure=False)
    assert found["command"] == "node" and found["flag"] == "on"
    assert found["started"] == "-B", "no bytecode beside the scripts, which a state would take out again and again"
    assert found["specification"] == {
        "measure": False,
        "cores": 1,
        "directory": str(tmp_path / "state"),
        "collectives": [{"kind": "all_reduce"}],
        "device": "cpu",
        "bench": None,
        "deadline_seconds": 60,
    }
    machine = found["machine"]
    assert machine["cores"] == len(os.sched_getaffinity(0)) and machine["cpu_model"]
    assert machine["memory_bytes"] > 2**20 and machine["kernel"] == os.uname().release
    assert len(machine["machine_id_digest"]) == 16
    assert left(tmp_path) == []


def test_a_probe_that_fails_says_its_last_word(probe: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the node probe failed: RuntimeError: no such thing"):
        probe.node(specifications(tmp_path, cores=66))
    assert left(tmp_path) == []


def test_a_probe_that_does_not_end_is_ended(probe: Any, tmp_path: Path, loaders: Any) -> None:
    with pytest.raises(RuntimeError, match="did not end within -4 s"):
        probe.node(specifications(tmp_path, cores=77), seconds=-4)
    assert not loaders.modules["supervise.status"]("probe")["running"]
    assert left(tmp_path) == []


def test_an_engine_that_is_missing_is_named(probe: Any, tmp_path: Path) -> None:
    specification = specifications(tmp_path)
    specification["node0"]["engine"]["directory"] = "/nowhere"
    with pytest.raises(RuntimeError, match=r"the engine is not installed \(/nowhere/bin/python is missing\)"):
        probe.node(specification)


def test_serving_returns_when_it_listens_and_stops_when_asked(probe: Any, tmp_path: Path) -> None:
    port = 42000 + os.getpid() % 10000
    engine = specifications(tmp_path)["node0"]["engine"]
    assert probe.serve("127.0.0.1", port, engine) == {"address": "127.0.0.1", "port": port}
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "probe-disk.1.tmp").write_text(json.dumps("left by a probe that was killed"))
    (tmp_path / "state" / "ceilings.json").write_text("{}")
    assert probe.stop() == ["probe-serve"]
    assert left(tmp_path) == ["ceilings.json"]
    assert probe.stop() == []


def test_an_engine_without_python_is_probed_by_the_minions(probe: Any, tmp_path: Path) -> None:
    (tmp_path / "engine" / "bin" / "python").unlink()
    given = specifications(tmp_path)
    given["node0"] |= {"device": None, "collectives": []}
    assert probe.node(given, measure=False)["command"] == "node"
    given["node0"]["engine"]["directory"] = str(tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match=r"run state\.apply first"):
        probe.node(given, measure=False)


def test_the_engines_own_bench_is_run_as_its_workers_are(probe: Any, tmp_path: Path) -> None:
    changed = specifications(tmp_path)
    bench = {"program": "bin/own-bench", "argv": ["-m", "/models/m.gguf"], "seconds": 5, "host": True}
    changed["node0"] |= {"device": None, "bench": bench}
    seen = probe.node(changed, measure=False)["specification"]["bench"]
    program = str(tmp_path / "engine/bin/own-bench")
    assert seen == {"argv": [program, "-m", "/models/m.gguf"], "seconds": 5, "host": True}
    changed["node0"]["engine"]["root_folder"] = True
    entered = probe.node(changed, measure=False)["specification"]["bench"]["argv"]
    assert entered[:2] == ["/usr/bin/unshare", "--mount"], "inside its root folder"
    assert entered[-3:] == ["bin/own-bench", "-m", "/models/m.gguf"]
