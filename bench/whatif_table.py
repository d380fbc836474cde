"""Hold the step model against every recorded sweep and write doc/reference/what-if-accuracy.md.

    python bench/whatif_table.py --seeds 200 --write

For each sweep: random calibrations on six points, errors on all others. Beside it, on the same draws, a plain
non-negative fit (decode: constant, batch, cached tokens; prefill: constant, tokens, pairs of tokens), and the model
with priors twice as wide, to show what rests on them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bottleneck.performance.calibration import CALIBRATION_POINTS, calibrate
from bottleneck.performance.served import Accelerator, Point
from bottleneck.prediction.evaluate import COVERAGE, Evaluation, held_out_draw
from bottleneck.prediction.sweep import Sweep, read_accelerator, read_sweep

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data" / "h200"
PAGE = ROOT / "doc" / "reference" / "what-if-accuracy.md"
SMALL = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
SWEEPS = {
    "sweep_bf16.json": "22 B, bfloat16",
    "sweep_w4a16.json": "22 B, 4 bit (w4a16)",
    "sweep_fp8.json": "22 B, 8 bit (fp8)",
    "sweep_7b_bf16.json": "7 B, bfloat16, another grid",
    "sweep_7b_w4a16.json": "7 B, 4 bit (w4a16), another grid",
}


def features(points: list[Point], output_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the plain fit's columns for prefill and for decode."""
    batch = np.array([point.batch for point in points], dtype=float)
    prompt = np.array([point.prompt for point in points], dtype=float)
    one = np.ones_like(batch)
    prefill = np.stack([one, batch * prompt, batch * prompt**2], axis=1)
    return prefill, np.stack([one, batch, batch * (prompt + output_tokens / 2)], axis=1)


def plain(sweep: Sweep, points: int, seed: int) -> tuple[float, float]:
    """Return decode and prefill errors of the non-negative fit, weighted for relative errors, on the same draw."""
    order = np.random.default_rng(seed).permutation(len(sweep.points))
    chosen, others = ([sweep.points[index] for index in part] for part in (order[:points], order[points:]))
    errors = []
    for index, name in enumerate(("prefill_seconds", "decode_step_seconds")):
        measured, unseen = (np.array([getattr(point, name) for point in part]) for part in (chosen, others))
        columns = features(chosen, sweep.output_tokens)[index] / measured[:, None]
        scale = columns.max(axis=0)
        weights, _ = optimize.nnls(columns / scale, np.ones(len(chosen)))
        predicted = features(others, sweep.output_tokens)[index] @ (weights / scale)
        errors.append(float(np.abs(predicted / unseen - 1).mean()))
    return errors[1], errors[0]


def row(values: list[float]) -> str:
    """Return quantiles as cells."""
    return " | ".join(f"{100 * value:.1f}" for value in np.quantile(values, QUANTILES))


def measure(sweep: Sweep, accelerator: Accelerator, seeds: int) -> dict[str, Any]:
    """Return the errors of all draws by method, and the intervals' coverage."""
    found = Evaluation(
        sweep.name,
        CALIBRATION_POINTS,
        tuple(held_out_draw(sweep, accelerator, CALIBRATION_POINTS, seed)[0] for seed in range(seeds)),
    )
    wide = [held_out_draw(sweep, accelerator, CALIBRATION_POINTS, seed, loose=2.0)[0] for seed in range(seeds)]
    naive = [plain(sweep, CALIBRATION_POINTS, seed) for seed in range(seeds)]
    return {
        "decode": {
            "model": [draw.decode_mape for draw in found.draws],
            "priors twice as wide": [draw.decode_mape for draw in wide],
            "plain fit": [pair[0] for pair in naive],
        },
        "prefill": {
            "model": [draw.prefill_mape for draw in found.draws],
            "priors twice as wide": [draw.prefill_mape for draw in wide],
            "plain fit": [pair[1] for pair in naive],
        },
        "coverage": found.to_json()["overall"],
    }


