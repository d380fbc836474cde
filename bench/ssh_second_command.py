"""Measure what a second command on the control node costs, beside a bare multiplexed ssh: pairs in turn.

    python bench/ssh_second_command.py [--pairs 30]

Prints one JSON document: the median of each side in seconds and the median of the pairs' ratios. `transport` is the
command as every `cluster` command runs it (supervised, with its status and signals); `bare` is ssh alone on the same
connection; `command` is the whole `cluster control cmd -- true`, with Python's start and imports.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from remote.host_keys import show_key, trust
from remote.session import Session
from remote.target import Target
from tests.integration.sshd import laptop_environment, server

REPOSITORY = Path(__file__).resolve().parents[1]


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    pairs = parser.parse_args().pairs
    with server() as sshd, tempfile.TemporaryDirectory(prefix="cb-") as folder:
        environment = laptop_environment(sshd, Path(folder), Path(folder) / "there")
        os.environ["XDG_RUNTIME_DIR"] = environment["XDG_RUNTIME_DIR"]
        known = Path(environment["XDG_CONFIG_HOME"]) / "cluster" / "known_hosts"
        target = Target(sshd.host, known, sshd.port, sshd.identity, environment["CLUSTER_CONTROL_DIRECTORY"])
        trust(target, show_key(target))
        bare = [*target.ssh(), "-T", target.host, "true"]
        whole = [sys.executable, "-c", "from cli.main import app; app()", "control", "cmd", "--", "true"]

        def transport() -> None:
            running = Session(target, ["true"], on_stderr=lambda _: None)
            running.stdout.read()
            assert running.wait() == 0

        sides: dict[str, Callable[[], object]] = {
            "bare": lambda: subprocess.run(bare, check=True, stdin=subprocess.DEVNULL),
            "transport": transport,
            "command": lambda: subprocess.run(
                whole, check=True, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL
            ),
        }
        sides["bare"]()  # makes the connection
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(pairs):
            for name, action in sides.items():
                seconds[name].append(timed(action))
        subprocess.run([*target.ssh(), "-O", "exit", target.host], capture_output=True, check=False)
    result: dict[str, object] = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    for name in ("transport", "command"):
        ratios = [value / base for value, base in zip(seconds[name], seconds["bare"], strict=True)]
        result[f"{name}_to_bare"] = statistics.median(ratios)
    print(json.dumps({"pairs": pairs, **result}, indent=1))


if __name__ == "__main__":
    main()
