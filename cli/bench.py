"""`cluster bench`: send a workload, record the run, say how fast it was and what held it back."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from bottleneck.diagnosis.verdict import Verdict, analyse
from bottleneck.runs.run_folder import RunError, load_run
from bottleneck.units import duration_text
from cli.cluster import runner_step, shown
from cli.control import Control, ControlError, connect, runs_directory
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import Step, console, emit, fail, out

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Recorded:
    """A run on this laptop.

    Attributes
    ----------
    result
        What the runner returned: `points` with their headline numbers, `failed`, `first_error`, `problems`.
    """

    folder: Path
    result: dict[str, Any]
    verdict: Verdict


def record_run(control: Control, settings: dict[str, Any] | None = None, title: str | None = None) -> Recorded:
    """Send a workload to what is deployed, fetch the run's folder, and add its verdict.

    Parameters
    ----------
    settings
        Arguments of the `bench.run` runner: deployment, concurrency, rate, input_tokens, output_tokens, requests,
        seed, note, warmup, probe.
    """
    reported: dict[str, Any] = {}
    try:
        with runner_step(title or "Sending the workload") as current:
            result: dict[str, Any] = control.runner("bench.run", settings or {}, _follow(current, reported))
    except (KeyboardInterrupt, typer.Exit):
        _keep_partial(control, reported)
        raise
    folder = runs_directory() / str(result["run"])
    with runner_step("Fetching the run", f"cluster bench{control.options}"):
        control.fetch(result["folder"], folder)
    return Recorded(folder, result, _judge(folder))


def record_start(control: Control, note: str = "") -> Recorded:
    """Put the samples of the newest start, over or not, in a run, fetch its folder, and add its verdict."""
    with runner_step("Recording the start", f"cluster status{control.options}") as current:
        result: dict[str, Any] = control.runner("start_recording.record", {"note": note}, shown(current))
    folder = runs_directory() / str(result["run"])
    with runner_step("Fetching the run", f"cluster bottleneck --start{control.options}"):
        control.fetch(result["folder"], folder)
    return Recorded(folder, result, _judge(folder))


def bench(
    deployment: Annotated[str | None, typer.Option(help="The deployment that is to be up.")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Requests under way at a time; several make a sweep.")] = None,
    rate: Annotated[
        str | None, typer.Option(help="Requests per second, arriving at random; several make a sweep.")
    ] = None,
    input_tokens: Annotated[int | None, typer.Option("--input", min=1, help="Tokens of a prompt.")] = None,
    output_tokens: Annotated[int | None, typer.Option("--output", min=1, help="Tokens of an answer.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests of each point.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the random prompts.")] = None,
    note: Annotated[str, typer.Option(help="Kept with the run.")] = "",
    warmup: Annotated[bool, typer.Option(help="Send a few requests first that are not counted.")] = True,
    probe: Annotated[bool, typer.Option(help="Measure the deployment's link first, in a few seconds.")] = True,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Send a workload to what is deployed and record the run; what is left out is the profile's.

    Examples:

      cluster bench

      cluster bench --concurrency 1,2,4 --requests 16 --note "before the new cable"

      cluster bench --rate 0.5,1 --input 512 --json
    """
    if concurrency and rate:
        fail("--concurrency and --rate: expected one of them", "cluster bench --help", 2)
    control = connect(profile, lab)
    settings = {
        "deployment": deployment,
        "concurrency": parse_numbers("--concurrency", concurrency, int),
        "rate": parse_numbers("--rate", rate, float),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "requests": requests,
        "seed": seed,
        "note": note,
        "warmup": warmup,
        "probe": probe,
    }
    recorded = record_run(control, settings)
    result = recorded.result
    verdict = recorded.verdict

    def human() -> None:
        out.print(point_table(result["points"]))
        out.print(f"[bold]{verdict.title}[/] [dim](confidence {verdict.confidence:.0%})[/]")
        if verdict.gain:
            out.print(verdict.gain["statement"])
        if again := sum(point["headline"]["reconnected"] for point in result["points"]):
            console.print(f"[yellow]note:[/] {again} requests sent twice: their idle connection had been closed")
        for problem in result["problems"]:
            console.print(f"[yellow]note:[/] {problem}")
        console.print(f"recorded in {recorded.folder}", soft_wrap=True)
        for command in ("bottleneck", "report"):
            console.print(f"[dim]next:[/] cluster {command} {result['run']}")

    document = {**result, "folder": str(recorded.folder), "verdict": verdict.to_json()}
    emit(document, as_json, human)
    if result["failed"]:
        node = next(iter(control.profile.nodes))
        total = sum(row["requests"] for row in result["points"])
        fail(f"{result['failed']} of {total} requests failed: {result['first_error']}", f"cluster logs {node}")


def parse_numbers(option: str, text: str | None, kind: Callable[[str], Number]) -> list[Number] | None:
    """Turn `1,2,4` into numbers above zero, or end the command."""
    if text is None:
        return None
    try:
        numbers = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < 1e9 for number in numbers):
        fail(f"{option} {text}: expected numbers above zero, such as 1,2,4", "cluster bench --help", 2)
    return numbers


def point_table(points: list[dict[str, Any]]) -> Table:
    """Return one row for each point of the sweep."""
    table = Table(
        "load", "requests", "failed", "output tokens/s", "requests/s", "first token", "per token", "whole answer"
    )
    for point in points:
        numbers = point["headline"]
        load = f"{point['rate_per_second']:g}/s" if "rate_per_second" in point else f"{point['concurrency']} at a time"
        table.add_row(
            load,
            str(point["requests"]),
            f"[red]{numbers['failed']}[/]" if numbers["failed"] else "0",
            *(_rate(numbers[name]) for name in ("output_tokens_per_second", "requests_per_second")),
            *(_latency(numbers[name]) for name in ("ttft_seconds", "tpot_seconds", "e2e_seconds")),
        )
    table.caption = "times: median, and the 99th percentile in brackets"
    return table


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _latency(values: dict[str, float] | None) -> str:
    return f"{duration_text(values['median'])} [dim]({duration_text(values['p99'])})[/]" if values else "-"


def _follow(current: Step, reported: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Return a callback that shows a bench's progress and notes which run it is."""

    def follow(report: dict[str, Any]) -> None:
        if "run" in report:
            reported.update(report)
        else:
            current.detail(f"{report['stage']}: {report['detail']}")

    return follow


def _keep_partial(control: Control, reported: dict[str, Any]) -> None:
    """Fetch what a run that was cut short left, if it came so far."""
    if "run" not in reported:
        return
    folder = runs_directory() / str(reported["run"])
    try:
        control.fetch(reported["folder"], folder)
    except (ControlError, OSError) as error:
        console.print(f"[yellow]note:[/] what there was of run {reported['run']} could not be fetched: {error}")
        return
    console.print(f"kept what there is, as a partial run: {folder}", soft_wrap=True)
    with contextlib.suppress(RunError):
        _judge(folder)


def _judge(folder: Path) -> Verdict:
    """Analyse a run and put the verdict beside it."""
    verdict = analyse(load_run(folder))
    (folder / "verdict.json").write_text(json.dumps(verdict.to_json(), indent=1) + "\n", encoding="utf-8")
    return verdict
