"""Measure what a node and its links can do; raw repeats go out, nothing is averaged here.

Run by the engine's own Python, so that arithmetic and collectives are those of the
engine's torch, which is imported once. Needs nothing else of this repository.

    probe.py node SPECIFICATION OUTPUT     this node, then the collectives it takes part in
    probe.py serve SPECIFICATION           answer link probes until asked to end
    probe.py link SPECIFICATION OUTPUT     the link to a node that serves

SPECIFICATION is JSON. OUTPUT appears whole or not at all.
"""

import contextlib
import ctypes
import functools
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REPEATS = 7
REPEAT_SECONDS = 0.06
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
    partial = arguments[2] + ".partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(result, file)
    os.replace(partial, arguments[2])


# Repeats ---------------------------------------------------------------------------------


def repeat_seconds(
    operation: Callable[[], object], repeats: int = REPEATS, least_seconds: float = REPEAT_SECONDS
) -> list[float]:
    """Return seconds of one call, once for each repeat; a repeat calls often enough to be timed well."""
    operation()
    calls = calls_for(_timed(operation, 1), least_seconds)
    return [_timed(operation, calls) / calls for _ in range(repeats)]


def calls_for(seconds: float, least_seconds: float) -> int:
    """Return how many calls of this length make a repeat of the least length."""
    return max(1, math.ceil(least_seconds / max(seconds, 1e-9)))


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
    cores = specification["cores"]
    # Read when torch's libraries are loaded.
    os.environ["OMP_NUM_THREADS"] = str(cores)
    # Where no name server answers, torch warns of every peer.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    torch.set_num_threads(cores)
    with torch.inference_mode():
        if specification["measure"]:
            values["memory_read_bytes_per_second"] = memory_read(torch)
            values["gemm_bf16_flops_per_second"] = matrix_multiply(torch, torch.bfloat16)
            values["gemm_f32_flops_per_second"] = matrix_multiply(torch, torch.float32)
            values["kernel_dispatch_seconds"] = kernel_dispatch(torch)
        collectives = [collective(torch, each) for each in specification["collectives"]]
    return {"values": values, "notes": notes, "collectives": collectives, "torch": torch.__version__}


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


def memory_read(torch: Any) -> list[float]:
    """Return bytes per second that a reduction reads from memory the caches cannot hold."""
    size = array_bytes(last_cache_bytes(), available_bytes())
    array = torch.ones(size // 4, dtype=torch.float32)
    return [size / seconds for seconds in repeat_seconds(array.sum)]


def array_bytes(cache_bytes: int, free_bytes: int) -> int:
    """Return a size several times the last cache, at least 256 MiB, at most a quarter of what is free."""
    return min(max(256 * 2**20, 4 * cache_bytes), 4 * 2**30, max(64 * 2**20, free_bytes // 4)) // 64 * 64


def last_cache_bytes(root: str = "/sys/devices/system/cpu/cpu0/cache") -> int:
    """Return the size of the largest cache of a core, 0 when the kernel does not list them."""
    sizes = [0]
    if os.path.isdir(root):
        for index in os.listdir(root):
            with contextlib.suppress(OSError, ValueError, KeyError):
                with open(os.path.join(root, index, "size"), encoding="ascii") as file:
                    text = file.read().strip()
                sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return max(sizes)


def available_bytes() -> int:
    """Return the memory that is free to use without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        found = next(line for line in file if line.startswith("MemAvailable:"))
    return int(found.split()[1]) * 1024


def matrix_multiply(torch: Any, dtype: Any) -> list[float]:
    """Return floating point operations per second of square products that take 50 to 200 ms."""
    size, seconds = 128, 0.0
    while seconds < 0.04 and size < 8192:
        size *= 2
        left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
        product = torch.empty(size, size, dtype=dtype)
        torch.mm(left, right, out=product)
        seconds = _timed(functools.partial(torch.mm, left, right, out=product), 1)
    repeats = [_timed(lambda: torch.mm(left, right, out=product), 1) for _ in range(REPEATS)]
    return [2 * size**3 / seconds for seconds in repeats]


def kernel_dispatch(torch: Any) -> list[float]:
    """Return seconds of an operation with next to nothing to compute."""
    one = torch.ones(1)
    return repeat_seconds(lambda: torch.add(one, one, out=one))


# Collectives -----------------------------------------------------------------------------


def collective(torch: Any, specification: Mapping[str, Any]) -> dict[str, Any]:
    """Time one kind of message over all ranks; return seconds of each repeat by message size."""
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
            tensor = torch.ones(size // 2, dtype=torch.bfloat16)
            operation, messages = _message(distributed, specification["kind"], tensor, rank)
            sizes[str(size)] = [each / messages for each in _agreed_repeats(torch, distributed, operation, rank)]
        distributed.barrier()
        return {"kind": specification["kind"], "rank": rank, "sizes": sizes}
    finally:
        distributed.destroy_process_group()


def _message(distributed: Any, kind: str, tensor: Any, rank: int) -> tuple[Callable[[], object], int]:
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
    torch: Any, distributed: Any, operation: Callable[[], object], rank: int, budget_seconds: float = 0.7
) -> list[float]:
    """Repeat as often as rank 0 decides; other ranks must make exactly as many calls."""
    operation()
    distributed.barrier()
    seconds = _timed(operation, 1)
    calls = calls_for(seconds, REPEAT_SECONDS)
    repeats = repeats_for(seconds * calls, budget_seconds)
    agreed = torch.tensor([calls, repeats], dtype=torch.int64)
    distributed.broadcast(agreed, 0)
    calls, repeats = (int(value) for value in agreed)
    found = []
    for _ in range(repeats):
        distributed.barrier()
        found.append(_timed(operation, calls) / calls)
    return found if rank == 0 else []


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
