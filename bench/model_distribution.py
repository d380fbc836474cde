"""A model's way from the hub to every node, with real bytes: seconds, MB/s and peak memory of each process.

A checkpoint of random weights of a profile's shape is made, served by a server in the hub's shape on loopback,
downloaded by the control node's model store (cut off once by SIGKILL, and taken up again), and fetched by two nodes at
the same time, by their own module, from the boot service. Everything is a process of its own; every file is checked by
its SHA-256 on each way. What is measured is this machine's disk and processor: there is no wire.

    python bench/model_distribution.py --profile arc-a770/v0.1 --folder /var/tmp/models
    python bench/model_distribution.py --folder /var/tmp/models     (the embedded model: what does not grow with it)

It needs the embedded lab's engine (its Python has torch; `cluster demo` installs it) and four times the model's size on
the disk; the folder is removed afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bottleneck.profile import find_profile, load_profile
from netboot.boot import hub
from netboot.boot.models import read_index
from tests.boot_bench import bench
from tests.by_file import load
from tests.hub_folder import HubFolder, serve

ROOT = Path(__file__).resolve().parents[1]
SOURCE, NAME = "org/m", "m-0123456789ab"
NODES = ("node0", "node1")
CUT_SHARE = 0.4
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Step:
    """One process, or several at once, from begin to end.

    Attributes
    ----------
    peak_bytes
        Most memory that was resident, of the largest of them.
    """

    name: str
    seconds: float
    bytes: int
    peak_bytes: int
    note: str = ""

    def row(self) -> str:
        """Return it as a row of the table."""
        rate = f"{self.bytes / self.seconds / 1e6:.0f}" if self.bytes else "-"
        return f"| {self.name} | {self.seconds:.1f} | {rate} | {self.peak_bytes / 1e6:.0f} | {self.note} |"


def role(*words: object, **options: Any) -> subprocess.Popen[str]:
    """Start this program in another part."""
    argv = [sys.executable, __file__, "--role", *map(str, words)]
    return subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, **options)


def ended(process: subprocess.Popen[Any], expected: int = 0) -> int:
    """Wait for a process; return its peak memory in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise SystemExit(f"{process.args}: ended with {process.returncode}; expected {expected}")
    return usage.ru_maxrss * 1024


def peak_of(process: subprocess.Popen[Any]) -> int:
    """Return the peak memory of a process that runs."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@contextlib.contextmanager
def server(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a part that serves until its input ends; gives it and its address."""
    process = role(*words, stdin=subprocess.PIPE)
    assert process.stdin and process.stdout
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(60)


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def make(profile: str, folder: Path) -> Step:
    """Make the checkpoint by the nodes' own script."""
    model = load_profile(find_profile(profile)).model
    tools = load_profile(find_profile("embedded"))
    python = Path(tools.engine_of("node0").directory()) / "bin/python"
    argv = [str(python), str(ROOT / "salt/model/files/make_model.py"), "--shape", model.shape.model_dump_json()]
    argv += ["--quantization", model.quantization.model_dump_json(), "--out", str(folder)]
    started = time.monotonic()
    peak = ended(subprocess.Popen(argv))
    seconds = time.monotonic() - started
    files = len(list(folder.iterdir()))
    return Step("the checkpoint is made", seconds, size_of(folder), peak, f"{files} files")


def downloads(address: str, store: Path, total: int) -> list[Step]:
    """Download it to the store: cut off once, taken up again."""
    partial = store / f".{NAME}.downloaded"
    first, began = role("download", address, store), 0.0
    while size_of(partial) < CUT_SHARE * total:
        if first.poll() is not None:
            raise SystemExit("the download ended before it was cut off")
        # Not counted: starting Python.
        began = began or (time.monotonic() if partial.is_dir() else 0.0)
        time.sleep(POLL_SECONDS)
    cut = time.monotonic() - began if began else POLL_SECONDS
    first.send_signal(signal.SIGKILL)
    peak = ended(first, -signal.SIGKILL)
    there = size_of(partial)
    steps = [Step("download, cut off by SIGKILL", cut, there, peak, f"{there / total:.0%} had arrived")]
    second = role("download", address, store)
    assert second.stdout
    *reports, seconds = second.stdout.read().splitlines()
    peak = ended(second)
    note = f"what was there is read again; {len(reports)} reports of progress"
    return [*steps, Step("the same again, to the end", float(seconds), total - there, peak, note)]


