"""Share among the side-by-side measurements: the `cluster` command, pairs, freezing the samplers."""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bottleneck.profile import Profile, find_profile, load_profile


class Lab:
    """One lab that is up and configured, reached through the `cluster` command alone."""

    def __init__(self, profile: str, name: str) -> None:
        beside = Path(sys.executable).with_name("cluster")
        self._cluster = str(beside if beside.exists() else shutil.which("cluster") or "cluster")
        self.profile: Profile = load_profile(find_profile(profile))
        # Runs that only serve a comparison do not belong among a person's own.
        self._runs = tempfile.TemporaryDirectory(prefix="cluster-bench-")
        self._environment = {
            **os.environ,
            "CLUSTER_PROFILE": profile,
            "CLUSTER_LAB": name,
            "CLUSTER_RUNS": self._runs.name,
        }

    def command(self, *arguments: str) -> list[str]:
        return [self._cluster, *arguments]

    def popen(self, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as output:
            return subprocess.Popen(
                self.command(*arguments),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(self, *arguments: str, check: bool = True) -> str:
        finished = subprocess.run(
            self.command(*arguments), env=self._environment, capture_output=True, text=True, check=False
        )
        if check and finished.returncode:
            raise SystemExit(f"cluster {' '.join(arguments)} failed:\n{finished.stdout}{finished.stderr}")
        return finished.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def on(self, node: str, *command: str, check: bool = True) -> str:
        return self.run("lab", "exec", node, "--", *command, check=check)

    def samplers(self) -> dict[str, dict[str, Any]]:
        """Return each node's `telemetry.status`."""
        answers = json.loads(self.on("control", "salt", "--out=json", "--static", "*", "telemetry.status"))
        return {name: answers[node.hostname] for name, node in self.profile.nodes.items()}

    def signal_samplers(self, name: str) -> None:
        """Freeze (STOP) or thaw (CONT) every sampler.

        A sampler that is stopped outright is started again by the system, which is right to.
        """
        for node, status in self.samplers().items():
            if status["running"]:
                self.on(node, "kill", f"-{name}", str(status["pid"]))


def at_least_one(text: str) -> int:
    """Return an option's whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected a whole number from 1")
    return int(text)


def paired_ratio(tops: Sequence[float], bottoms: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Return the ratio of two quantities measured in pairs, with its confidence interval.

    The mean of the logarithms' differences with Student's t: a ratio's errors multiply.
    """
    logs = np.log(np.asarray(tops) / np.asarray(bottoms))
    middle = float(logs.mean())
    spread = math.inf
    if logs.size > 1:
        error = float(logs.std(ddof=1)) / math.sqrt(logs.size)
        spread = float(stats.t.ppf((1 + confidence) / 2, logs.size - 1)) * error
    return {
        "ratio": math.exp(middle),
        "low": math.exp(middle - spread),
        "high": math.exp(min(middle + spread, 700.0)),
        "pairs": int(logs.size),
        "confidence": confidence,
    }


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns, on standard error: standard output is for the JSON."""
    texts = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    for row in texts:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), file=sys.stderr)


def finish(document: dict[str, Any], output: Path | None) -> None:
    """Print the result as JSON, and keep it in a file when one is named."""
    print(_text(document))
    if output:
        write(document, output)


def write(document: dict[str, Any], output: Path) -> None:
    """Keep the result in a file."""
    output.write_text(_text(document) + "\n", encoding="utf-8")


def _text(document: dict[str, Any]) -> str:
    return json.dumps({"schema": 1, **document}, indent=1)


def end_marked(marker: str) -> int:
    """Kill every process of this machine whose environment carries a marker; return how many there were."""
    ended = 0
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and marker.encode() in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), 9)
                ended += 1
    return ended
