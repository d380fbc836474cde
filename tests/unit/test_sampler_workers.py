"""The sampler's account of the workers: a process table in a folder; no process, no sleep."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tree import write

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import workers


class Processes:
    """A process table in a folder."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.units = folder / "proc", folder / "supervise"
        self.proc.mkdir()
        self.units.mkdir()

    def add(
        self, pid: int, parent: int, threads: dict[int, tuple[float, float]], ticks: tuple[int, int] = (0, 0)
    ) -> None:
        stat = f"{pid} (a) S {parent} 1 1 0 -1 0 0 0 0 0 {ticks[0]} {ticks[1]} 0 0 20 0 1 0 {pid * 10} 0 {pid} 0 0\n"
        write(self.proc / str(pid) / "stat", stat)
        for thread, (ran, waited) in threads.items():
            path = self.proc / str(pid) / "task" / str(thread) / "schedstat"
            write(path, f"{int(ran * 1e9)} {int(waited * 1e9)} 1\n")

    def reads(self, pid: int, total: int, state: str = "S") -> None:
        """Have a process read from storage so much in all, and be in a state now."""
        write(self.proc / str(pid) / "io", f"rchar: 9\nwchar: 0\nread_bytes: {total}\nwrite_bytes: 7\n")
        path = self.proc / str(pid) / "stat"
        path.write_text(path.read_text().replace(") S ", f") {state} ").replace(") D ", f") {state} "))

    def remove(self, pid: int, thread: int | None = None) -> None:
        folder = self.proc / str(pid) / "task" / str(thread) if thread else self.proc / str(pid)
        for path in sorted(folder.rglob("*"), reverse=True):
            # The kernel gives an error on a file that is still open; a truncated one reads the same to us.
            path.write_text("") if path.is_file() else None
            path.unlink() if path.is_file() else path.rmdir()
        folder.rmdir()

    def unit(self, name: str, keeper: int, exit_code: int | None = None) -> None:
        record = {"keeper": keeper, "keeper_start": keeper * 10, "exit_code": exit_code}
        (self.units / f"{name}.json").write_text(json.dumps(record))


def sample_of(found: workers.Workers, complete: bool, now: float) -> dict[str, Any]:
    sample: dict[str, Any] = found.parse(found.read(complete, now))
    return sample


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path)


@pytest.fixture
def found(processes: Processes) -> workers.Workers:
    """A unit whose keeper, 50, has one process, 51; seen at 100 s."""
    processes.unit("worker-a-0", 50)
    processes.add(50, 1, {})
    processes.add(51, 50, {51: (0.0, 0.0)})
    found = workers.Workers(str(processes.units), str(processes.proc))
    found.refresh(100.0)
    return found


def test_a_worker_is_the_tree_below_its_keeper(processes: Processes) -> None:
    processes.add(50, 1, {50: (0.0, 0.0)})
    processes.add(51, 50, {51: (1.0, 0.5), 52: (2.0, 0.25)}, ticks=(100, 20))
    processes.add(60, 51, {60: (0.0, 0.0)}, ticks=(3, 4))
    processes.add(99, 1, {99: (9.0, 9.0)}, ticks=(900, 900))
    processes.unit("worker-tp2-0", 50)
    processes.unit("sampler", 99)
    found = workers.Workers(str(processes.units), str(processes.proc))
    assert sample_of(found, True, 100.0) == {}
    found.refresh(100.0)
    found.refresh(103.0)
    assert found.first_process() in (51, 60)
    assert sample_of(found, True, 100.0) == {
        "tp2-0": {
            "cpu_user_s": pytest.approx(1.03),
            "cpu_system_s": pytest.approx(0.24),
            "run_delay_s": 0.75,
            "api_server_cpu_s": pytest.approx(1.2),
            "api_server_run_delay_s": 0.75,
            "rss_bytes": 111 * 4096,
            "processes": 2,
            "threads_busy": 2,
        }
    }


def test_busy_threads_are_read_with_every_sample_others_later(processes: Processes) -> None:
    processes.unit("worker-a-0", 50)
    processes.add(50, 1, {})
    processes.add(51, 50, {51: (1.0, 0.0), 52: (0.0, 0.0)}, ticks=(100, 0))
    found = workers.Workers(str(processes.units), str(processes.proc))
    found.refresh(100.0)
    found.refresh(103.0)
    processes.add(51, 50, {51: (1.1, 0.5), 52: (0.0, 9.0)}, ticks=(110, 0))
    sample = sample_of(found, False, 100.0)["a-0"]
    assert sample == {
        "cpu_user_s": 1.1,
        "cpu_system_s": 0.0,
        "run_delay_s": 0.5,
        "api_server_cpu_s": 1.1,
        "api_server_run_delay_s": 0.5,
    }
    found.refresh(106.0)
    assert sample_of(found, False, 100.0)["a-0"]["run_delay_s"] == 9.5


def test_a_process_that_was_idle_is_seen_as_soon_as_it_runs(processes: Processes) -> None:
    processes.unit("worker-a-0", 50)
    processes.add(50, 1, {})
    processes.add(51, 50, {51: (1.0, 0.0)}, ticks=(100, 0))
    processes.add(52, 51, {52: (9.0, 0.0)}, ticks=(900, 0))
    found = workers.Workers(str(processes.units), str(processes.proc))
    found.refresh(200.0)
    found.refresh(294.0)
    processes.add(51, 50, {51: (1.2, 0.0)}, ticks=(120, 0))
    found.refresh(300.0)  # the second one has been idle all the time
    processes.add(52, 51, {52: (9.5, 0.3)}, ticks=(950, 0))
    assert sample_of(found, False, 300.5)["a-0"]["cpu_user_s"] == 10.7
    found.refresh(301.0)
    assert sample_of(found, False, 301.1)["a-0"]["run_delay_s"] == 0.3
    found.refresh(302.0)
    processes.add(52, 51, {52: (9.6, 0.7)}, ticks=(960, 0))
    assert sample_of(found, False, 302.1)["a-0"]["run_delay_s"] == 0.7


