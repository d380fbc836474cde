"""Utilities of node modules: files that are whole or not there, the process table, control groups, the preload."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import api_key
import control_groups
import engine_environment
import node_files
import node_processes
import pytest

from tests.tree import write

# -- files


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for content in ({"a": 1}, {"b": [2, None]}):
        node_files.write_json(str(path), content, durable=True)
        assert node_files.read_json(str(path)) == content
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_secret_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    node_files.write_json(str(tmp_path / "secret"), {"token": "x"}, 0o600)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    node_files.write_json(str(path), 1)

    def fail(_source: str, _target: str) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        node_files.write_json(str(path), 2)
    with pytest.raises(TypeError):
        node_files.write_json(str(path), object())
    assert path.read_text() == "1" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", [None, "", "{", "\udcff"])
def test_what_is_not_there_or_no_json_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "x").write_bytes(text.encode(errors="surrogateescape"))
    assert node_files.read_json(str(tmp_path / "x")) is None
    node_files.remove(str(tmp_path / "x"))
    node_files.remove(str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_folder_appears_whole_in_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("old", "new"):
        with node_files.new_folder(str(path), "made") as partial:
            assert list(Path(partial).iterdir()) == []
            write(Path(partial, "made", content), "")
            write(Path(partial, "beside"), "")
        assert [each.name for each in path.iterdir()] == [content]
    # Of a process that was killed.
    write(tmp_path / "model.partial" / "half", "")
    with pytest.raises(KeyError), node_files.new_folder(str(path)) as partial:
        assert list(Path(partial).iterdir()) == []
        raise KeyError
    assert list(tmp_path.iterdir()) == [path] and [each.name for each in path.iterdir()] == ["new"]


# -- processes

ENTRY = "{pid} ({name}) {state} {parent} 9 {session} 0 -1 4194560 1 0 0 0 4 5 0 0 20 0 3 0 {start} 1 2 3 4"


def process(proc: Path, pid: int, parent: int, state: str = "S", name: str = "a", session: int = 7) -> None:
    text = ENTRY.format(pid=pid, name=name, state=state, parent=parent, session=session, start=pid * 10)
    write(proc / str(pid) / "stat", text + "\n")


def test_a_name_with_blanks_and_brackets_shifts_nothing() -> None:
    text = ENTRY.format(pid=1, name="VLLM::Engine) (Co re", state="R", parent=12, session=34, start=99887)
    assert node_processes.parse_stat(text) == ("VLLM::Engine) (Co re", "R", 12, 34, 4, 5, 99887, 2)


def test_descendants_are_found_the_nearest_first_and_the_ended_are_none(tmp_path: Path) -> None:
    for pid, parent, state in ((2, 1, "S"), (3, 2, "S"), (4, 2, "Z"), (5, 3, "R"), (6, 1, "S")):
        process(tmp_path, pid, parent, state)
    write(tmp_path / "meminfo", "")
    table = node_processes.table(str(tmp_path))
    assert sorted(table) == [2, 3, 4, 5, 6]
    assert node_processes.descendants(table, 2) == [3, 5]
    assert node_processes.descendants(table, 9) == []


def test_a_process_is_itself_only_with_its_start() -> None:
    own = node_processes.start_ticks(os.getpid())
    assert own is not None
    assert node_processes.is_alive(os.getpid(), own)
    assert not node_processes.is_alive(os.getpid(), own + 1)
    assert node_processes.start_ticks(2**22 + 1) is None, "beyond the largest process id of Linux"


# -- the engine's API


@pytest.mark.parametrize("worker", [None, [], {}, {"watch": None}, {"watch": {"api_key": {"file": 3}}}])
def test_a_worker_without_a_key_of_an_api_has_no_header(worker: Any) -> None:
    assert api_key.authorization(worker) == {}


def test_the_key_of_the_api_is_brought_as_it_is_now(tmp_path: Path) -> None:
    key = tmp_path / "api.key"
    worker = {"watch": {"api_key": {"file": str(key), "variable": None}}}
    assert api_key.authorization(worker) == {}, "the file is not there yet"
    for text, expected in (
        ("a1b2\n", {"Authorization": "Bearer a1b2"}),
        ("\n", {}),
        ("schl\u00fcssel", {}),
        (b"\xff", {}),
    ):
        key.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert api_key.authorization(worker) == expected


# -- control groups


def test_the_group_of_either_version() -> None:
    old = "4:memory:/a\n2:cpuacct:/b\n1:cpu,cpuacct:/lab/node0\n0::/c\n"
    assert control_groups.own_paths(old) == {1: "/lab/node0", 2: "/c"}
    mounts = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
        "41 31 0:38 /box /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n"
    )
    assert control_groups.mounts(mounts) == {1: ("/sys/fs/cgroup/cpu", "/"), 2: ("/sys/fs/cgroup/unified", "/box")}
    assert control_groups.directories("/m", "/", "/lab/node0") == ["/m/lab/node0", "/m/lab", "/m"]
    assert control_groups.directories("/m", "/box", "/box/inner") == ["/m/inner", "/m"]
    assert control_groups.directories("/m", "/", "/") == ["/m"]
    assert control_groups.levels(old, mounts) == {
        1: ["/sys/fs/cgroup/cpu/lab/node0", "/sys/fs/cgroup/cpu/lab", "/sys/fs/cgroup/cpu"],
        2: ["/sys/fs/cgroup/unified/c", "/sys/fs/cgroup/unified"],
    }


def test_a_quota_of_either_version() -> None:
    assert control_groups.quota_cores("max 100000\n") is None
    assert control_groups.quota_cores("50000 100000\n") == 0.5
    assert control_groups.quota_cores("-1\n", "100000\n") is None
    assert control_groups.quota_cores("150000\n", "100000\n") == 1.5


# -- the engine's environment


def test_the_engines_libraries_are_loaded_first() -> None:
    engine = {"directory": "/opt/engine", "preload": ["lib/a.so", "lib/b.so"]}
    assert engine_environment.preload(engine) == {"LD_PRELOAD": "/opt/engine/lib/a.so:/opt/engine/lib/b.so"}
    assert engine_environment.preload({"directory": "/opt/engine", "preload": None}) == {}
    assert engine_environment.preload({"directory": "/opt/engine"}) == {}
