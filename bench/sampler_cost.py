"""What does watching cost? Output throughput and CPU time with the samplers at work and with them frozen.

Under one deployment, in pairs of random order: one run of the workload and then a quiet while, with and without
samplers. Reported are the ratio of output throughput with its 95 % interval, the CPU seconds per second of each
sampler, and what the control node's CPU time grows by when batches arrive. The lab must be up and configured; the
deployment is started when it is not.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import Lab, finish, paired, paired_ratio, print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--lab", default="demo")
    parser.add_argument("--deployment", default="tp2")
    parser.add_argument("--pairs", type=int, default=6, help="each takes about a minute")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--quiet-seconds", type=float, default=15.0, help="without load, for the CPU times")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the arms")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    lab = Lab(options.profile, options.lab)
    lab.run("deploy", options.deployment)
    lab.run("bench", "--requests", "4")
    arms = {
        "on": lambda: measure(lab, options, watching=True),
        "off": lambda: measure(lab, options, watching=False),
    }
    try:
        found = paired(options.pairs, arms, options.seed)
    finally:
        lab.signal_samplers("CONT")
    rates = {name: [pair[name]["output_tokens_per_second"] for pair in found] for name in arms}
    ratio = paired_ratio(rates["on"], rates["off"])
    control = [pair["on"]["control_cpu_ratio"] - pair["off"]["control_cpu_ratio"] for pair in found]
    samplers = {
        node: statistics.median(pair["on"]["sampler_cpu_ratio"][node] for pair in found)
        for node in found[0]["on"]["sampler_cpu_ratio"]
    }
    rows = [
        (index + 1, pair["on"]["output_tokens_per_second"], pair["off"]["output_tokens_per_second"], control[index])
        for index, pair in enumerate(found)
    ]
    print_table(("pair", "on, tokens/s", "off, tokens/s", "control CPU, on - off"), rows)
    print(f"throughput on / off: {ratio['ratio']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})", file=sys.stderr)
    for node, share in samplers.items():
        print(f"sampler of {node}: {share:.4f} CPU seconds per second", file=sys.stderr)
    print(f"control node: {statistics.median(control):+.4f} CPU seconds per second", file=sys.stderr)
    document = {
        "deployment": options.deployment,
        "pairs": found,
        "throughput_ratio": ratio,
        "sampler_cpu_seconds_per_second": samplers,
        "control_cpu_seconds_per_second": statistics.median(control),
    }
    finish(document, options.output)


def measure(lab: Lab, options: argparse.Namespace, watching: bool) -> dict[str, Any]:
    """Send the workload once, then watch the CPU times of a quiet while."""
    lab.signal_samplers("CONT" if watching else "STOP")
    # What was held back while frozen is sent first, and is not to be counted.
    time.sleep(5)
    # The same prompts in both arms; every run has its own generator process.
    run = lab.json("bench", "--requests", str(options.requests), "--note", f"sampler {'on' if watching else 'off'}")
    (point,) = run["points"]
    sampled, used, began = lab.samplers(), control_cpu_seconds(lab), time.monotonic()
    time.sleep(options.quiet_seconds)
    used = control_cpu_seconds(lab) - used
    seconds = time.monotonic() - began
    after = lab.samplers()
    busy = {node: after[node].get("cpu_s", 0.0) - sampled[node].get("cpu_s", 0.0) for node in after}
    return {
        "output_tokens_per_second": point["headline"]["output_tokens_per_second"],
        "ttft_seconds": point["headline"]["ttft_seconds"],
        "tpot_seconds": point["headline"]["tpot_seconds"],
        "control_cpu_ratio": used / seconds,
        # From the first question to the second, which is a little longer than the quiet while.
        "sampler_cpu_ratio": {node: value / seconds for node, value in busy.items()},
    }


def control_cpu_seconds(lab: Lab) -> float:
    """Return the CPU seconds of everything that ever ran on the control node."""
    status: dict[str, Any] = lab.json("lab", "status")
    return float(status["nodes"]["control"]["cpu_seconds"])


if __name__ == "__main__":
    main()
