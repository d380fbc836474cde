"""The end of a worker's processes, with real processes and records of units as the keeper writes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import node_processes
import worker_exits
import workers

pytestmark = pytest.mark.starts_programs
DEADLINE_SECONDS = 20.0
PARENT = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A keeper with one program below it, and the record of both."""
    keeper = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert keeper.stdout is not None and keeper.stdout.readline() == "up\n"
    write(tmp_path, keeper.pid)
    yield keeper
    os.killpg(keeper.pid, signal.SIGKILL)
    keeper.wait()


def child(keeper: int) -> int:
    return node_processes.descendants(node_processes.table(), keeper)[0]


def write(directory: Path, keeper: int, **more: Any) -> None:
    record = {
        "keeper": keeper,
        "keeper_start": node_processes.start_ticks(keeper),
        "pid": child(keeper),
        "exit_code": None,
    }
    name = f"{workers.UNIT_PREFIX}tp2-0.json"
    (directory / name).write_text(json.dumps({**record, **more}))


def until(look: Callable[[], list[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """Look until so many ends are seen; the kernel takes its time to end a process."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(found) < count and time.monotonic() < deadline:
        found += look()
    return found


def test_the_end_of_the_program_is_seen(tmp_path: Path, unit: subprocess.Popen[str]) -> None:
    exits = worker_exits.WorkerExits(str(tmp_path))
    assert exits.look(0.0) == []
    program = child(unit.pid)
    os.kill(program, signal.SIGKILL)
    assert until(lambda: exits.look(0.1), 1) == [{"worker": "tp2-0", "pid": program, "kind": "program"}]
    assert exits.look(0.2) == []


def test_the_end_of_the_keeper_is_seen(tmp_path: Path, unit: subprocess.Popen[str]) -> None:
    exits = worker_exits.WorkerExits(str(tmp_path))
    assert exits.look(0.0) == []
    unit.kill()
    (found,) = until(lambda: exits.look(0.1), 1)
    assert (found["pid"], found["kind"]) == (unit.pid, "keeper")


def test_what_a_worker_started_and_kept_is_watched(tmp_path: Path, unit: subprocess.Popen[str]) -> None:
    write(tmp_path, unit.pid, pid=unit.pid)  # so that the one below is not the program
    part = child(unit.pid)
    exits = worker_exits.WorkerExits(str(tmp_path))
    exits.look(0.0)
    os.kill(part, 0)
    exits.look(20.0)  # there at two looks at the tree: it stays
    os.kill(part, signal.SIGKILL)
    assert until(lambda: exits.look(20.1), 1) == [{"worker": "tp2-0", "pid": part, "kind": "part"}]


@pytest.mark.parametrize("record", ["", "[1", '{"exit_code": 1}', '{"exit_code": null, "pid": 1}'])
def test_a_record_without_a_running_unit_is_left_out(tmp_path: Path, record: str) -> None:
    (tmp_path / f"{workers.UNIT_PREFIX}x-0.json").write_text(record)
    exits = worker_exits.WorkerExits(str(tmp_path))
    assert exits.look(0.0) == exits.look(5.0) == []


def test_a_record_that_outlived_its_keeper_is_left_out(tmp_path: Path, unit: subprocess.Popen[str]) -> None:
    write(tmp_path, unit.pid, keeper_start=1)
    exits = worker_exits.WorkerExits(str(tmp_path))
    exits.look(0.0)
    os.kill(child(unit.pid), signal.SIGKILL)
    unit.kill()
    unit.wait()
    assert exits.look(0.1) == []


def test_a_process_that_somebody_stopped_is_reported_once_until_it_goes_on(
    tmp_path: Path, unit: subprocess.Popen[str]
) -> None:
    exits = worker_exits.WorkerExits(str(tmp_path))
    exits.look(0.0)
    program = child(unit.pid)

    def state(wanted: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            found = node_processes.stat(program)
            if found is not None and found.state in wanted:
                return
            os.sched_yield()

    for round_ in (10.0, 20.0):
        os.kill(program, signal.SIGSTOP)
        state("T")
        # Once may be the moment in which a shell puts it aside.
        assert exits.look(round_) == []
        assert exits.look(round_ + 1.0) == [{"worker": "tp2-0", "pid": program, "kind": "stopped"}]
        assert exits.look(round_ + 2.0) == []
        os.kill(program, signal.SIGCONT)
        state("SR")
        assert exits.look(round_ + 3.0) == []
