"""Compare engines on one load: the same model, prompts and lab, one engine after the other.

    cluster lab up && cluster apply
    python bench/engine_comparison.py --rounds 3 --output engines.json

Each round deploys every engine once, in an order that is drawn anew, so that what drifts on the machine meets all of
them; a start counts once. The table goes to standard error as it is measured, the JSON to standard output at the end.
What is deployed is the profile's: tensor parallel over both nodes for vLLM, a copy on each node for vLLM and OpenVINO
GenAI, layers over remote calls for llama.cpp.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import Lab, at_least_one, finish, print_table

DEPLOYMENTS = ("tp2", "replicas", "genai", "llamacpp")
# What a person compares, from a run's headline; seconds, and tokens a second.
FIGURES = {
    "output tokens/s": "output_tokens_per_second",
    "first token, ms": "ttft_seconds",
    "time per output token, ms": "tpot_seconds",
}


def measured(lab: Lab, deployment: str, options: list[str]) -> dict[str, Any]:
    """Deploy, send the load, take it down; return the start's seconds and the run's headline."""
    started = time.monotonic()
    lab.run("deploy", deployment)
    seconds = time.monotonic() - started
    try:
        (point,) = lab.json("bench", "--no-probe", *options)["points"]
    finally:
        lab.run("undeploy")
    return {"deployment": deployment, "start_seconds": round(seconds, 1), "headline": point["headline"]}


def figure(headline: dict[str, Any], key: str) -> float:
    """Return one figure of a headline; of times the median, in milliseconds."""
    value = headline[key]
    return float(value["median"]) * 1e3 if isinstance(value, dict) else float(value)


def rows(found: list[dict[str, Any]]) -> list[list[object]]:
    """Return a row for each deployment: medians over the rounds, and the span of the throughput."""
    table: list[list[object]] = []
    for deployment in dict.fromkeys(each["deployment"] for each in found):
        mine = [each for each in found if each["deployment"] == deployment]
        values = {name: [figure(each["headline"], key) for each in mine] for name, key in FIGURES.items()}
        rates = values["output tokens/s"]
        table.append(
            [
                deployment,
                len(mine),
                sum(each["headline"]["failed"] for each in mine),
                *(statistics.median(each) for each in values.values()),
                f"{min(rates):.0f} to {max(rates):.0f}",
                statistics.median(each["start_seconds"] for each in mine),
            ]
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--lab", default="demo", help="a lab that is up and configured")
    parser.add_argument("--deployments", nargs="+", default=list(DEPLOYMENTS))
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--requests", type=at_least_one, default=16)
    parser.add_argument("--concurrency", type=at_least_one, default=4)
    parser.add_argument("--input", type=at_least_one, default=256, help="tokens of a prompt")
    parser.add_argument("--tokens", type=at_least_one, default=32, help="tokens of an answer")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the engines; prompts have the profile's")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lab = Lab(arguments.profile, arguments.lab)
    unknown = sorted(set(arguments.deployments) - set(lab.profile.deployments))
    if unknown:
        parser.error(f"no deployment {', '.join(unknown)}; expected of {', '.join(lab.profile.deployments)}")
    options = []
    for name in ("requests", "concurrency", "input"):
        options += [f"--{name}", str(getattr(arguments, name))]
    options += ["--output", str(arguments.tokens)]
    order, found = random.Random(arguments.seed), []
    header = ["deployment", "starts", "failed", *FIGURES, "span", "start, s"]
    for number in range(arguments.rounds):
        for deployment in order.sample(arguments.deployments, len(arguments.deployments)):
            print(f"round {number + 1} of {arguments.rounds}: {deployment}", file=sys.stderr, flush=True)
            found.append(measured(lab, deployment, options))
        print_table(header, rows(found))
    finish({"load": options, "seed": arguments.seed, "measured": found}, arguments.output)


if __name__ == "__main__":
    main()
