"""Does it cost anything? `cluster deploy` against the same `vllm serve` commands typed by hand.

Both arms run in the same lab, on the same nodes, with the same arguments and environment, under the same load from
the same generator. One arm is the whole product: supervisor, samplers, engine. The other is vLLM alone: no supervisor,
samplers frozen. Pairs are interleaved in random order; the result is the ratio of output throughput with its 95 %
interval. The lab must be up and configured (`cluster lab up`, `cluster apply`), with nothing deployed.
"""

import argparse
import json
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from common import Lab, end_marked, finish, paired, paired_ratio, print_table

from bottleneck.places import model_directory
from bottleneck.plan import worker_specs
from bottleneck.workload import Point, client_arguments, headline, points

READY_SECONDS = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--lab", default="demo")
    parser.add_argument("--deployment", default="tp2")
    parser.add_argument("--pairs", type=int, default=4, help="each takes two starts of vLLM, about 3 minutes")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1, help="of the order of the arms and of the prompts")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    lab = Lab(options.profile, options.lab)
    (point,) = points(
        lab.profile.workload, concurrency=[options.concurrency], requests=options.requests, seed=options.seed
    )
    lab.run("undeploy")
    arms = {
        "cluster": lambda: deployed(lab, options.deployment, point),
        "by hand": lambda: by_hand(lab, options.deployment, point),
    }
    found = paired(options.pairs, arms, options.seed)
    rates = {name: [pair[name]["output_tokens_per_second"] for pair in found] for name in arms}
    ratio = paired_ratio(rates["cluster"], rates["by hand"])
    rows = [(index + 1, *values) for index, values in enumerate(zip(*rates.values(), strict=True))]
    print_table(("pair", *(f"{name}, tokens/s" for name in rates)), rows)
    print(f"cluster / by hand: {ratio['ratio']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})", file=sys.stderr)
    finish({"deployment": options.deployment, "point": point.to_json(), "pairs": found, "ratio": ratio}, options.output)


def deployed(lab: Lab, deployment: str, point: Point) -> dict[str, Any]:
    """Measure with everything the product brings."""
    started = time.monotonic()
    record = lab.json("deploy", deployment)
    ready = time.monotonic() - started
    try:
        (head,) = [worker for worker in record["workers"] if worker["head"]]
        return {**load(lab, f"http://{head['api_address']}:{head['api_port']}", point), "ready_seconds": ready}
    finally:
        lab.run("undeploy", check=False)


def by_hand(lab: Lab, deployment: str, point: Point) -> dict[str, Any]:
    """Measure with vLLM alone."""
    profile = lab.profile
    marker = f"CLUSTER_BY_HAND={uuid.uuid4().hex}"
    specs = worker_specs(profile, deployment)
    (head,) = [spec for spec in specs if spec.head]
    url = f"http://{head.api_address}:{head.api_port}"
    lab.signal_samplers("STOP")
    started = time.monotonic()
    processes = []
    with tempfile.TemporaryDirectory() as logs:
        try:
            for spec in specs:
                engine = profile.engine_of(spec.node)
                preload = ":".join(f"{engine.directory()}/{path}" for path in engine.preload)
                environment = [f"{key}={value}" for key, value in spec.environment.items()] + [marker]
                environment += [f"LD_PRELOAD={preload}"] if preload else []
                environment.append(f"PATH={engine.directory()}/bin:/usr/sbin:/usr/bin:/sbin:/bin")
                argv = ["env", *environment, f"{engine.directory()}/bin/vllm", *spec.argv]
                log = Path(logs, f"{spec.node}.log")
                processes.append((lab.popen("lab", "exec", spec.node, "--", *argv, log=log), log))
            while "200" not in lab.on(
                "control", "curl", "-so", "/dev/null", "-w", "%{http_code}", f"{url}/health", check=False
            ):
                dead = [
                    log.read_text(errors="replace")[-2000:] for process, log in processes if process.poll() is not None
                ]
                if dead or time.monotonic() - started > READY_SECONDS:
                    raise SystemExit(f"vLLM by hand did not become ready:\n{''.join(dead)}")
                # Asking costs the nodes' own cores, so not often.
                time.sleep(5)
            return {**load(lab, url, point), "ready_seconds": time.monotonic() - started}
        finally:
            end_marked(marker)
            for process, _ in processes:
                process.wait(30)
            lab.signal_samplers("CONT")


def load(lab: Lab, url: str, point: Point) -> dict[str, Any]:
    """Send a short load that is not counted, then the point; return its headline numbers."""
    engine = lab.profile.engine_of(next(iter(lab.profile.nodes)))
    environment = [f"{key}={value}" for key, value in engine.environment.items()]
    warm = Point(**{**point.to_json(), "requests": point.concurrency or 2, "seed": point.seed + 7})
    folder = lab.on("control", "mktemp", "-d").strip()
    try:
        for name, each in (("warm", warm), ("measured", point)):
            arguments = client_arguments(
                each,
                base_url=url,
                model=lab.profile.model.name,
                tokenizer=model_directory(lab.profile.model),
                result_directory=folder,
                result_name=f"{name}.json",
            )
            lab.on("control", "env", *environment, f"{engine.directory()}/bin/vllm", *arguments)
        numbers = headline(json.loads(lab.on("control", "cat", f"{folder}/measured.json")))
    finally:
        lab.on("control", "rm", "-rf", folder, check=False)
    if numbers["failed"]:
        raise SystemExit(f"{numbers['failed']} requests failed: the pair is worthless")
    return numbers


if __name__ == "__main__":
    main()
