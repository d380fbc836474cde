"""Measure what a node and its links can do; raw repeats go out, nothing is averaged here.

Run by the engine's own Python, so that arithmetic and collectives are those of the
engine's torch, which is imported once. Needs nothing else of this repository than the
files beside it.

    probe.py node SPECIFICATION OUTPUT     this node, then the collectives it takes part in
    probe.py serve SPECIFICATION           answer link probes until asked to end
    probe.py link SPECIFICATION OUTPUT     the link to a node that serves

SPECIFICATION is JSON. OUTPUT appears whole or not at all.
"""

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import engine_bench
import node_files
from device_measures import REPEAT_SECONDS, REPEATS, Device, NoDeviceError, calls_for, measure

BLOCK_BYTES = 2**20
PING_BYTES = 64
INTERVAL = "0.2"


def main(arguments: Sequence[str]) -> None:
    """Run one probe to its end."""
    command, specification = arguments[0], json.loads(arguments[1])
    # Whatever happens to who started it, a probe does not outlive its deadline.
    signal.alarm(int(specification["deadline_seconds"]))
    if command == "serve":
        serve(specification)
        return
    probes: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"node": node, "link": link}
    result = probes[command](specification)
    node_files.write_json(arguments[2], result)


# Repeats ---------------------------------------------------------------------------------


def repeat_seconds(
    operation: Callable[[], object], repeats: int = REPEATS, least_seconds: float = REPEAT_SECONDS
) -> list[float]:
    """Return seconds of one call, once for each repeat; a repeat calls often enough to be timed well."""
    operation()
    calls = calls_for(_timed(operation, 1), least_seconds)
    return [_timed(operation, calls) / calls for _ in range(repeats)]


