"""Fit the efficiencies of an engine to recorded runs of it: the block `efficiencies` of its entry in the engine map.

    python bench/engine_efficiencies.py RUN... > block.yaml
    python bench/engine_efficiencies.py --record tests/data/verdicts/runs.jsonl RUN...

Runs of the same deployment and load belong together. Every other load, drawn by a seed, is fitted to; the others are
held out, and standard error says how far off they are. With `--record` only those count into which nothing was put.
Times to the first token, times between tokens and tokens a second are fitted with the priors of the step model, made
wider, by a loss that grows linearly where a run is far off (Huber's, smoothed).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import common  # puts the repository on the path
import numpy as np
import scipy
import yaml

from bottleneck.load.results import headline
from bottleneck.performance.calibration import prior, uncalibrated
from bottleneck.performance.efficiencies import EngineEfficiencies
from bottleneck.performance.step import PARAMETERS
from bottleneck.performance.workpoints import WorkPoints
from bottleneck.prediction.deployment import Scenario, forecast, outcome
from bottleneck.prediction.recorded import LOOSE, recorded
from bottleneck.prediction.sweep import SweepError
from bottleneck.runs.run_folder import RunError, load_run

# Costs of an engine's own, of which a GPU's kernels say nothing: where the fit begins, and how wide their priors are.
OWN = {"layer_seconds": 3e-4, "sequence_seconds": 2e-3, "run_seconds": 5e-2, "request_seconds": 1e-2}
OWN_SPREAD = 3.0
# Of one measurement, before the fit: its scale alone matters, against the priors.
NOISE = 0.2
# A time to the first token depends on how requests arrive, so it weighs half.
WEIGHTS = np.array([0.5, 1.0, 1.0])
ITERATIONS = 60
# No model's step takes less.
LEAST_STEP_SECONDS = 1e-4


class Measured:
    """One run: its deployment and load, and the logarithms of what was measured and what the model says."""

    def __init__(self, folder: Path) -> None:
        found = recorded([load_run(folder)])
        client = json.loads((folder / "client.json").read_text(encoding="utf-8"))
        (point,) = found.points
        self.base: Scenario = found.base
        rate = headline(client)["output_tokens_per_second"]
        # Where a request begins while others end, what is left for steps of decoding can come out as nothing.
        self.is_known = np.array([True, point.decode_step_seconds > LEAST_STEP_SECONDS, True])
        step = max(point.decode_step_seconds, LEAST_STEP_SECONDS)
        self.seen = np.log([point.prefill_seconds, step, rate])
        self.at = WorkPoints.of(
            found.base.served,
            found.base.accelerator,
            [(point.batch, point.prompt)],
            max(2, found.base.output_tokens),
            found.base.split,
        )

    @property
    def load(self) -> tuple[int, ...]:
        """Deployment and load, alike for runs that belong together."""
        base = self.base
        split = base.split
        ranks = (split.tensor_parallel, split.pipeline_parallel, base.replicas)
        return (*ranks, base.batch, base.input_tokens, base.output_tokens)

    def predicted(self, parameters: Any) -> Any:
        """Return logarithms of the first token's seconds, those between tokens, and tokens a second."""
        first, step = self.at.seconds(parameters)
        tokens = self.base.output_tokens
        rate = self.base.batch * tokens / (first + (tokens - 1) * step)
        return np.log([first, step, rate])


def fitted(runs: list[Measured]) -> tuple[Any, Any]:
    """Return the parameters' logarithms and their standard deviations."""
    middle, spread = prior(runs[0].base.served.weights, runs[0].base.accelerator)
    begin, wide = middle.copy(), spread * LOOSE
    for name, value in OWN.items():
        begin[PARAMETERS.index(name)], wide[PARAMETERS.index(name)] = np.log(value), OWN_SPREAD

    def cost(parameters: Any) -> Any:
        misfit = [run.is_known * WEIGHTS * (run.predicted(parameters) - run.seen) / NOISE for run in runs]
        return np.concatenate([*misfit, (parameters - middle) / wide])

    found = scipy.optimize.least_squares(cost, begin, x_scale=wide, loss="soft_l1", max_nfev=ITERATIONS)
    return found.x, np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)))


