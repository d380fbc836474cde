"""Count what the processes of this node's workers used and how long they waited for a core.

A worker is the tree below the keeper of a unit (see ``_modules/supervise.py``). Finding it means reading the
process table, so it is done rarely; the processes and the few of their threads that are busy are read with every
sample, all other threads every few seconds, and at once when a process that was idle begins to run. While a worker
starts, its processes come and go and read their programs and weights: then the tree is looked for every second, and
whether a process that reads is waiting for storage is looked at with every sample.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import node_files
import node_processes
import readers
from readers import Handle

UNIT_PREFIX = "worker-"
# A worker starts its processes in its first minute or, from slow storage, in its first few; one that ends, and a new
# unit, are seen at once.
SEARCH_SECONDS = 10.0
STARTING_SEARCH_SECONDS = 1.0
STARTING_SECONDS = 90.0
THREADS_SECONDS = 5.0
# A gap between samples longer than this is no time in which anybody looked.
LONGEST_LOOK_SECONDS = 1.0
# What ran for less than this share of all that the worker ran, or comes after so many, is not read ten times a second:
# each read costs about 5 us. It is still counted with all others.
BUSY_SHARE = 0.01
BUSY_THREADS = 16
# A process that ran for this long since its threads were looked at, none of them being read often, has begun to work:
# load that comes after a pause would else go unseen for up to THREADS_SECONDS. An idle engine's loops use less.
WOKEN_SECONDS = 0.05

# The keeper's process id and start: what makes it the one that the unit's record names.
Keeper = tuple[int, int]


def unit_records(directory: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each worker whose unit, by its record, runs, and that record; one that cannot be read is left out."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        if not (name.startswith(UNIT_PREFIX) and name.endswith(".json")):
            continue
        record = node_files.read_json(os.path.join(directory, name))
        if not isinstance(record, dict) or record.get("exit_code") is not None:
            continue
        if _is_number(record.get("keeper")) and _is_number(record.get("keeper_start")):
            record["pid"] = record.get("pid") if _is_number(record.get("pid")) else None
            yield name.removeprefix(UNIT_PREFIX).removesuffix(".json"), record


def _is_number(value: object) -> bool:
    """Return whether a value can be the number of a process, or a time in ticks: what is torn or edited may be any."""
    return type(value) is int and 0 < value < 2**63


def units(directory: str) -> dict[str, Keeper]:
    """Return {worker: (keeper, its start)} of the units that run."""
    return {worker: (record["keeper"], record["keeper_start"]) for worker, record in unit_records(directory)}


class _Thread:
    def __init__(self, path: str) -> None:
        self.handle = Handle(path)
        self.ran = self.waited = 0.0

    def refresh(self) -> bool:
        return self.take(self.handle.read())

    def take(self, text: str | None) -> bool:
        if not text:
            return False
        self.ran, self.waited = readers.run_delay(text)
        return True


class _Process:
    def __init__(self, pid: int, proc: str) -> None:
        self._task = f"{proc}/{pid}/task"
        self.stat = Handle(f"{proc}/{pid}/stat")
        self._io = Handle(f"{proc}/{pid}/io")
        self.read_bytes: int | None = None
        self.reads = False
        self.threads: dict[str, _Thread] = {}
        self.user = self.system = 0.0
        self.counted = 0.0
        self.resident = 0
        self.retired_wait = 0.0
        self.busy: list[tuple[float, str]] = []

    def take(self, text: str | None) -> bool:
        if not text:
            return False
        self.user, self.system, self.resident = readers.process(text)
        return True

    def refresh(self) -> bool:
        """Look at every thread; those that ran since the last look are the busy ones."""
        try:
            names = set(os.listdir(self._task))
        except OSError:
            return False
        for name in self.threads.keys() - names:
            self._retire(name)
        for name in names - self.threads.keys():
            self.threads[name] = _Thread(f"{self._task}/{name}/schedstat")
        self.busy = []
        for name, thread in list(self.threads.items()):
            ran = thread.ran
            if not thread.refresh():
                self._retire(name)
            elif thread.ran > ran:
                self.busy.append((thread.ran - ran, name))
        self.refresh_reads()
        found = self.take(self.stat.read())
        self.counted = self.user + self.system
        return found

    def refresh_reads(self) -> None:
        """Note what it has read; None where the kernel does not count, or not for us."""
        text = self._io.read()
        before, self.read_bytes = self.read_bytes, readers.storage_reads(text) if text else None
        grew = (self.read_bytes or 0) > (before or 0)
        # A read counts when it is asked for: from a slow disk one piece can take seconds.
        self.reads = grew or self.waits_for_storage()

    def waits_for_storage(self) -> bool:
        """Return whether it reads from storage these seconds, and waits for it now."""
        text = self.stat.read() if self.reads else None
        return bool(text and readers.in_storage(text))

    def _retire(self, name: str) -> None:
        # What a thread waited stays counted after it has ended: the sum must not fall.
        thread = self.threads.pop(name)
        self.retired_wait += thread.waited
        thread.handle.close()

    @property
    def waited(self) -> float:
        return self.retired_wait + sum(thread.waited for thread in self.threads.values())

    def close(self) -> None:
        self.stat.close()
        self._io.close()
        for thread in self.threads.values():
            thread.handle.close()


# What is read with every sample, and what it gave, not parsed yet.
_Texts = list[tuple[_Process | _Thread, str | None]]


class _Worker:
    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.processes: dict[int, _Process] = {}
        self.retired: list[float] = [0.0, 0.0, 0.0, 0]
        self.storage_wait = 0.0
        self.counts_reads = False
        self.busy: list[tuple[int, str]] = []
        self.api_server: _Process | None = None
        self._read_often: list[tuple[_Process | _Thread, Handle]] = []

    def follow(self, pids: Sequence[int], proc: str) -> None:
        for pid in list(self.processes):
            if pid not in pids:
                self._retire(pid)
        for pid in pids:
            if pid not in self.processes:
                self.processes[pid] = _Process(pid, proc)
                self.processes[pid].refresh_reads()
        # The keeper's own child comes first: on a head, the process that serves the API.
        self.api_server = self.processes[pids[0]] if pids else None

    def _retire(self, pid: int) -> None:
        process = self.processes.pop(pid)
        self.retired = [
            kept + more
            for kept, more in zip(
                self.retired, (process.user, process.system, process.waited, process.read_bytes or 0), strict=True
            )
        ]
        process.close()

    def refresh(self) -> bool:
        """Return False when a process has gone, so that the tree is looked for again."""
        complete = True
        for pid in list(self.processes):
            if not self.processes[pid].refresh():
                self._retire(pid)
                complete = False
        ranked = [(ran, pid, name) for pid, process in self.processes.items() for ran, name in process.busy]
        ranked.sort(reverse=True)
        least = BUSY_SHARE * sum(ran for ran, _, _ in ranked)
        self.busy = [(pid, name) for ran, pid, name in ranked[:BUSY_THREADS] if ran >= least]
        threads = [self.processes[pid].threads[name] for pid, name in self.busy]
        self._read_often = [(process, process.stat) for process in self.processes.values()]
        self._read_often += [(thread, thread.handle) for thread in threads]
        return complete

    @property
    def reads(self) -> bool:
        return any(process.reads for process in self.processes.values())

    @property
    def woken(self) -> bool:
        """Return whether a process runs now none of whose threads are read with every sample."""
        watched = {pid for pid, _ in self.busy}
        idle = (process for pid, process in self.processes.items() if pid not in watched)
        return any(process.user + process.system - process.counted > WOKEN_SECONDS for process in idle)

    def look(self, seconds: float) -> None:
        """Count the seconds since the last look as waiting for storage when a process waits for it now."""
        if any(process.waits_for_storage() for process in self.processes.values()):
            self.storage_wait += seconds

    def read(self) -> tuple[_Texts, float]:
        """Return the busy processes' and threads' texts, not parsed yet, and the wait for storage so far."""
        return [(owner, handle.read()) for owner, handle in self._read_often], self.storage_wait

    def parse(self, texts: _Texts, storage_wait: float) -> dict[str, float]:
        """Return the counters at the moment of a reading; readings come in their order, before the next `refresh`."""
        for owner, text in texts:
            owner.take(text)
        processes = self.processes.values()
        counters = {
            "cpu_user_s": self.retired[0] + sum(process.user for process in processes),
            "cpu_system_s": self.retired[1] + sum(process.system for process in processes),
            "run_delay_s": self.retired[2] + sum(process.waited for process in processes),
        }
        self.counts_reads = self.counts_reads or any(process.read_bytes is not None for process in processes)
        if self.counts_reads:
            counters["storage_read_bytes"] = self.retired[3] + sum(process.read_bytes or 0 for process in processes)
            counters["storage_wait_s"] = storage_wait
        if self.api_server is not None:
            counters["api_server_cpu_s"] = self.api_server.user + self.api_server.system
            counters["api_server_run_delay_s"] = self.api_server.waited
        return counters

    def close(self) -> None:
        for process in self.processes.values():
            process.close()


# A worker's name, the worker, its texts and its wait for storage, and whether the sample is a complete one.
Reading = tuple[str, _Worker, tuple[_Texts, float], bool]


class Workers:
    """All workers of the node."""

    def __init__(self, directory: str, proc: str = "/proc") -> None:
        self._directory = directory
        self._proc = proc
        self._workers: dict[str, _Worker] = {}
        self._searched = 0.0
        self._refreshed = 0.0
        self._began = 0.0
        self._looked: float | None = None

    def refresh(self, now: float) -> None:
        """Look at what is new; call it once a batch."""
        complete = True
        starting = 0.0 <= now - self._began < STARTING_SECONDS or any(each.reads for each in self._workers.values())
        often = starting or any(worker.woken for worker in self._workers.values())
        if not 0.0 <= now - self._refreshed < (STARTING_SEARCH_SECONDS if often else THREADS_SECONDS):
            self._refreshed = now
            for worker in self._workers.values():
                complete = worker.refresh() and complete
        found = units(self._directory)
        same = {name: worker.keeper for name, worker in self._workers.items()} == found
        again = STARTING_SEARCH_SECONDS if starting else SEARCH_SECONDS
        if complete and same and (not found or 0.0 <= now - self._searched < again):
            return
        if not same:
            self._began = now
        self._search(found)
        self._searched = now

    def _search(self, found: dict[str, Keeper]) -> None:
        for name in list(self._workers):
            if self._workers[name].keeper != found.get(name):
                self._workers.pop(name).close()
        if not found:
            return
        table = node_processes.table(self._proc)
        for name, (keeper, started) in found.items():
            # The record outlives a keeper that was killed; its number may belong to another process by now.
            alive = keeper in table and table[keeper].start_ticks == started
            if name not in self._workers:
                self._workers[name] = _Worker((keeper, started))
            self._workers[name].follow(node_processes.descendants(table, keeper) if alive else [], self._proc)

    def first_process(self) -> int | None:
        """Return a process of a worker, or None: its control group is the one that counts."""
        for worker in self._workers.values():
            for pid in worker.processes:
                return pid
        return None

    def read(self, complete: bool, now: float) -> list[Reading]:
        """Return the present texts of each worker that has processes, for `parse`."""
        result: list[Reading] = []
        since, self._looked = now - (now if self._looked is None else self._looked), now
        for name, worker in self._workers.items():
            if not worker.processes:
                continue
            worker.look(min(max(since, 0.0), LONGEST_LOOK_SECONDS))
            result.append((name, worker, worker.read(), complete))
        return result

    @staticmethod
    def parse(read: Iterable[Reading]) -> dict[str, dict[str, Any]]:
        """Return the counters of each worker; the slow ones with a complete sample alone."""
        result: dict[str, dict[str, Any]] = {}
        for name, worker, texts, complete in read:
            result[name] = {**worker.parse(*texts)}
            if complete:
                result[name]["rss_bytes"] = sum(process.resident for process in worker.processes.values())
                result[name]["processes"] = len(worker.processes)
                result[name]["threads_busy"] = len(worker.busy)
        return result
