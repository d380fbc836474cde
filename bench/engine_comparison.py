"""Compare engines on one load: the same model, prompts and lab, one engine after the other.

    cluster lab up && cluster apply
    python bench/engine_comparison.py --rounds 3 --output engines.json
    python bench/engine_comparison.py --page engines.json

Each round deploys every engine once, in an order that is drawn anew, so that what drifts on the machine meets all of
them; a start counts once. The table goes to standard error as it is measured, the JSON to the file after each start:
with `--starts` so many are made and the next call with the same file goes on behind them, in this lab or in another.
What is deployed is the profile's: tensor parallel over both nodes for vLLM, a copy on each node for vLLM and OpenVINO
GenAI, layers over remote calls for llama.cpp. `--page` prints the page of the docs that is made of a file.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import Lab, at_least_one, print_table, write

DEPLOYMENTS = ("tp2", "replicas", "genai", "llamacpp")
# What a person compares, from a run's headline; seconds, and tokens a second.
FIGURES = {
    "output tokens/s": "output_tokens_per_second",
    "first token, ms": "ttft_seconds",
    "time per output token, ms": "tpot_seconds",
}


def measured(lab: Lab, deployment: str, options: list[str]) -> dict[str, Any]:
    """Deploy, send the load, take it down; return the start's seconds, the run's headline and what served."""
    started = time.monotonic()
    lab.run("deploy", deployment)
    seconds = time.monotonic() - started
    try:
        # With a request that failed the command fails, and says as much as without.
        result = json.loads(lab.run("bench", "--no-probe", *options, "--json", check=False))
    finally:
        lab.run("undeploy")
    (point,) = result["points"]
    versions = Path(result["folder"]) / "versions.json"
    return {
        "deployment": deployment,
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "start_seconds": round(seconds, 1),
        "headline": point["headline"],
        "versions": json.loads(versions.read_text(encoding="utf-8")) if versions.exists() else {},
    }


def drawn(deployments: list[str], rounds: int, seed: int) -> list[str]:
    """Return which deployment is started when: every one once a round, in an order of the round's own."""
    return [
        name
        for number in range(rounds)
        for name in random.Random(f"{seed} {number}").sample(deployments, len(deployments))
    ]


def begun(path: Path, load: list[str], seed: int) -> dict[str, Any]:
    """Return what a file has so far; that of another load ends the program."""
    if not path.exists():
        return {"load": load, "seed": seed, "ceilings": None, "measured": []}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if (document["load"], document["seed"]) != (load, seed):
        raise SystemExit(
            f"{path}: measured with {' '.join(document['load'])} and seed {document['seed']}; expected "
            f"{' '.join(load)} and seed {seed}: name another file with --output"
        )
    return document


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


PAGE = """# Engines on one load

Made by `python bench/engine_comparison.py --page FILE`, of what it measured on {days},
{machine}.
`cluster bench {load}`.

The embedded model in 4 bit, in each engine's own form, in a lab of two nodes of a core each: vLLM with tensor
parallelism over both (`tp2`) and as a copy on each (`replicas`), OpenVINO GenAI as a copy on each (`genai`), llama.cpp
with its layers over remote calls (`llamacpp`). Medians over the starts; times are medians of a run's requests.

{table}
Versions: {versions}.

It says what these engines do with a tiny model on two processor cores. On cards the order can be another: for a
profile `cluster plan-deployment` predicts it ([how to choose](../howto/choose-a-deployment.md)); this command measures.
"""


def page(document: dict[str, Any]) -> str:
    """Return the page of the docs that is made of a file."""
    found = document["measured"]
    if not found:
        raise SystemExit("nothing was measured yet: run it without --page first")
    machines = [node["machine"] for node in document["ceilings"]["nodes"].values()]
    heads = ["deployment", "starts", "failed", *FIGURES, "span", "start, s"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows(found):
        lines.append(f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row)} |")
    versions = {
        f"{name} {version}"
        for each in found
        for node in each["versions"].get("nodes", {}).values()
        for name, version in node.get("engine", {}).items()
    }
    return PAGE.format(
        days=" and ".join(sorted({each["day"] for each in found})),
        machine=" and ".join(sorted({f"nodes of {each['cores']} core of {each['cpu_model']}" for each in machines})),
        load=" ".join(document["load"]),
        table="\n".join(lines) + "\n",
        versions=", ".join(sorted(versions)) or "not recorded",
    )


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
    parser.add_argument("--starts", type=at_least_one, help="make so many and end; the next call goes on")
    parser.add_argument("--output", type=Path, default=Path("engines.json"), help="what is measured, kept and gone on")
    parser.add_argument("--page", type=Path, metavar="FILE", help="print the page of the docs; measure nothing")
    arguments = parser.parse_args()
    if arguments.page is not None:
        print(page(json.loads(arguments.page.read_text(encoding="utf-8"))), end="")
        return
    lab = Lab(arguments.profile, arguments.lab)
    unknown = sorted(set(arguments.deployments) - set(lab.profile.deployments))
    if unknown:
        parser.error(f"no deployment {', '.join(unknown)}; expected of {', '.join(lab.profile.deployments)}")
    load = []
    for name in ("requests", "concurrency", "input"):
        load += [f"--{name}", str(getattr(arguments, name))]
    load += ["--output", str(arguments.tokens)]
    document = begun(arguments.output, load, arguments.seed)
    order = drawn(arguments.deployments, arguments.rounds, arguments.seed)
    done = len(document["measured"])
    for number, deployment in enumerate(order[done : None if arguments.starts is None else done + arguments.starts]):
        print(f"start {done + number + 1} of {len(order)}: {deployment}", file=sys.stderr, flush=True)
        if document["ceilings"] is None:
            # What predictions are made of; nothing is deployed yet.
            document["ceilings"] = lab.json("probe")["ceilings"]
        document["measured"].append(measured(lab, deployment, load))
        write(document, arguments.output)
        print_table(["deployment", "starts", "failed", *FIGURES, "span", "start, s"], rows(document["measured"]))


if __name__ == "__main__":
    main()
