"""Does it cost anything? `cluster deploy` against the same `vllm serve` commands typed by hand.

Both arms stand in the same lab, on the same nodes, with the same arguments (but for the ports) and environment. One is
the whole product: supervisor, samplers, engine. The other is vLLM alone: no supervisor, samplers frozen (`--watched`
leaves them to both; what they cost is told more exactly by `bench/sampler_cost.py`). Both are started,
then the same load from the same generator goes to one after the other, in pairs of random order: while one is measured
the other has nothing to do. A start of vLLM has a speed of its own, 2 to 3 % up or down, so both are started afresh for
each round, in random order, and rounds are what the interval counts: more pairs of one round do not narrow it below
that. The result is the ratio of output throughput with its 95 % interval. The lab must be up and configured
(`cluster lab up`, `cluster apply`), with nothing deployed.

Many rounds take a machine of many cores: several labs side by side, each with `--output`, and then `--pool` of their
files, which are written again after each round.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Lab, at_least_one, end_marked, finish, paired_ratio, print_table, write
from process_attributes import attributes, differences, serving

from bottleneck.load.results import headline
from bottleneck.load.workload import Load, client_arguments, points
from bottleneck.plan.nodes import worker_specs

READY_SECONDS = 300.0
ARMS = ("cluster", "by hand")
# The user of the other arm's engine: both write into its cache. Its Python may lie in a person's folder.
AS_ENGINE = (
    *("setpriv", "--reuid=cluster-engine", "--regid=cluster-engine", "--init-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--no-new-privs"),
    *("env", "HOME=/var/cache/cluster/engine", "USER=cluster-engine", "LOGNAME=cluster-engine"),
)
# The key of the API, where it is: on no command line.
WITH_KEY = 'OPENAI_API_KEY=$(cat /var/lib/cluster/secrets/engine-api.key) exec "$@"'
PORT_OFFSET = 500
MARKER = "CLUSTER_BY_HAND"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--lab", default="demo")
    parser.add_argument("--deployment", default="tp2")
    parser.add_argument("--rounds", type=at_least_one, default=8, help="each starts both, about 2 minutes")
    parser.add_argument("--pairs", type=int, default=2, help="of measurements in each round, about a minute each")
    parser.add_argument(
        "--watched",
        action="store_true",
        help="let the samplers run for both arms: what is left is what starting by `cluster deploy` costs",
    )
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1, help="of the order of the arms and of the prompts")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    parser.add_argument("--pool", type=Path, nargs="+", help="measure nothing: put the JSON of several runs together")
    options = parser.parse_args()
    if options.pool:
        finish(pooled([json.loads(file.read_text()) for file in options.pool]), options.output)
        return
    lab = Lab(options.profile, options.lab)
    (point,) = points(
        lab.profile.workload, concurrency=[options.concurrency], requests=options.requests, seed=options.seed
    )
    lab.run("undeploy")
    chooser = random.Random(options.seed)
    described = {"deployment": options.deployment, "watched": options.watched, "point": point.to_json()}
    rounds = []
    for number in range(options.rounds):
        rounds.append(one_round(lab, options, point, chooser, number))
        document = {**described, "rounds": rounds, "ratio": ratio_over_rounds(rounds)}
        if options.output:
            write(document, options.output)
    pairs = [pair for each in rounds for pair in each["pairs"]]
    rows = [(index + 1, *(pair[arm]["output_tokens_per_second"] for arm in ARMS)) for index, pair in enumerate(pairs)]
    print_table(("pair", *(f"{arm}, tokens/s" for arm in ARMS)), rows)
    print(f"cluster / by hand: {in_words(document['ratio'])}", file=sys.stderr)
    finish(document, options.output)


def ratio_over_rounds(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the ratio of output throughput with its interval.

    What varies by itself is a start: each round counts once, by the geometric mean of its pairs. Of a single round
    there are the pairs alone, and the interval holds for its two starts and no others.
    """
    logs = {
        arm: [np.log([pair[arm]["output_tokens_per_second"] for pair in each["pairs"]]) for each in rounds]
        for arm in ARMS
    }
    rates = {
        arm: np.exp(found[0] if len(found) == 1 else [each.mean() for each in found]) for arm, found in logs.items()
    }
    ratio = paired_ratio(*(rates[arm].tolist() for arm in ARMS))
    return {**ratio, "pairs": sum(len(each["pairs"]) for each in rounds), "rounds": len(rounds)}


