"""`cluster plan-deployment`: which engine and which spread fit the cluster, how fast they should be, which to take."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import lab as lab_module
from bottleneck.estimate import Interval
from bottleneck.prediction.choice import Choice, Weighed, choose, missing_text, number_text
from bottleneck.prediction.recorded import calibrations
from bottleneck.prediction.sweep import SweepError
from bottleneck.profile import Profile, ProfileError, find_profile, load_profile
from bottleneck.profile.types import Workload
from bottleneck.runs import ceilings as ceilings_file
from bottleneck.runs.ceilings import Ceilings, CeilingsError
from bottleneck.units import duration_text, size_text
from cli import config
from cli.control import connect, runs_directory
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import USAGE, console, emit, fail, out
from cli.run_folders import open_run, run_heads
from remote.control_interface import ControlError

HELP = "cluster plan-deployment --help"
# With fewer the cells of the whole table are a few letters wide.
WIDE_COLUMNS = 140


@dataclass(frozen=True)
class _Measured:
    """Ceilings and what they are, for people."""

    ceilings: Ceilings | None
    source: str


def plan_deployment(
    ceilings: Annotated[
        Path | None,
        typer.Option("--ceilings", metavar="FILE", help="What probes measured, in place of the cluster's own."),
    ] = None,
    nominal: Annotated[
        bool, typer.Option("--nominal", help="Take the profile's figures and datasheets, whatever was measured.")
    ] = False,
    runs: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="RUN", help="Calibrate its engine on this recorded run; may be repeated."),
    ] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, help="Requests at the same time.")] = None,
    input_tokens: Annotated[int | None, typer.Option("--input", min=1, help="Tokens of a prompt.")] = None,
    output_tokens: Annotated[int | None, typer.Option("--output", min=1, help="Tokens of an answer.")] = None,
    link: Annotated[
        str | None,
        typer.Option("--link", help="Network between nodes, where the profile does not say.", show_default="fastest"),
    ] = None,
    every_form: Annotated[
        bool, typer.Option("--all-weights", help="Show the other forms of the weights, too, as --json does.")
    ] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Weigh every deployment that the profile's engines allow: memory, predicted speed, and which to take.

    Engines x spreads x forms of the weights. Speeds are of the step model of `cluster whatif`, at ceilings that
    `cluster probe` measured where it did, else at the profile's and datasheets' figures.

    Examples:

      cluster plan-deployment

      cluster plan-deployment --profile arc-a770/v0.1 --concurrency 1

      cluster plan-deployment --run 20261127T1627 --json
    """
    try:
        loaded = load_profile(find_profile(profile))
    except ProfileError as error:
        fail(str(error), f"cluster profile check {profile}", USAGE)
    if link is not None and link not in loaded.networks:
        fail(f"--link {link}; expected one of {', '.join(loaded.networks)}", HELP, USAGE)
    if nominal and ceilings is not None:
        fail("--nominal and --ceilings; expected one of them", HELP, USAGE)
    given = {"concurrency": concurrency, "input_tokens": input_tokens, "output_tokens": output_tokens}
    load = loaded.workload.model_copy(update={name: value for name, value in given.items() if value is not None})
    measured = _Measured(None, "none asked for") if nominal else _measured(loaded, ceilings, profile, lab)
    try:
        known = calibrations([open_run(name) for name in runs or []], loaded)
    except SweepError as error:
        fail(str(error), "cluster run list")
    found = choose(loaded, measured.ceilings, load, known, link)
    document = {"ceilings": measured.source, **found.to_json()}
    emit(document, as_json, lambda: _show(found, measured, load, every_form))


def _measured(profile: Profile, file: Path | None, name: str, lab: str) -> _Measured:
    """Return ceilings of a file, of the control node where it can be asked, or of the newest run of the profile."""
    if file is not None:
        try:
            found = ceilings_file.load(file, profile)
        except CeilingsError as error:
            fail(str(error), HELP, USAGE)
        if found is None:
            fail(f"--ceilings {file}: no such file", HELP, USAGE)
        return _Measured(found, str(file))
    if asked := _askable(profile, lab):
        try:
            document = connect(name, lab).runner("probe.show")
            if document:
                return _Measured(ceilings_file.parse(document), f"cluster probe, of {asked}")
        except (ControlError, CeilingsError) as error:
            console.print(f"note: ceilings of {asked}: {error}", style="dim", markup=False)
    for head in run_heads():
        if (head.document.get("profile") or {}).get("name") == profile.name:
            try:
                found = ceilings_file.load(head.folder / "ceilings.json", profile)
            except CeilingsError:
                continue
            if found is not None and found.known:
                return _Measured(found, f"run {head.id}")
    return _Measured(None, f"no probes of {profile.name}, nor a run of it in {runs_directory()}")