def _timed(operation: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        operation()
    return time.perf_counter() - started


# A node ----------------------------------------------------------------------------------


def node(specification: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw repeats of every measure of this node and of its collectives."""
    values: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    if specification["measure"]:
        # Before torch: a small process starts others as a shell would.
        values["process_launch_seconds"] = process_launch()
        values["disk_read_bytes_per_second"], notes["disk_read"] = disk_read(specification["directory"])
    found: dict[str, Any] = {"values": values, "notes": notes, "collectives": [], "device": None, "torch": None}
    if specification.get("device"):
        _by_torch(specification, found)
    elif specification["measure"]:
        _by_the_engine(specification, found)
    return found


def _by_torch(specification: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Add what the engine's torch measures on the device of the engine map, never on another."""
    cores = specification["cores"]
    # Read when torch's libraries are loaded.
    os.environ["OMP_NUM_THREADS"] = str(cores)
    # Where no name server answers, torch warns of every peer.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    torch.set_num_threads(cores)
    found["torch"] = torch.__version__
    try:
        device = Device(torch, specification["device"])
    except NoDeviceError as error:
        found["notes"]["accelerator"] = f"not measured: {error}"
        if specification["collectives"]:
            raise  # the other ranks would wait for this one
        return
    found["device"] = {"kind": device.kind, "name": device.name, "by": f"torch {torch.__version__}"}
    with torch.inference_mode():
        if specification["measure"]:
            values, notes = measure(device)
            found["values"].update(values)
            found["notes"].update(notes)
        found["collectives"] = [collective(device, each) for each in specification["collectives"]]


def _by_the_engine(specification: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Add what the engine's own bench measures, or a note on why nothing measures the accelerator."""
    bench = specification.get("bench")
    if not bench:
        found["notes"]["accelerator"] = "not measured: the engine has neither torch for it nor a bench of its own"
        return
    try:
        measured = engine_bench.run(bench["argv"], os.environ, bench["seconds"], bench.get("host", False))
    except engine_bench.NotMeasuredError as error:
        found["notes"]["accelerator"] = f"not measured: {error}"
        return
    found["values"].update(measured["values"])
    found["notes"].update(measured["notes"])
    found["device"] = measured["device"]


def process_launch() -> list[float]:
    """Return seconds to start a small program and see it end, of each repeat."""
    program = "/bin/true"

    def launch() -> None:
        os.waitpid(os.posix_spawn(program, [program], {}), 0)

    return repeat_seconds(launch)


def disk_read(directory: str) -> tuple[list[float], str]:
    """Return bytes per second of each repeat, and how the cache was kept out of it."""
    path = os.path.join(directory, f"probe-disk.{os.getpid()}.tmp")
    space = os.statvfs(directory)
    size = min(128 * BLOCK_BYTES, space.f_bavail * space.f_frsize // 4) // BLOCK_BYTES * BLOCK_BYTES
    if size < 8 * BLOCK_BYTES:
        return [], "no space"
    try:
        size = _write_file(path, size)
        return _read_file(path, size)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _write_file(path: str, size: int, seconds: float = 3.0) -> int:
    block, deadline, written = os.urandom(BLOCK_BYTES), time.monotonic() + seconds, 0
    with open(path, "wb", buffering=0) as file:
        while written < size and (written < 8 * BLOCK_BYTES or time.monotonic() < deadline):
            written += file.write(block)
        os.fsync(file.fileno())
    return written


def _read_file(path: str, size: int) -> tuple[list[float], str]:
    # Direct reads need memory aligned to the page, which mmap gives.
    with contextlib.closing(mmap.mmap(-1, BLOCK_BYTES)) as buffer:
        for method, flags in (("direct", os.O_DIRECT), ("advised", 0)):
            try:
                descriptor = os.open(path, os.O_RDONLY | flags)
            except OSError:
                continue
            try:
                return _read_repeats(descriptor, size, buffer, drop=method == "advised"), method
            except OSError:
                # Some filesystems take the flag and refuse the read.
                if method == "advised":
                    raise
            finally:
                os.close(descriptor)
    return [], "unreadable"


def _read_repeats(descriptor: int, size: int, buffer: mmap.mmap, drop: bool, seconds: float = 0.2) -> list[float]:
    rates: list[float] = []
    offset = 0
    for _ in range(REPEATS):
        if drop:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds and done < size:
            done += os.preadv(descriptor, [buffer], offset)
            offset = (offset + BLOCK_BYTES) % size
        rates.append(done / (time.perf_counter() - started))
    return rates


# Collectives -----------------------------------------------------------------------------


def collective(device: Device, specification: Mapping[str, Any]) -> dict[str, Any]:
    """Time one kind of message over all ranks, on the device's memory; return seconds of each repeat by size."""
    import datetime

    import torch.distributed as distributed

    for name in specification["interface_environment"]:
        os.environ[name] = specification["interface"]
    rank, world = specification["rank"], specification["world"]
    distributed.init_process_group(
        specification["backend"],
        init_method=f"tcp://{specification['address']}:{specification['port']}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        sizes = {}
        for size in specification["sizes_bytes"]:
            # bfloat16, as the engine sends its activations.
            tensor = device.torch.ones(size // 2, dtype=device.torch.bfloat16, device=device.kind)
            operation, messages = _message(distributed, specification["kind"], tensor, rank)
            sizes[str(size)] = [each / messages for each in _agreed_repeats(device, distributed, operation, rank)]
        _meet(device, distributed)
        return {"kind": specification["kind"], "rank": rank, "sizes": sizes}
    finally:
        distributed.destroy_process_group()


def _message(distributed: ModuleType, kind: str, tensor: Any, rank: int) -> tuple[Callable[[], object], int]:
    """Return what a repeat does, and how many messages one after another it is."""
    if kind == "all_reduce":
        return lambda: distributed.all_reduce(tensor), 1
    # There and back between the first two stages; further stages only keep step.
    there, back = (distributed.send, distributed.recv) if rank == 0 else (distributed.recv, distributed.send)

    def bounce() -> None:
        if rank < 2:
            there(tensor, 1 - rank)
            back(tensor, 1 - rank)

    return bounce, 2


def _agreed_repeats(
    device: Device, distributed: ModuleType, operation: Callable[[], object], rank: int, budget_seconds: float = 0.7
) -> list[float]:
    """Repeat as often as rank 0 decides; other ranks must make exactly as many calls."""

    def timed(calls: int) -> float:
        device.wait()
        started = time.perf_counter()
        for _ in range(calls):
            operation()
        # A collective is queued like any other work: its end is what counts.
        device.wait()
        return time.perf_counter() - started

    timed(1)
    _meet(device, distributed)
    seconds = timed(1)
    calls = calls_for(seconds, REPEAT_SECONDS)
    repeats = repeats_for(seconds * calls, budget_seconds)
    agreed = device.torch.tensor([calls, repeats], dtype=device.torch.int64, device=device.kind)
    distributed.broadcast(agreed, 0)
    calls, repeats = (int(value) for value in agreed)
    found = []
    for _ in range(repeats):
        _meet(device, distributed)
        found.append(timed(calls) / calls)
    return found if rank == 0 else []


def _meet(device: Device, distributed: ModuleType) -> None:
    """Return when all ranks are here and their devices have nothing left to do."""
    # Not the barrier: some backends need a device for it.
    distributed.all_reduce(device.torch.ones(1, device=device.kind))
    device.wait()


def repeats_for(seconds: float, budget_seconds: float) -> int:
    """Return how many repeats the budget holds: an odd number from 3 to 9; one if they are very slow."""
    if seconds > 4 * budget_seconds:
        return 1
    return min(9, max(3, int(budget_seconds / max(seconds, 1e-9)) // 2 * 2 + 1))


# Links -----------------------------------------------------------------------------------


def serve(specification: Mapping[str, Any]) -> None:
    """Answer bandwidth and latency probes on one address."""
    address, port = specification["address"], specification["port"]
    listener = socket.create_server((address, port + 1))
    server = subprocess.Popen(
        ["iperf3", "--server", "--bind", address, "--port", str(port), "--json", "--interval", INTERVAL],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,
    )
    threading.Thread(target=_echo, args=(listener,), daemon=True).start()
    sys.exit(server.wait())


def _die_with_parent() -> None:
    # The alarm ends this process without a chance to end its child.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)


def _echo(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(PING_BYTES):
                connection.sendall(data)


def link(specification: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw repeats of both directions, named from where to where the bytes go."""
    own, peer, port = specification["address"], specification["peer"], specification["port"]
    # Repeats of 0.1 s beside the usual two seconds of load; shorter ones where the whole is to be short.
    latency = ping(own, peer, port + 1, 0.05 * specification["seconds"])
    forth = iperf(own, peer, port, specification["seconds"], reverse=False)
    back = iperf(own, peer, port, specification["seconds"], reverse=True)
    return {"latency_seconds": latency, "to_peer_bytes_per_second": forth, "from_peer_bytes_per_second": back}


def ping(own: str, peer: str, port: int, seconds: float = 0.1) -> list[float]:
    """Return the median one-way time of each repeat: half a round trip of a small message."""
    found = []
    with socket.create_connection((peer, port), timeout=10, source_address=(own, 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        message = b"p" * PING_BYTES
        _round_trips(connection, message, 0.02)
        for _ in range(REPEATS):
            trips = sorted(_round_trips(connection, message, seconds))
            found.append(trips[len(trips) // 2] / 2)
    return found


def _round_trips(connection: socket.socket, message: bytes, seconds: float) -> list[float]:
    trips: list[float] = []
    end = time.perf_counter() + seconds
    while not trips or time.perf_counter() < end:
        started = time.perf_counter()
        connection.sendall(message)
        waiting = len(message)
        while waiting:
            got = len(connection.recv(waiting))
            if not got:
                raise ConnectionError("the peer closed the latency probe")
            waiting -= got
        trips.append(time.perf_counter() - started)
    return trips


def iperf(own: str, peer: str, port: int, seconds: float, reverse: bool) -> list[float]:
    """Return the rates of one direction, in bytes per second, of each interval."""
    command = ["iperf3", "--client", peer, "--bind", own, "--port", str(port), "--json", "--get-server-output"]
    command += ["--time", str(seconds), "--interval", INTERVAL, "--connect-timeout", "5000"]
    finished = subprocess.run(
        command + ["--reverse"] * reverse, capture_output=True, text=True, timeout=seconds + 20, check=False
    )
    try:
        document = json.loads(finished.stdout)
    except ValueError:
        document = {"error": finished.stderr.strip() or f"iperf3 ended with status {finished.returncode}"}
    if "error" in document:
        raise RuntimeError(f"iperf3 from {own} to {peer}: {document['error']}")
    return interval_rates(document, reverse)


def interval_rates(document: Mapping[str, Any], reverse: bool) -> list[float]:
    """Return what the receiver got in each interval, bytes per second, without the start and the short rest.

    The sender's own numbers count what its socket buffer took, not what arrived.
    """
    receiver = document if reverse else document.get("server_output_json") or document
    sums = [interval["sum"] for interval in receiver["intervals"]]
    longest = max((each["seconds"] for each in sums), default=0.0)
    whole = [each for each in sums if each["seconds"] > 0.8 * longest]
    settled = whole[2:] or whole
    return [each["bytes"] / each["seconds"] for each in settled]


if __name__ == "__main__":
    main(sys.argv[1:])
