"""Put a fault into the lab and take it out again, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import lab
from cli.control import Control
from lab import page_cache
from lab.cgroups import QUOTA_PERIOD_MICROSECONDS, Hierarchy
from lab.layout import CONTROL, REPOSITORY
from lab.namespaces import on_host
from lab.requirements import find_hierarchy

READY_SECONDS = 10.0
# Importing torch, and a first kernel, beside an engine that is up.
IMPORT_SECONDS = 180.0
# Where the causal experiment looks for a delay that is there already.
CONTROL_FOLDER = "/run/cluster/perturb"
# Above this share of it in memory, what is read for a start says nothing of the disk.
WARM_RATIO = 0.05


class FaultError(Exception):
    """A fault could not be put in; the text says why."""


@contextmanager
def injected(control: Control, injections: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Have faults in the lab while the block runs."""
    with contextlib.ExitStack() as stack:
        for injection in injections:
            stack.enter_context(_KINDS[str(injection["kind"])](control, injection))
        yield


@contextmanager
def _throttle(control: Control, injection: Mapping[str, Any]) -> Iterator[None]:
    cable = injection.get("cable")
    try:
        lab.throttle(control.lab, injection["link"], float(injection["bytes_per_second"]), cable)
        yield
    finally:
        lab.throttle(control.lab, injection["link"], None, cable)


@contextmanager
def _slow(control: Control, injection: Mapping[str, Any]) -> Iterator[None]:
    try:
        lab.slow(control.lab, injection["node"], float(injection["cores"]))
        yield
    finally:
        lab.slow(control.lab, injection["node"], None)