def _askable(profile: Profile, lab: str) -> str:
    """Return the control node that can be asked, for people; empty where none is up or none is set."""
    if profile.kind == "lab":
        return f"lab {lab}" if os.geteuid() == 0 and lab_module.status(lab).get("up") else ""
    try:
        return str(config.get("control.host") or "")
    except config.ConfigError as error:
        fail(str(error), "cluster config show --origin", USAGE)


def _show(found: Choice, measured: _Measured, load: Workload, every_form: bool) -> None:
    name = f"{found.profile.name} {found.profile.version}, {found.profile.model.name}"
    out.print(f"{escape(name)}: prompts of {load.input_tokens} tokens, answers of {load.output_tokens}", soft_wrap=True)
    out.print(f"[dim]ceilings: {escape(measured.source)}[/]", soft_wrap=True)
    possible = [each for each in found.possible if every_form or each.candidate.own_weights]
    refused = [each for each in found.refused if every_form or each.candidate.own_weights]
    if possible:
        out.print(_table(possible, load, out.width))
    for text in dict.fromkeys(note for each in possible if each.speed for note in each.speed.basis):
        out.print(f"[dim]{escape(text)}[/]", soft_wrap=True)
    for text in dict.fromkeys(each.unknown for each in possible if each.unknown):
        out.print(f"[yellow]no prediction:[/] {escape(text)}", soft_wrap=True)
    for each in refused:
        what = ", ".join((each.candidate.engine.interface.title, each.candidate.spread, each.candidate.weights))
        text = f"{each.candidate.name} ({what}): {each.refused}"
        out.print(f"[red]refused:[/] {escape(text)}", soft_wrap=True)
    out.print(f"[bold]{escape(found.sentence)}[/]", soft_wrap=True)
    if found.taken is not None:
        console.print(f"[dim]next:[/] {escape(_next(found.taken))}", soft_wrap=True)


def _next(taken: Weighed) -> str:
    name = taken.candidate.name
    if taken.candidate.written:
        return f"cluster deploy {name}"
    return f"write it into the profile, then cluster deploy {name}: {name}: {json.dumps(taken.to_json()['deployment'])}"


def _table(possible: list[Weighed], load: Workload, width: int) -> Table:
    """Return the table; where there is no room for all columns, those that decide."""
    table = Table(caption="in brackets the 90 % interval; in italics what the profile does not write")
    many = f"tokens/s, {load.concurrency}"
    titles = (
        "engine",
        "spread",
        "weights",
        "memory a rank",
        "tokens/s, one",
        "first token",
        many,
        "first token",
        "binds",
    )
    # By place, for two columns have one title.
    shown = [0, 1, 6, 7] if width < WIDE_COLUMNS else list(range(len(titles)))
    table.add_column("deployment", no_wrap=True)
    for place in shown:
        table.add_column(titles[place])
    for each in possible:
        candidate = each.candidate
        cells = (
            candidate.engine.interface.title,
            candidate.spread,
            candidate.weights,
            f"{size_text(each.memory.memory.total_bytes)}, {missing_text(each.memory)}" if each.memory else "-",
            *_rates(each, load),
        )
        table.add_row(
            Text(candidate.name, style="" if candidate.written else "italic"),
            *(Text(cells[place]) for place in shown),
            style="" if candidate.own_weights else "dim",
        )
    return table


def _rates(each: Weighed, load: Workload) -> tuple[str, ...]:
    if each.speed is None:
        return ("-",) * 5
    one, many = each.speed.one, each.speed.many
    waiting = "" if each.speed.at_once >= load.concurrency else f", {each.speed.at_once} at once"
    return (
        _rate(each.speed.one_rate),
        duration_text(one.ttft_seconds.median),
        f"{_rate(many.tokens_per_second)}{waiting}",
        duration_text(many.ttft_seconds.median),
        many.decode_binds,
    )


def _rate(rate: Interval) -> str:
    return f"{number_text(rate.median)} ({number_text(rate.low)} to {number_text(rate.high)})"
