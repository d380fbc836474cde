"""Measure what watching costs: output throughput and CPU time with everything that watches at work, and with it frozen.

The deployment serves the profile's workload in a closed loop. Meanwhile the samplers and the control node's `telemetry`
engine are frozen and thawed, a window (`telemetry.window`) at a time, in pairs of random order. With them frozen there
are no samples, no events, no readings of the engine's metrics and no windows, so no runs of the reactor either; with
them thawed each comes at the rate it always has. Blocks of one run share its engine, its prompts and the machine's
mood, which separate runs do not: a difference of 1 % is beyond what those can show.

The number of requests under way is fixed, so throughput is the inverse of a request's latency. A block has that of the
requests that lie in it whole.

CPU time: what the samplers used in the blocks they were at work in, and what the control node used more in those.

The lab must be up and configured; the deployment is started when it is not. With `--pool` nothing is run: results of
several labs are put together.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from common import Lab, at_least_one, finish, paired_ratio, print_table, write

from lab import node_processes
from lab.layout import CONTROL
from lab.requirements import find_hierarchy

# What a change of arms stirs up, and the last event before it, is over by then.
SETTLE_SECONDS = 0.5
LEAST_REQUESTS = 3
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--lab", default="demo")
    parser.add_argument("--deployment", default="tp2")
    parser.add_argument("--requests", type=int, default=400, help="of each load; 400 take about 3 minutes on two cores")
    parser.add_argument(
        "--rounds", type=at_least_one, default=2, help="loads, one after the other: more pairs of blocks"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order of the arms")
    parser.add_argument("--output", type=Path, help="write the JSON here as well, after every load")
    parser.add_argument("--pool", type=Path, nargs="+", metavar="FILE", help="put earlier results together")
    options = parser.parse_args()
    if options.pool:
        finish(
            result([pair for path in options.pool for pair in json.loads(path.read_text())["pairs"]]), options.output
        )
        return
    lab = Lab(options.profile, options.lab)
    lab.run("deploy", options.deployment)
    lab.run("bench", "--requests", "8")
    watching = Watching(options.lab)
    chooser = random.Random(options.seed)
    pairs: list[dict[str, dict[str, float]]] = []
    try:
        for number in range(options.rounds):
            print(f"load {number + 1} of {options.rounds} ...", file=sys.stderr, flush=True)
            pairs += pairs_of(*load_in_blocks(lab, watching, options.requests, chooser))
            if options.output and len(pairs) > 1:
                write({"schema": 1, **result(pairs)}, options.output)
    finally:
        watching.thaw()
    if len(pairs) < 2:
        raise SystemExit(f"{len(pairs)} pair of blocks holds {LEAST_REQUESTS} whole requests: raise --requests")
    print_table(
        ("pair", "on, s a request", "off, s a request"),
        [
            (index + 1, pair["on"]["latency_seconds"], pair["off"]["latency_seconds"])
            for index, pair in enumerate(pairs)
        ],
    )
    found = result(pairs)
    ratio = found["throughput_ratio"]
    print(f"throughput on / off: {ratio['ratio']:.4f} ({ratio['low']:.4f} to {ratio['high']:.4f})", file=sys.stderr)
    print(f"samplers together: {found['samplers']:.4f} CPU seconds per second", file=sys.stderr)
    print(f"control node: {found['control']:+.4f} CPU seconds per second", file=sys.stderr)
    finish({"deployment": options.deployment, **found}, options.output)


def result(pairs: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return what pairs of blocks say: the ratio of throughputs, and CPU seconds per second."""
    on, off = ([pair[arm] for pair in pairs] for arm in ("on", "off"))
    return {
        "throughput_ratio": paired_ratio(
            [block["latency_seconds"] for block in off], [block["latency_seconds"] for block in on]
        ),
        "samplers": fmean(block["samplers"] for block in on),
        "control": fmean(block["control"] for block in on) - fmean(block["control"] for block in off),
        "pairs": list(pairs),
    }