def test_readings_are_parsed_later_each_as_of_its_moment(processes: Processes, found: workers.Workers) -> None:
    found.refresh(103.0)
    processes.add(51, 50, {51: (1.0, 0.5)}, ticks=(100, 20))
    found.refresh(106.0)
    early = found.read(True, 106.0)
    processes.add(51, 50, {51: (2.0, 0.75)}, ticks=(200, 40))
    late = found.read(False, 106.1)
    counters = [found.parse(read)["a-0"] for read in (early, late)]
    assert [each["cpu_user_s"] for each in counters] == [1.0, 2.0]
    assert [each["run_delay_s"] for each in counters] == [0.5, 0.75]


def test_a_thread_that_hardly_runs_is_not_read_often(processes: Processes, found: workers.Workers) -> None:
    processes.add(51, 50, {51: (10.0, 0.0), 52: (0.05, 0.0)})
    found.refresh(103.0)
    assert sample_of(found, True, 103.0)["a-0"]["threads_busy"] == 1


def test_what_has_ended_stays_counted(processes: Processes) -> None:
    processes.unit("worker-a-0", 50)
    processes.add(50, 1, {})
    processes.add(51, 50, {51: (1.0, 0.5), 52: (1.0, 0.25)}, ticks=(100, 10))
    processes.add(61, 50, {61: (1.0, 1.0)}, ticks=(50, 5))
    found = workers.Workers(str(processes.units), str(processes.proc))
    found.refresh(100.0)
    found.refresh(103.0)
    processes.remove(51, thread=52)
    processes.remove(61)
    found.refresh(106.0)
    sample = sample_of(found, False, 100.0)["a-0"]
    assert sample["cpu_user_s"] == pytest.approx(1.5) and sample["cpu_system_s"] == pytest.approx(0.15)
    assert sample["run_delay_s"] == pytest.approx(1.75)


def test_a_new_process_is_found_and_an_ended_unit_forgotten(processes: Processes, found: workers.Workers) -> None:
    processes.add(52, 51, {52: (0.0, 0.0)})
    found.refresh(100.5)
    assert sample_of(found, True, 100.0)["a-0"]["processes"] == 1
    found.refresh(100.0 + workers.STARTING_SEARCH_SECONDS)
    assert sample_of(found, True, 100.0)["a-0"]["processes"] == 2, "a worker that starts has new processes all the time"
    started = 100.0 + workers.STARTING_SECONDS
    found.refresh(started)
    processes.add(53, 51, {53: (0.0, 0.0)})
    found.refresh(started + 1.0)
    assert sample_of(found, True, 100.0)["a-0"]["processes"] == 2
    found.refresh(started + workers.SEARCH_SECONDS)
    assert sample_of(found, True, 100.0)["a-0"]["processes"] == 3
    processes.unit("worker-a-0", 50, exit_code=0)
    found.refresh(started + workers.SEARCH_SECONDS + 1.0)
    assert sample_of(found, True, 100.0) == {}


def test_a_keeper_whose_number_was_given_away_owns_nothing(processes: Processes) -> None:
    processes.unit("worker-a-0", 50)
    (processes.units / "worker-a-0.json").write_text('{"keeper": 50, "keeper_start": 1, "exit_code": null}')
    processes.add(50, 1, {})
    processes.add(51, 50, {51: (0.0, 0.0)})
    found = workers.Workers(str(processes.units), str(processes.proc))
    found.refresh(100.0)
    assert sample_of(found, True, 100.0) == {}


def test_waiting_for_storage_is_counted_while_a_process_reads(processes: Processes) -> None:
    processes.unit("worker-a-0", 50)
    processes.add(50, 1, {})
    processes.add(51, 50, {51: (0.0, 0.0)})
    processes.reads(51, 1000, "D")
    found = workers.Workers(str(processes.units), str(processes.proc))
    found.refresh(100.0)
    for tenth in range(6):
        sample = sample_of(found, False, 100.0 + tenth / 10)["a-0"]
    assert sample["storage_read_bytes"] == 1000
    assert sample["storage_wait_s"] == pytest.approx(0.5), "from the first look at it on"
    found.refresh(102.0)
    sample = sample_of(found, True, 102.0)["a-0"]
    assert sample["storage_wait_s"] == pytest.approx(1.5), "one slow piece; nobody looked for longer than a second"
    processes.reads(51, 5000, "S")
    assert sample_of(found, False, 102.1)["a-0"]["storage_wait_s"] == sample["storage_wait_s"]
    found.refresh(103.0)
    assert sample_of(found, True, 103.0)["a-0"]["storage_read_bytes"] == 5000
    found.refresh(104.0)
    processes.reads(51, 5000, "D")
    after = sample_of(found, True, 104.0)["a-0"]
    assert after["storage_wait_s"] == sample["storage_wait_s"], "asleep, but it reads nothing: that is no storage"
    processes.remove(51)
    processes.add(52, 50, {52: (0.0, 0.0)})
    processes.reads(52, 300)
    found.refresh(105.0)
    assert sample_of(found, True, 105.0)["a-0"]["storage_read_bytes"] == 5300, (
        "what an ended process read stays counted"
    )


def test_a_kernel_that_does_not_tell_reads_says_nothing_of_them(processes: Processes, found: workers.Workers) -> None:
    found.refresh(102.0)
    assert not any(name.startswith("storage") for name in sample_of(found, True, 102.0)["a-0"])
