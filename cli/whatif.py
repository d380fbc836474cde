"""`cluster whatif`: predict step times under another batch, length, split, link, quantisation or accelerator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bottleneck.whatif.calibrate import LEAST_POINTS, MOST_POINTS
from bottleneck.whatif.evaluate import Evaluation, evaluate
from bottleneck.whatif.sweep import Accelerator, Sweep, SweepError, read_accelerator, read_sweep
from cli.options import JsonOption
from cli.output import USAGE, console, emit, fail, out, step

MOST_SEEDS = 100_000


def whatif(
    evaluate_sweep: Annotated[
        Path | None,
        typer.Option("--evaluate", metavar="SWEEP", help="Say how far off predictions are on this sweep."),
    ] = None,
    ceilings: Annotated[
        Path | None, typer.Option("--ceilings", metavar="FILE", help="What the accelerator can do at most.")
    ] = None,
    points: Annotated[
        int, typer.Option("--points", min=LEAST_POINTS, help="Points of a sweep to calibrate on.")
    ] = MOST_POINTS,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=MOST_SEEDS, help="Random draws to evaluate.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Predict time to first token, time between tokens and throughput of what was not measured.

    Examples:

      cluster whatif --evaluate sweep.json --ceilings ceilings.json --points 6 --seeds 50 --json
    """
    if evaluate_sweep is None:
        fail("nothing to do", "cluster whatif --help", USAGE)
    if ceilings is None:
        fail("--evaluate needs --ceilings FILE: what the accelerator of the sweep can do", code=USAGE)
    sweep, accelerator = _read(evaluate_sweep, ceilings)
    found = _evaluated(sweep, accelerator, points, seeds)
    emit(found.to_json(), as_json, lambda: show_evaluation(found))


def _read(sweep: Path, ceilings: Path) -> tuple[Sweep, Accelerator]:
    try:
        return read_sweep(sweep), read_accelerator(ceilings)
    except SweepError as error:
        fail(str(error), "cluster whatif --help")


def _evaluated(sweep: Sweep, accelerator: Accelerator, points: int, seeds: int) -> Evaluation:
    try:
        with step(f"Calibrating on {points} of {len(sweep.points)} points, {seeds} times") as current:
            return evaluate(sweep, accelerator, points, seeds, lambda done: current.detail(_tenth(done, seeds)))
    except SweepError as error:
        fail(str(error), "cluster whatif --help", USAGE)


def _tenth(done: int, seeds: int) -> str:
    return f"{10 * (10 * done // seeds)} %"


def show_evaluation(found: Evaluation) -> None:
    """Print the distribution of the errors over the draws."""
    document = found.to_json()
    table = Table(title=f"{found.sweep}: errors on held-out points over {len(found.draws)} draws")
    table.add_column("")
    for name in ("median", "90th percentile", "largest", "in the 90 % interval"):
        table.add_column(name, justify="right")
    for phase in ("decode", "prefill"):
        errors, inside = document["overall"][f"{phase}_mape"], document["overall"][f"{phase}_coverage"]["mean"]
        numbers = [f"{errors[key]:.1%}" for key in ("median", "p90", "p100")]
        table.add_row(f"{phase} MAPE", *numbers, f"{inside:.0%}")
    out.print(table)
    for note in found.notes:
        console.print(note, style="dim", markup=False)