def extrapolated(sweep: Sweep, accelerator: Accelerator, seeds: int) -> str:
    """Return a row: calibrated on six random points of batch 8 and below, compared with all of batch 16 and above."""
    small = [point for point in sweep.points if point.batch <= SMALL]
    large = [point for point in sweep.points if point.batch >= 2 * SMALL]
    measured = np.log([*(p.prefill_seconds for p in large), *(p.decode_step_seconds for p in large)])
    errors, inside = [], []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(small))[:CALIBRATION_POINTS]
        chosen = [small[index] for index in order]
        known = calibrate(sweep.served, accelerator, chosen, sweep.output_tokens)
        found = known.forecast(known.at([(point.batch, point.prompt) for point in large]))
        off = found.center - measured
        errors.append(np.abs(np.expm1(off)).reshape(2, -1).mean(axis=1))
        inside.append((np.abs(off) <= known.quantile(COVERAGE) * found.spread).reshape(2, -1).mean(axis=1))
    middle, high, covered = np.median(errors, axis=0), np.quantile(errors, 0.9, axis=0), np.mean(inside, axis=0)
    cells = [f"{100 * middle[phase]:.1f} | {100 * high[phase]:.1f} | {covered[phase]:.0%}" for phase in (1, 0)]
    return f"| {SWEEPS[sweep.name]} | {' | '.join(cells)} |"


def extrapolation(rows: list[str]) -> list[str]:
    """Return the section on batches larger than all that were calibrated on."""
    return [
        "## Extrapolation, error in percent",
        "",
        f"Calibrated on {CALIBRATION_POINTS} random points of batch {SMALL} and below, compared with all points of "
        f"batch {2 * SMALL} and above.",
        "",
        "| sweep | decode: median | p90 | in the 90 % interval | prefill: median | p90 | in the 90 % interval |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def page(results: dict[str, dict[str, Any]], seeds: int, rows: list[str]) -> str:
    """Return the page."""
    lines = [
        "# Accuracy of the what-if model",
        "",
        f"`python bench/whatif_table.py --seeds {seeds} --write`, {time.strftime('%Y-%m-%d')}.",
        "",
        f"Calibrated on {CALIBRATION_POINTS} random points of a sweep, compared with all others; mean absolute "
        f"percentage error of each draw, its distribution over {seeds} draws. The same for one file, with each draw: "
        f"`cluster whatif --evaluate SWEEP --ceilings CEILINGS --points {CALIBRATION_POINTS} --seeds {seeds} --json`. "
        "The sweeps, how they were made and on what: tests/data/h200/README.md. What the model is and what these "
        "figures do not show: [the what-if model](../explanation/what-if.md).",
        "",
    ]
    for phase, title in (("decode", "Decode step"), ("prefill", "Prefill")):
        head = " | ".join(f"p{100 * quantile:g}" if quantile != 0.5 else "median" for quantile in QUANTILES[:-1])
        lines += [
            f"## {title}, error in percent",
            "",
            f"| sweep | method | {head} | largest | in the 90 % interval |",
            f"|---|---|{'---|' * (len(QUANTILES) + 1)}",
        ]
        for name, result in results.items():
            for method, values in result[phase].items():
                inside = f"{result['coverage'][f'{phase}_coverage']['mean']:.0%}" if method == "model" else ""
                lines.append(f"| {SWEEPS[name]} | {method} | {row(values)} | {inside} |")
        lines.append("")
    return "\n".join([*lines, *extrapolation(rows)]) + "\n"


def main() -> None:
    """Measure and print, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="write the page instead of printing it")
    arguments = parser.parse_args()
    accelerator = read_accelerator(DATA / "ceilings.json")
    results, rows = {}, []
    for name in SWEEPS:
        print(name, file=sys.stderr, flush=True)
        sweep = read_sweep(DATA / name)
        results[name] = measure(sweep, accelerator, arguments.seeds)
        rows.append(extrapolated(sweep, accelerator, arguments.seeds))
    text = page(results, arguments.seeds, rows)
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
        return
    print(text)


if __name__ == "__main__":
    main()