def kept(folders: list[Path], record: Path | None) -> Iterator[Measured]:
    """Yield the runs that can be fitted to."""
    untouched = None
    if record is not None:
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
        untouched = {
            line["run"] for line in lines if not line["settings"] and not any(f.get("strength") for f in line["faults"])
        }
    for folder in folders:
        if untouched is None or folder.name in untouched:
            try:
                yield Measured(folder)
            except (RunError, SweepError, OSError) as error:
                print(f"{folder}: left out: {error}", file=sys.stderr)


def balanced(runs: Iterable[Measured], most: int) -> list[Measured]:
    """Return the first runs of each deployment and load, so that none of them outweighs the others."""
    count: Counter[tuple[int, ...]] = Counter()
    found = []
    for run in runs:
        count[run.load] += 1
        if count[run.load] <= most:
            found.append(run)
    return found


def robust(errors: Any) -> float:
    """Return the standard deviation that the median of absolute errors has in a normal distribution."""
    return float(np.median(np.abs(errors))) / 0.6745


def main() -> None:
    """Fit, say how far off it is, and print the block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs of one engine")
    parser.add_argument("--record", type=Path, help="what was put into which run (cluster verify-verdicts)")
    parser.add_argument("--most", type=common.at_least_one, default=2, help="runs of one deployment and load")
    parser.add_argument("--seed", type=int, default=1, help="of which loads are held out")
    arguments = parser.parse_args()
    runs = balanced(kept(arguments.runs, arguments.record), arguments.most)
    loads = sorted({run.load for run in runs})
    order = np.random.default_rng(arguments.seed).permutation(len(loads))
    chosen = {loads[index] for index in order[::2]}
    train, left_out = ([run for run in runs if (run.load in chosen) is inside] for inside in (True, False))
    left_out = left_out or train
    parameters, spread = fitted(train)
    errors = np.array([run.predicted(parameters) - run.seen for run in left_out])
    steps = errors[[bool(run.is_known[1]) for run in left_out], 1]
    residual = max(robust(errors[:, 0]), robust(steps) if steps.size else 0.0)
    middle, usual = prior(train[0].base.served.weights, train[0].base.accelerator)
    # What the runs say nothing of stays as it is on any machine.
    moved = (np.abs(parameters - middle) > 0.02) | (spread < usual * LOOSE / 2)
    values = {
        name: (float(np.exp(parameters[index])), float(spread[index]))
        for index, name in enumerate(PARAMETERS)
        if moved[index]
    }
    inside = []
    for run in left_out:
        base = run.base
        known = uncalibrated(
            base.served,
            base.accelerator,
            max(2, base.output_tokens),
            base.split,
            LOOSE,
            EngineEfficiencies(values, residual, len(train)),
        )
        rate = outcome(forecast(known, base, None), base).tokens_per_second
        inside.append(rate.low <= np.exp(run.seen[2]) <= rate.high)
    off = np.abs(np.expm1(errors[:, 2]))
    print(
        f"fitted to {len(train)} runs; of {len(left_out)} held out the tokens/s are off by {np.median(off):.0%} in the "
        f"median, {np.quantile(off, 0.9):.0%} in nine of ten; {np.mean(inside):.0%} are in their 90 % interval",
        file=sys.stderr,
    )
    block = {
        "source": "",
        "measurements": len(train),
        "bits": round(train[0].base.served.weights.bits),
        "residual": float(f"{residual:.2g}"),
        "values": {
            name: {"value": float(f"{value:.3g}"), "spread": float(f"{each:.2g}")}
            for name, (value, each) in values.items()
        },
    }
    print(yaml.safe_dump({"efficiencies": block}, sort_keys=False), end="")


if __name__ == "__main__":
    main()
