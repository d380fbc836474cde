"""What does watching cost? Output throughput and CPU time with the samplers at work and with them frozen.

Throughput: under one deployment, one long decode. While it runs the samplers are frozen and thawed in blocks of a few
seconds, in pairs of random order; a token counts for the block in which it came. Blocks of one run share its batch, its
prompts and the machine's mood, which separate runs do not: a difference of 1 % is beyond what those can show.
A block is shorter than the heartbeat's deadline, so that no node counts as lost.

CPU time: a quiet while with and one without samplers, and what the control node's CPU time grows by between them.

The lab must be up and configured; the deployment is started when it is not.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import Lab, finish, paired_ratio, print_table

REQUESTS = 4
# What a change of arms stirs up is over by then.
SETTLE_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--lab", default="demo")
    parser.add_argument("--deployment", default="tp2")
    parser.add_argument("--tokens", type=int, default=1900, help="output tokens of each of the 4 requests")
    parser.add_argument("--rounds", type=int, default=1, help="decodes, one after the other: more pairs of blocks")
    parser.add_argument("--block-seconds", type=float, default=3.0)
    parser.add_argument("--quiet-seconds", type=float, default=20.0, help="without load, for the CPU times")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the arms")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    lab = Lab(options.profile, options.lab)
    lab.run("deploy", options.deployment)
    lab.run("bench", "--requests", "4")
    samplers = sampler_pids(options.lab)
    if not samplers:
        raise SystemExit(f"no sampler runs in lab {options.lab}: cluster apply --lab {options.lab}")
    try:
        chooser = random.Random(options.seed)
        pairs = []
        for number in range(options.rounds):
            print(f"decode {number + 1} of {options.rounds} ...", file=sys.stderr, flush=True)
            pairs += decode_in_blocks(lab, samplers, options, chooser)
        if len(pairs) < 3:
            raise SystemExit(f"only {len(pairs)} pairs of blocks hold enough tokens: raise --tokens")
        cpu = quiet_cpu(lab, samplers, options.quiet_seconds)
    finally:
        send(samplers, signal.SIGCONT)
    # The batch is fixed: throughput is the inverse of the time between tokens.
    ratio = paired_ratio([pair["off"] for pair in pairs], [pair["on"] for pair in pairs])
    print_table(
        ("pair", "on, ms a token", "off, ms a token"),
        [(index + 1, pair["on"] * 1e3, pair["off"] * 1e3) for index, pair in enumerate(pairs)],
    )
    print(f"throughput on / off: {ratio['ratio']:.4f} ({ratio['low']:.4f} to {ratio['high']:.4f})", file=sys.stderr)
    for node, share in cpu["samplers"].items():
        print(f"sampler of {node}: {share:.4f} CPU seconds per second", file=sys.stderr)
    print(f"control node: {cpu['control']:+.4f} CPU seconds per second", file=sys.stderr)
    finish({"deployment": options.deployment, "itl_seconds": pairs, "throughput_ratio": ratio, **cpu}, options.output)


def decode_in_blocks(
    lab: Lab, samplers: list[int], options: argparse.Namespace, chooser: random.Random
) -> list[dict[str, float]]:
    """Freeze and thaw the samplers during one long decode; return each pair's mean time between tokens, seconds."""
    blocks: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "bench.json")
        load = ("--input", "32", "--output", str(options.tokens), "--requests", str(REQUESTS))
        process = lab.popen("bench", *load, "--concurrency", str(REQUESTS), "--no-probe", "--json", log=log)
        while process.poll() is None:
            for arm in chooser.sample(("on", "off"), 2):
                send(samplers, signal.SIGCONT if arm == "on" else signal.SIGSTOP)
                began = time.perf_counter()
                time.sleep(options.block_seconds)
                blocks.append((arm, began + SETTLE_SECONDS, time.perf_counter()))
        if process.returncode:
            raise SystemExit(f"cluster bench failed:\n{log.read_text()}")
        text = log.read_text()
        run = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
    client = json.loads(Path(run["folder"], "client.json").read_text())
    gaps = token_gaps(client)
    means = [(arm, [gap for at, gap in gaps if start + gap <= at <= end]) for arm, start, end in blocks]
    pairs = []
    for first, second in zip(means[::2], means[1::2], strict=True):
        pair = {arm: statistics.fmean(found) for arm, found in (first, second) if len(found) >= 4 * REQUESTS}
        if len(pair) == 2:
            pairs.append(pair)
    return pairs


def token_gaps(client: dict[str, Any]) -> list[tuple[float, float]]:
    """Return (arrival, time since the one before) of every token but each request's first, on perf_counter's clock.

    That clock is the machine's monotonic one, the same in every process of it and so in every node of a lab.
    """
    gaps = []
    for began, ttft, itls in zip(client["start_times"], client["ttfts"], client["itls"], strict=True):
        at = began + ttft
        for gap in itls:
            at += gap
            gaps.append((at, gap))
    return gaps


def quiet_cpu(lab: Lab, samplers: list[int], seconds: float) -> dict[str, Any]:
    """Return the CPU seconds per second of the samplers, and what they add on the control node."""
    shares, used = {}, {}
    for arm, number in (("off", signal.SIGSTOP), ("on", signal.SIGCONT)):
        send(samplers, number)
        # What was held back is sent first, and is not to be counted.
        time.sleep(6)
        # The question itself costs the control node, so it stays outside of what is counted there.
        asked, told = time.monotonic(), lab.samplers() if arm == "on" else {}
        began, before = time.monotonic(), control_cpu_seconds(lab)
        time.sleep(seconds)
        shares[arm] = (control_cpu_seconds(lab) - before) / (time.monotonic() - began)
        if arm == "on":
            after, asked = lab.samplers(), time.monotonic() - asked
            used = {node: (after[node]["cpu_s"] - told[node]["cpu_s"]) / asked for node in after}
    return {"samplers": used, "control": shares["on"] - shares["off"], "control_with": shares["on"]}


def control_cpu_seconds(lab: Lab) -> float:
    """Return the CPU seconds of everything that ever ran on the control node."""
    status: dict[str, Any] = lab.json("lab", "status")
    return float(status["nodes"]["control"]["cpu_seconds"])


def sampler_pids(lab: str) -> list[int]:
    """Return the process ids, on this machine, of a lab's samplers."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if not entry.name.isdigit():
                continue
            command = (entry / "cmdline").read_bytes().split(b"\0")
            is_sampler = any(part.endswith(b"/sampler.py") for part in command[:3])
            if is_sampler and f"/cluster/{lab}/" in (entry / "cgroup").read_text():
                found.append(int(entry.name))
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    """Signal each process that still is there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    main()