@contextmanager
def _hog(control: Control, injection: Mapping[str, Any]) -> Iterator[None]:
    """Let other programs run on a node's cores."""
    argv = [sys.executable, "-S", "-E", "-c", "while True: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(int(injection["processes"])):
            stack.enter_context(_running(control, injection["node"], argv))
        yield


# Busy for so long by the clock, then a pause; it begins anywhere in it.
_WORK = """
import random, sys, time
busy, pause = float(sys.argv[1]), float(sys.argv[2])
time.sleep(random.random() * (busy + pause))
while True:
    end = time.monotonic() + busy
    while time.monotonic() < end:
        pass
    if pause > 0:
        time.sleep(pause)
"""


@contextmanager
def _work(control: Control, injection: Mapping[str, Any]) -> Iterator[None]:
    """Let other programs run on a node's cores now and then."""
    rhythm = [str(float(injection[key])) for key in ("busy_seconds", "pause_seconds")]
    argv = [sys.executable, "-S", "-E", "-c", _WORK, *rhythm]
    with contextlib.ExitStack() as stack:
        for _ in range(int(injection["processes"])):
            stack.enter_context(_running(control, injection["node"], argv))
        yield


@contextmanager
def _delay(control: Control, injection: Mapping[str, Any]) -> Iterator[None]:
    """Hold back what both ends of a link send, with the node's own relay."""
    link, seconds = str(injection["link"]), float(injection["seconds"])
    nodes = control.profile.nodes
    ends = [name for name, node in nodes.items() if link in node.links]
    with contextlib.ExitStack() as stack:
        for node in ends:
            own = nodes[node].links[link]
            peers = [
                f"{nodes[peer].links[link].address}={nodes[peer].links[link].mac}"
                for one, peer in permutations(ends, 2)
                if one == node
            ]
            path = f"{CONTROL_FOLDER}/delay-{own.interface}"
            _shell(control, node, f"mkdir -p {CONTROL_FOLDER} && rm -f {path}.lock && echo {seconds} > {path}")
            # The relay ends when its control file goes, and its routes with it.
            stack.callback(_shell, control, node, f"rm -f {path}")
            program = str(REPOSITORY / "salt" / "perturb" / "files" / "packet_delay.py")
            argv = [sys.executable, program, path, own.interface, *peers]
            relay = stack.enter_context(_running(control, node, argv))
            _wait(partial(_works, control, node, path), f"the relay on {node}")
            # A longer cable takes nothing of a node's core: what stands for it works on the control node's.
            hierarchy = find_hierarchy()
            for pid in _family(relay.pid):
                hierarchy.add(control.lab, CONTROL, pid)
        yield


def _family(pid: int) -> list[int]:
    """Return a process and everything that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(int(child)))]


def _works(control: Control, node: str, path: str) -> bool:
    return bool(_shell(control, node, f"cat {path}.lock || true").strip())


@contextmanager
def _api_server(control: Control, injection: Mapping[str, Any]) -> Iterator[None]:
    """Hold the process in front of the engine to a little CPU time: a group of its own inside the node's."""
    node, hierarchy = str(injection["node"]), find_hierarchy()
    api_server = _api_server_process(hierarchy, control.lab, node)
    home, group = hierarchy.home(control.lab, node), hierarchy.directory("cpu", control.lab, node) / "api_server"
    try:
        group.mkdir(exist_ok=True)
        hierarchy.write_quota(group, float(injection["cores"]), QUOTA_PERIOD_MICROSECONDS * 10)
        (group / "cgroup.procs").write_text(str(api_server))
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split() if group.is_dir() else []:
            with contextlib.suppress(ProcessLookupError):
                (home / "cgroup.procs").write_text(pid)
        if group.is_dir():
            group.rmdir()


def _api_server_process(hierarchy: Hierarchy, name: str, node: str) -> int:
    """Return the process that serves the API: `vllm serve` itself, whose name no other process of it has."""
    for pid in hierarchy.processes(name, node):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"serve" in words[:4] and any(word.endswith(b"/vllm") for word in words[:3]):
                return pid
    raise FaultError(f"no process of an API server on {node}: is it a head?")


@contextmanager
def _foreign_kernels(control: Control, injection: Mapping[str, Any]) -> Iterator[None]:
    """Let another program compute on a node's accelerator for a share of the time."""
    node = str(injection["node"])
    engine = control.profile.engine_of(node)
    ready = f"{CONTROL_FOLDER}/kernels-ready"
    program = str(REPOSITORY / "salt" / "perturb" / "files" / "foreign_kernels.py")
    argv = [f"{engine.directory()}/bin/python", program, str(injection["share"]), str(engine.torch_device), ready]
    _shell(control, node, f"mkdir -p {CONTROL_FOLDER} && rm -f {ready}")
    with _running(control, node, argv) as process:

        def works() -> bool:
            if process.poll() is not None:
                raise FaultError(f"the foreign program on {node} ended with status {process.returncode}")
            return bool(_shell(control, node, f"cat {ready} 2>/dev/null || true").strip())

        _wait(works, f"the foreign program on {node}", IMPORT_SECONDS)
        yield


PAUSE_PERIOD_SECONDS = 0.05
# As vLLM names them: a rank's process, and where there is one rank the engine's own.
RANKS = ("VLLM::Worker", "VLLM::EngineCor")


@contextmanager
def _paused(control: Control, injection: Mapping[str, Any]) -> Iterator[None]:
    """Stop a node's rank for a share of every twentieth of a second."""
    node, share = str(injection["node"]), float(injection["share"])
    pids = _rank_processes(find_hierarchy(), control.lab, node)
    over = threading.Event()

    def pause() -> None:
        while not over.is_set():
            _signal(pids, signal.SIGSTOP)
            over.wait(share * PAUSE_PERIOD_SECONDS)
            _signal(pids, signal.SIGCONT)
            over.wait((1.0 - share) * PAUSE_PERIOD_SECONDS)

    thread = threading.Thread(target=pause, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _signal(pids, signal.SIGCONT)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _rank_processes(hierarchy: Hierarchy, name: str, node: str) -> list[int]:
    titles: dict[int, str] = {}
    for pid in hierarchy.processes(name, node):
        with contextlib.suppress(OSError):
            titles[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    for title in RANKS:
        found = [pid for pid, seen in titles.items() if seen.startswith(title)]
        if found:
            return found
    raise FaultError(f"no process of a rank on {node}: expected one called {' or '.join(RANKS)}")


@contextmanager
def _cold_disk(control: Control, injection: Mapping[str, Any]) -> Iterator[None]:
    """Have a node read its engine and its weights from a slow disk: neither is in the page cache any more."""
    node = str(injection["node"])
    folders = [control.profile.model.directory(), control.profile.engine_of(node).directory()]
    try:
        lab.slow_disk(control.lab, node, None)
    except lab.LabError as error:
        raise FaultError(str(error)) from error
    try:
        lab.slow_disk(control.lab, node, float(injection["bytes_per_second"]))
        total, kept = page_cache.forget(path for folder in folders for path in _files(on_host(folder)))
        if not total:
            raise FaultError(f"no file of the engine or the model in {', '.join(folders)}: cluster apply")
        if kept > WARM_RATIO * total:
            raise FaultError(
                f"{kept / 1e6:.0f} of {total / 1e6:.0f} MB of engine and model stay in the page cache, so no disk is "
                "read: does another lab run them?"
            )
        yield
    finally:
        lab.slow_disk(control.lab, node, None)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


_KINDS: dict[str, Callable[[Control, Mapping[str, Any]], AbstractContextManager[None]]] = {
    "throttle": _throttle,
    "slow": _slow,
    "hog": _hog,
    "work": _work,
    "delay": _delay,
    "api_server": _api_server,
    "cold_disk": _cold_disk,
    "foreign_kernels": _foreign_kernels,
    "paused": _paused,
}


@contextmanager
def _running(control: Control, node: str, argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on a node while the block runs."""
    process = subprocess.Popen(
        lab.command(control.lab, node, list(argv)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _shell(control: Control, node: str, text: str) -> str:
    finished = subprocess.run(
        lab.command(control.lab, node, ["sh", "-c", text]), capture_output=True, text=True, timeout=30, check=False
    )
    if finished.returncode:
        raise FaultError(f"{node}: {text}: {finished.stderr.strip()}")
    return finished.stdout


def _wait(condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise FaultError(f"{what} did not come up within {seconds:.0f} s")
        time.sleep(0.05)