def pooled(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratio over the rounds of several runs: of those that were watched in both arms, and of the others."""
    found: dict[str, Any] = {}
    for name, is_watched in (("watched", True), ("unwatched", False)):
        rounds = [each for document in documents if document["watched"] == is_watched for each in document["rounds"]]
        if rounds:
            found[name] = ratio_over_rounds(rounds)
            print(f"{name}: cluster / by hand: {in_words(found[name])}", file=sys.stderr)
    return found


def in_words(ratio: dict[str, float]) -> str:
    return "{ratio:.4g} ({low:.4g} to {high:.4g}), {rounds} rounds, {pairs} pairs".format(**ratio)


def one_round(
    lab: Lab, options: argparse.Namespace, point: Load, chooser: random.Random, number: int
) -> dict[str, Any]:
    """Start both arms and measure them in pairs; return those, and in what the kernel treats the arms differently."""
    starts = {"cluster": deployed, "by hand": by_hand}
    with ExitStack() as stack:
        urls = {}
        for name in chooser.sample(ARMS, len(ARMS)):
            print(f"round {number + 1} of {options.rounds}: starting {name}", file=sys.stderr, flush=True)
            urls[name] = stack.enter_context(starts[name](lab, options.deployment))
        unlike = compared(lab, options.lab)
        print(f"  unlike in {unlike or 'nothing'}", file=sys.stderr, flush=True)
        for url in urls.values():
            # The first load after a start is not counted.
            load(lab, url, replace(point, requests=point.concurrency or 2, seed=point.seed + 1000))
        pairs = []
        for index in range(options.pairs):
            same = replace(point, seed=point.seed + number * options.pairs + index)
            pair = {}
            for name in chooser.sample(ARMS, len(ARMS)):
                is_alone = name == "by hand" and not options.watched
                with frozen_samplers(lab) if is_alone else nullcontext():
                    pair[name] = load(lab, urls[name], same)
            rates = ", ".join(f"{name} {pair[name]['output_tokens_per_second']:.2f}" for name in ARMS)
            print(f"  pair {index + 1} of {options.pairs}: {rates} tokens/s", file=sys.stderr, flush=True)
            pairs.append(pair)
        return {"pairs": pairs, "unlike": unlike}


def compared(lab: Lab, name: str) -> dict[str, dict[str, list[Any]]]:
    """Return, for each node, in what the kernel treats the deployed vLLM and the one by hand differently."""
    found = {}
    for node in lab.profile.nodes:
        arms = {MARKER in environment: (pid, environment) for pid, environment in serving(name, node).items()}
        found[node] = differences(*(attributes(*arms[by_hand]) for by_hand in (False, True)))
    return found


@contextmanager
def frozen_samplers(lab: Lab) -> Iterator[None]:
    """Keep every sampler from running."""
    lab.signal_samplers("STOP")
    try:
        yield
    finally:
        lab.signal_samplers("CONT")


@contextmanager
def deployed(lab: Lab, deployment: str) -> Iterator[str]:
    """Deploy with everything the product brings; give the API's address."""
    record = lab.json("deploy", deployment)
    try:
        (head,) = [worker for worker in record["workers"] if worker["head"]]
        yield f"http://{head['api_address']}:{head['api_port']}"
    finally:
        lab.run("undeploy", check=False)


@contextmanager
def by_hand(lab: Lab, deployment: str) -> Iterator[str]:
    """Start vLLM alone, beside whatever is deployed; give the API's address."""
    marker = f"{MARKER}={uuid.uuid4().hex}"
    specs = worker_specs(lab.profile, deployment)
    (head,) = [spec for spec in specs if spec.head]
    url = f"http://{head.api_address}:{(head.api_port or 0) + PORT_OFFSET}"
    processes = []
    with tempfile.TemporaryDirectory() as logs:
        try:
            for spec in specs:
                engine = lab.profile.engine_of(spec.node)
                preload = ":".join(f"{engine.directory()}/{path}" for path in engine.preload)
                environment = [f"{key}={value}" for key, value in spec.environment.items()] + [marker]
                environment += [f"LD_PRELOAD={preload}"] if preload else []
                environment.append(f"PATH={engine.directory()}/bin:/usr/sbin:/usr/bin:/sbin:/bin")
                argv = [*AS_ENGINE, "env", *environment, f"{engine.directory()}/bin/vllm", *other_ports(spec.argv)]
                log = Path(logs, f"{spec.node}.log")
                processes.append((lab.popen("lab", "exec", spec.node, "--", *argv, log=log), log))
            wait_until_ready(lab, url, processes)
            yield url
        finally:
            end_marked(marker)
            for process, _ in processes:
                process.wait(30)


def other_ports(argv: Sequence[str]) -> list[str]:
    """Return the arguments with ports that whatever is deployed does not hold."""
    return [
        str(int(word) + PORT_OFFSET) if before in ("--port", "--master-port") else word
        for before, word in zip(["", *argv], argv, strict=False)
    ]


def wait_until_ready(lab: Lab, url: str, processes: Sequence[tuple["subprocess.Popen[bytes]", Path]]) -> None:
    """Return once vLLM answers.

    Raises
    ------
    SystemExit
        With the end of the logs, when a worker has ended or the time is up.
    """
    deadline = time.monotonic() + READY_SECONDS
    while "200" not in lab.on(
        "control", "curl", "-so", "/dev/null", "-w", "%{http_code}", f"{url}/health", check=False
    ):
        dead = [log.read_text(errors="replace")[-2000:] for process, log in processes if process.poll() is not None]
        if dead or time.monotonic() > deadline:
            raise SystemExit(f"vLLM by hand did not become ready:\n{''.join(dead)}")
        # Asking costs the nodes' own cores, so not often.
        time.sleep(5)


def load(lab: Lab, url: str, point: Load) -> dict[str, Any]:
    """Send a load; return its headline numbers."""
    engine = lab.profile.engine_of(next(iter(lab.profile.nodes)))
    environment = [f"{key}={value}" for key, value in engine.environment.items()]
    folder = lab.on("control", "mktemp", "-d").strip()
    try:
        arguments = client_arguments(
            point,
            base_url=url,
            model=lab.profile.model.name,
            tokenizer=lab.profile.model.directory(),
            result_directory=folder,
            result_name="load.json",
        )
        program = [f"{engine.directory()}/bin/vllm", *arguments]
        lab.on("control", "sh", "-c", WITH_KEY, "sh", "env", *environment, *program)
        numbers = headline(json.loads(lab.on("control", "cat", f"{folder}/load.json")))
    finally:
        lab.on("control", "rm", "-rf", folder, check=False)
    if numbers["failed"]:
        raise SystemExit(f"{numbers['failed']} requests failed: the pair is worthless")
    return numbers


if __name__ == "__main__":
    main()
