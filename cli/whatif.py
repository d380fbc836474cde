"""`cluster whatif`: predict step times under another batch, length, split, link, quantisation or accelerator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from bottleneck.performance.calibration import CALIBRATION_POINTS, LEAST_POINTS, Calibration, calibrate, efficiencies
from bottleneck.performance.collectives import Link
from bottleneck.performance.datasheets import DATASHEETS
from bottleneck.performance.model import FORMATS, WHOLE, Split, WeightFormat
from bottleneck.performance.served import Accelerator
from bottleneck.prediction.break_even import BreakEven, break_even
from bottleneck.prediction.deployment import CannotTell, Comparison, Scenario, compare, parameters
from bottleneck.prediction.evaluate import Evaluation, evaluate
from bottleneck.prediction.recorded import recorded
from bottleneck.prediction.sweep import Sweep, SweepError, read_accelerator, read_sweep
from bottleneck.units import DURATION, RATE, Dimension
from cli.options import JsonOption
from cli.output import USAGE, console, emit, fail, out, step
from cli.run_folders import open_run
from cli.whatif_text import (
    binds_text,
    break_even_text,
    comparison_table,
    evaluation_table,
    parts_table,
    scenario_text,
)

MOST_SEEDS = 100_000
HELP = "cluster whatif --help"
_BAD_FIT = 2.5
_BY_BITS = {4: "w4a16", 8: "w8a16", 16: "bf16"}


def whatif(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Recorded runs of one deployment to calibrate on; the first is the base.")
    ] = None,
    sweep: Annotated[
        Path | None, typer.Option("--sweep", metavar="FILE", help="Calibrate on this sweep instead of on runs.")
    ] = None,
    ceilings: Annotated[
        Path | None,
        typer.Option("--ceilings", metavar="FILE", help="What the sweep's accelerator can do at most."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BATCHxINPUT", help="With --sweep: where to begin.", show_default="its middle"),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Requests at the same time, in all.")] = None,
    input_tokens: Annotated[int | None, typer.Option("--input-tokens", min=1, help="Tokens of a prompt.")] = None,
    output_tokens: Annotated[int | None, typer.Option("--output-tokens", min=1, help="Tokens of an answer.")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(min=1, help="Ranks that share every layer.")] = None,
    pipeline_parallel: Annotated[int | None, typer.Option(min=1, help="Stages that take turns on the layers.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Independent copies of the whole.")] = None,
    link_rate: Annotated[
        str | None, typer.Option("--link-rate", help="Of the link between ranks, such as '10 Gbit/s'.")
    ] = None,
    link_latency: Annotated[
        str | None, typer.Option("--link-latency", help="One way, of a small message, such as '65 us'.")
    ] = None,
    bits: Annotated[int | None, typer.Option("--bits", help="Bits of a stored weight: 4, 8 or 16.")] = None,
    quantization: Annotated[
        str | None, typer.Option("--quantization", help=f"How weights are stored: {', '.join(FORMATS)}.")
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option("--accelerator", help=f"A file of ceilings, or one of {', '.join(DATASHEETS)} by its datasheet."),
    ] = None,
    evaluate_sweep: Annotated[
        Path | None,
        typer.Option("--evaluate", metavar="SWEEP", help="Say how far off predictions are on this sweep instead."),
    ] = None,
    points: Annotated[
        int, typer.Option("--points", min=LEAST_POINTS, help="With --evaluate: points to calibrate on.")
    ] = CALIBRATION_POINTS,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=MOST_SEEDS, help="With --evaluate: random draws of those points.")
    ] = 50,
    as_json: JsonOption = False,
) -> None:
    """Predict time to first token, time between tokens and throughput of what was not measured.

    Examples:

      cluster whatif 20261123T2130 --batch 16 --link-rate '10 Gbit/s'

      cluster whatif --sweep sweep.json --ceilings ceilings.json --quantization w4a16 --accelerator arc-a770

      cluster whatif --evaluate sweep.json --ceilings ceilings.json --points 6 --seeds 50 --json
    """
    if evaluate_sweep is not None:
        measured, machine = _read(evaluate_sweep, ceilings, "--evaluate")
        evaluation = _evaluated(measured, machine, points, seeds)
        emit(evaluation.to_json(), as_json, lambda: _show_evaluation(evaluation))
        return
    start = _from_sweep(sweep, ceilings, base) if sweep is not None else _from_runs(runs or [])
    change = _Change(
        batch, input_tokens, output_tokens, tensor_parallel, pipeline_parallel, replicas, link_rate, link_latency
    )
    changed = _changed(start.base, change, _format(bits, quantization), accelerator)
    if changed == start.base:
        fail("nothing changes: give at least one of --batch, --link-rate, --quantization and so on", HELP, USAGE)
    try:
        found = compare(start.calibration, start.base, changed)
        even = _even(start.calibration, start.base, changed)
    except CannotTell as trouble:
        fail(f"cannot tell: {trouble}", HELP)
    document = _document(start, changed, found, even)
    emit(document, as_json, lambda: _show(start, changed, found, even))


@dataclass(frozen=True)
class _Start:
    base: Scenario
    calibration: Calibration
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Change:
    batch: int | None
    input_tokens: int | None
    output_tokens: int | None
    tensor_parallel: int | None
    pipeline_parallel: int | None
    replicas: int | None
    link_rate: str | None
    link_latency: str | None


def _read(sweep: Path, ceilings: Path | None, option: str) -> tuple[Sweep, Accelerator]:
    if ceilings is None:
        fail(f"{option} needs --ceilings FILE: what the accelerator of the sweep can do", HELP, USAGE)
    try:
        return read_sweep(sweep), read_accelerator(ceilings)
    except SweepError as error:
        fail(str(error), HELP)


def _evaluated(sweep: Sweep, accelerator: Accelerator, points: int, seeds: int) -> Evaluation:
    try:
        with step(f"Calibrating on {points} of {len(sweep.points)} points, {seeds} times") as current:
            return evaluate(sweep, accelerator, points, seeds, lambda done: current.detail(_tenth(done, seeds)))
    except SweepError as error:
        fail(str(error), HELP, USAGE)


def _tenth(done: int, seeds: int) -> str:
    return f"{10 * (10 * done // seeds)} %"


def _show_evaluation(found: Evaluation) -> None:
    out.print(evaluation_table(found))
    _show_notes(found.notes)


def _show_notes(notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"note: {note}", style="dim", markup=False)


def _from_runs(names: Sequence[str]) -> _Start:
    try:
        known = recorded([open_run(name) for name in names] or [open_run(None)])
    except SweepError as error:
        fail(str(error), "cluster run list")
    calibration = known.calibration()
    return _Start(known.base, calibration, (*known.notes, *_calibration_notes(calibration)))


def _from_sweep(path: Path, ceilings: Path | None, base: str | None) -> _Start:
    sweep, accelerator = _read(path, ceilings, "--sweep")
    calibration = calibrate(sweep.served, accelerator, sweep.points, sweep.output_tokens)
    middle = sorted(sweep.points, key=lambda point: (point.batch * point.prompt, point.batch))[len(sweep.points) // 2]
    batch, prompt = (middle.batch, middle.prompt) if base is None else _pair(base)
    start = Scenario(sweep.served, accelerator, WHOLE, 1, batch, prompt, sweep.output_tokens)
    return _Start(start, calibration, (*sweep.notes, *_calibration_notes(calibration)))


def _pair(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", text)
    if not found or not int(found[1]) or not int(found[2]):
        fail(f"--base {text!r}; expected batch x input tokens such as 8x1024", HELP, USAGE)
    return int(found[1]), int(found[2])


def _calibration_notes(calibration: Calibration) -> list[str]:
    if calibration.scale < _BAD_FIT:
        return []
    return [
        f"the measured times fit the ceilings badly (errors {calibration.scale:.1f} times what is usual): were the "
        "ceilings measured on another machine, or while the link was another?"
    ]


def _format(bits: int | None, name: str | None) -> WeightFormat | None:
    if name is not None:
        if name not in FORMATS:
            fail(f"--quantization {name}; expected one of {', '.join(FORMATS)}", HELP, USAGE)
        if bits is not None and FORMATS[name].bits != bits:
            fail(f"--bits {bits} and --quantization {name}, which has {FORMATS[name].bits}", HELP, USAGE)
        return FORMATS[name]
    if bits is not None and bits not in _BY_BITS:
        fail(f"--bits {bits}; expected one of {', '.join(map(str, _BY_BITS))}", HELP, USAGE)
    return None if bits is None else FORMATS[_BY_BITS[bits]]


def _machine(text: str) -> tuple[Accelerator, int | None]:
    if text in DATASHEETS:
        return DATASHEETS[text].accelerator(), DATASHEETS[text].memory_bytes
    if not Path(text).exists():
        fail(f"--accelerator {text}; expected a file of ceilings or one of {', '.join(DATASHEETS)}", HELP, USAGE)
    try:
        return read_accelerator(Path(text)), None
    except SweepError as error:
        fail(str(error), HELP)


def _quantity(option: str, dimension: Dimension, text: str) -> float:
    try:
        return dimension.parse(text)
    except ValueError as error:
        fail(f"{option}: {error}", HELP, USAGE)


def _changed(base: Scenario, change: _Change, weights: WeightFormat | None, accelerator: str | None) -> Scenario:
    served, machine, memory = base.served, base.accelerator, base.memory_bytes
    if weights is not None and weights.name != served.weights.name:
        served = replace(served, weights=weights, weight_scale=1.0)
    if accelerator is not None:
        machine, memory = _machine(accelerator)
    split = Split(
        change.tensor_parallel or base.split.tensor_parallel,
        change.pipeline_parallel or base.split.pipeline_parallel,
        _link(base.split.link, change),
    )
    if split.ranks > 1 and split.link is None:
        fail(f"{split.ranks} ranks need a link between them", f"{HELP} (--link-rate and --link-latency)", USAGE)
    return replace(
        base,
        served=served,
        accelerator=machine,
        split=split,
        replicas=change.replicas or base.replicas,
        batch=change.batch or base.batch,
        input_tokens=change.input_tokens or base.input_tokens,
        output_tokens=change.output_tokens or base.output_tokens,
        memory_bytes=memory,
    )


def _link(known: Link | None, change: _Change) -> Link | None:
    rate = None if change.link_rate is None else _quantity("--link-rate", RATE, change.link_rate)
    latency = None if change.link_latency is None else _quantity("--link-latency", DURATION, change.link_latency)
    if known is not None:
        return replace(
            known,
            latency_seconds=latency or known.latency_seconds,
            bytes_per_second=rate or known.bytes_per_second,
        )
    if (rate is None) != (latency is None):
        fail("a link needs both --link-rate and --link-latency where none was measured", HELP, USAGE)
    return None if rate is None or latency is None else Link(latency, rate)


def _even(calibration: Calibration, base: Scenario, changed: Scenario) -> BreakEven | None:
    ranks = max(changed.split.ranks, base.split.ranks)
    scenario = changed if changed.split.link is not None else base
    if ranks < 2 or scenario.split.link is None:
        return None
    try:
        return break_even(scenario, parameters(calibration, scenario), ranks)
    except CannotTell:
        return None  # the model cannot be split so in both ways: there is nothing to weigh


def _document(start: _Start, changed: Scenario, found: Comparison, even: BreakEven | None) -> dict[str, Any]:
    return {
        "base_scenario": start.base.to_json(),
        "changed_scenario": changed.to_json(),
        "interval": 0.9,
        **found.to_json(),
        "break_even": even.to_json() if even else None,
        "efficiencies": {name: asdict(value) for name, value in efficiencies(start.calibration).items()},
        "calibration_points": int(start.calibration.points.batch.size),
        "notes": list(start.notes),
    }


def _show(start: _Start, changed: Scenario, found: Comparison, even: BreakEven | None) -> None:
    count = start.calibration.points.batch.size
    out.print(f"base: {escape(scenario_text(start.base))}")
    out.print(f"changed: {escape(scenario_text(changed))}")
    out.print(f"[dim]calibrated on {count} measured point{'s' if count > 1 else ''}[/]")
    out.print(comparison_table(found))
    out.print(parts_table(found))
    out.print(f"base: {binds_text(found.base)}")
    out.print(f"changed: {binds_text(found.changed)}")
    if even is not None:
        out.print(f"break-even: {break_even_text(even)}")
    _show_notes(start.notes)