class Watching:
    """The processes of a lab that watch: its samplers, and the control node's `telemetry` engine."""

    def __init__(self, lab: str) -> None:
        self._lab = lab
        self._samplers = processes(lab, "/sampler.py")
        self._engines = processes(lab, "engines.telemetry")
        if not self._samplers or not self._engines:
            raise SystemExit(f"nothing watches in lab {lab}; next: cluster apply --lab {lab}")

    def freeze(self) -> None:
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._samplers + self._engines:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds of the samplers, and of everything that ever ran on the control node."""
        ticks = 0
        for pid in self._samplers:
            sampler = node_processes.stat(pid)
            if sampler is None:
                raise RuntimeError(f"sampler {pid} has ended; expected it to run through the measurement")
            ticks += sampler.user_ticks + sampler.system_ticks
        control = find_hierarchy().usage(self._lab, CONTROL).cpu_seconds
        return {"samplers": ticks / TICKS_PER_SECOND, "control": control}


def processes(lab: str, word: str) -> list[int]:
    """Return the process ids, on this machine, of those of a lab with a word in their command line's start."""
    found = []
    for pid in find_hierarchy().processes(lab):
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(word.encode() in part for part in command[:4]):
                found.append(pid)
    return found


def load_in_blocks(
    lab: Lab, watching: Watching, requests: int, chooser: random.Random
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """Freeze and thaw what watches during one load.

    Returns
    -------
    blocks : list of dict
        `arm`, `start` and `end` on perf_counter's clock, CPU seconds per second of `samplers` and `control`; two of
        both arms in turn.
    requests : list of (start, end)
        The load's requests, on the same clock: the machine's monotonic one, the same in every node of a lab.
    """
    window = lab.profile.telemetry.window_seconds
    concurrency = lab.profile.workload.concurrency
    blocks: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "bench.json")
        load = ("--requests", str(requests), "--concurrency", str(concurrency), "--no-probe", "--json")
        process = lab.popen("bench", *load, log=log)
        _sleep_to(window)
        while process.poll() is None:
            for arm in chooser.sample(("on", "off"), 2):
                watching.thaw() if arm == "on" else watching.freeze()
                before, start = watching.cpu_seconds(), time.perf_counter()
                _sleep_to(window)
                after, end = watching.cpu_seconds(), time.perf_counter()
                used = {name: (after[name] - before[name]) / (end - start) for name in after}
                blocks.append({"arm": arm, "start": start + SETTLE_SECONDS, "end": end, **used})
        watching.thaw()
        text = log.read_text()
        if process.returncode:
            raise SystemExit(f"cluster bench failed:\n{text}")
        run = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
    client = json.loads(Path(run["folder"], "client.json").read_text())
    times = zip(client["start_times"], client["ttfts"], client["itls"], strict=True)
    return blocks, [(began, began + ttft + sum(itls)) for began, ttft, itls in times]


def _sleep_to(window: float) -> None:
    """Sleep until a window has ended, and its last event has been taken."""
    now = time.time() - SETTLE_SECONDS
    time.sleep((now // window + 1) * window - now)


def pairs_of(
    blocks: Sequence[dict[str, Any]], requests: Sequence[tuple[float, float]]
) -> list[dict[str, dict[str, float]]]:
    """Return the pairs of blocks that the load fills, each arm with the mean latency of its whole requests."""
    first, last = min(start for start, _ in requests), max(start for start, _ in requests)
    pairs = []
    for pair in zip(blocks[::2], blocks[1::2], strict=False):
        found: dict[str, dict[str, float]] = {}
        for block in pair:
            inside = [end - start for start, end in requests if block["start"] <= start and end <= block["end"]]
            if first <= block["start"] and block["end"] <= last and len(inside) >= LEAST_REQUESTS:
                used = {name: block[name] for name in ("samplers", "control")}
                found[block["arm"]] = {"latency_seconds": fmean(inside), "requests": len(inside), **used}
        if len(found) == 2:
            pairs.append(found)
    return pairs


if __name__ == "__main__":
    main()