def fetches(address: str, folder: Path, total: int) -> Step:
    """Have two nodes fetch it at the same time, and watch how far they are as `model.progress` says."""
    nodes = [role("node", address, folder / name / NAME) for name in NODES]
    progress = [folder / name / f"{NAME}.partial.progress" for name in NODES]
    seen: set[str] = set()
    while any(node.poll() is None for node in nodes):
        for path in progress:
            with contextlib.suppress(FileNotFoundError):
                seen.add(path.read_text())
        time.sleep(POLL_SECONDS)
    if any(node.returncode for node in nodes):
        raise SystemExit("a node did not fetch the model")
    answers = [node.stdout.read().split() for node in nodes if node.stdout]
    seconds, peak = max(float(each[0]) for each in answers), max(int(each[1]) for each in answers)
    return Step("two nodes fetch it at once", seconds, 2 * total, peak, f"{len(seen)} reports of progress seen")


def play(part: str, words: list[str]) -> None:
    """Be one of the processes."""
    if part == "hub":
        model = HubFolder(Path(words[0]))
        model.siblings()
        with serve(model, SOURCE) as address:
            print(address, flush=True)
            sys.stdin.read()
            Path(words[1]).write_text(json.dumps({"sent": model.sent_bytes, "ranges": model.ranges}))
    elif part == "service":
        with bench(Path(words[0])) as service:
            print(f"http://127.0.0.1:{service.port}/models", flush=True)
            sys.stdin.read()
    elif part == "download":
        asked, began = hub.Hub(words[0]), time.monotonic()
        hub.download(SOURCE, Path(words[1]), NAME, asked, report=lambda there, total: print(there, total, flush=True))
        print(time.monotonic() - began)
    else:
        node: Any = load("_modules/model.py", "model_module_of_node")
        began = time.monotonic()
        if not node.fetch(words[1], words[0]):
            raise SystemExit("the control node has it not")
        print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measure(profile: str, folder: Path) -> dict[str, Any]:
    """Run the whole way; return what was measured."""
    steps = [make(profile, folder / "hub")]
    total = size_of(folder / "hub")
    counted = folder / "hub.json"
    store = folder / "models"
    with server("hub", folder / "hub", counted) as (process, address):
        steps += downloads(address, store, total)
        steps.append(Step("the hub's server", sum(step.seconds for step in steps[1:]), 0, peak_of(process)))
    sent = json.loads(counted.read_text())
    if len(read_index(store / NAME).files) != len(list((folder / "hub").iterdir())):
        raise SystemExit("not every file was downloaded")
    # For the disk's sake; the store has it now.
    shutil.rmtree(folder / "hub")
    with server("service", folder) as (process, address):
        steps.append(fetches(address, folder, total))
        steps.append(Step("the boot service", steps[-1].seconds, 0, peak_of(process)))
    for name in NODES:
        if size_of(folder / name / NAME) != total:
            raise SystemExit(f"{name} has {size_of(folder / name / NAME)} bytes; expected {total}")
    return {"profile": profile, "bytes": total, **sent, "steps": [asdict(step) for step in steps]}


def markdown(found: dict[str, Any]) -> str:
    """Return what was measured as a table."""
    lines = [
        f"{found['profile']}: {found['bytes'] / 1e9:.2f} GB; the hub sent {found['sent'] / 1e9:.2f} GB",
        "",
        "| | seconds | MB/s | peak memory, MB | |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(Step(**step).row() for step in found["steps"])]) + "\n"


def main() -> None:
    """Read the command line; measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--folder", type=Path, help="a new one, on the disk that is measured")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play(options.role[0], options.role[1:])
        return
    if options.folder is None or options.folder.exists():
        parser.error(f"--folder {options.folder}; expected one that does not exist yet")
    options.folder.mkdir(parents=True)
    try:
        found = measure(options.profile, options.folder)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
