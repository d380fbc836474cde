"""`cluster bottleneck`: what held a run back, with the evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from bottleneck.diagnosis.verdict import Verdict
from bottleneck.runs.run import Run
from bottleneck.telemetry.samples import node_samples
from bottleneck.units import DURATION
from cli.bench import record_start
from cli.causal import experiment, show_result, straggler_of
from cli.completion import run_names
from cli.control import connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import USAGE, console, emit, fail, out
from cli.report.page import missing_notes, verdict_of
from cli.report.series import time_edges
from cli.report.usage import usage
from cli.run_folders import open_run
from cli.scenario import Shown, show_live, show_scenario
from cli.verdict_text import evidence_lines, explanation, headline, ledger_table, section, whole_verdict

# Long enough for some requests of a chat, short enough to wait for.
WATCH_SECONDS = 20.0


def show_verdict(verdict: Verdict) -> None:
    """Print a verdict in short: the name, the ledger, the evidence."""
    document = verdict.to_json()
    out.print(headline(document))
    out.print(section("Where the time of an output token goes", ledger_table(document["ledger"], out.width)))
    out.print(section("Evidence", evidence_lines(document)))


def bottleneck(
    run: Annotated[
        str | None,
        typer.Argument(help="A run's id or its beginning.", show_default="the newest run", autocompletion=run_names),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Analyse the recorded measurements anew, not the verdict kept with them.")
    ] = False,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Judge recorded engine metrics instead of a run: a scenario file; or twice, the text of /metrics from "
            "before a load and from after.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="Judge a vLLM server that runs anywhere: read its /metrics for a while."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1, help="With --url: how long. With two --from: how much time lies between.", show_default="20"
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="With --url: keep what was read as a scenario file.")
    ] = None,
    ceilings: Annotated[
        Path | None, typer.Option("--ceilings", help="With --from and --url: the ceilings of that machine.")
    ] = None,
    start: Annotated[
        bool,
        typer.Option("--start", help="Instead of a run: what holds the deployment's start back, or held it."),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the arithmetic of every cause of which there is a sign.")
    ] = False,
    causal: Annotated[
        bool,
        typer.Option("--causal", help="Slow one resource at a time under the run's load, and see what follows."),
    ] = False,
    budget: Annotated[str, typer.Option(help="With --causal: how long the blocks may take.")] = "3 min",
    resource: Annotated[
        list[str] | None,
        typer.Option(help="With --causal: only this resource, such as cpu:node1; rank is every rank (repeatable)."),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Say what held a run back: the ledger, the ceilings, the verdict, what to try next.

    With --start it asks the cluster, while a deployment starts or after that: the samples since the order to deploy
    become a run.

    With --causal the run's load is sent again to what is deployed, in short bursts, while one resource at a time is
    slowed; every change is undone at the end, also after Ctrl-C or a crash.

    Examples:

      cluster bottleneck

      cluster bottleneck 20261123T2130 --json

      cluster bottleneck --from scenario.json.gz --ceilings ceilings.json --json

      cluster bottleneck --from before.prom --from after.prom --seconds 60

      cluster bottleneck --url http://10.0.0.5:8000 --seconds 20

      cluster bottleneck --explain

      cluster bottleneck --start

      cluster bottleneck --causal --budget "90 s" --resource cpu --resource link_rate:direct

      cluster bottleneck --causal --resource rank
    """
    if source or url is not None:
        if run is not None or again or causal or start:
            fail("--from takes a scenario file, --url a server: no run, --again, --start, --causal with it", code=USAGE)
        _judge_metrics(source or [], url, seconds, keep, Shown(ceilings, as_json, explain))
        return
    for option, value in (("--ceilings", ceilings), ("--seconds", seconds), ("--keep", keep)):
        if value is not None:
            fail(f"{option} goes with --from or --url; a run has its own", "cluster bottleneck --help", USAGE)
    if start and (run is not None or causal):
        fail("--start makes a run of its own; a run and --causal do not go with it", code=USAGE)
    recorded = open_run(str(record_start(connect(profile, lab)).folder) if start else run)
    if causal and recorded.start:
        fail(f"run {recorded.id} is a start, which has no load to send again", "cluster run list", USAGE)
    if causal:
        _confirm(recorded, budget, resource, profile, lab, as_json)
        return
    verdict = verdict_of(recorded, again)
    uses = usage(recorded, node_samples(recorded.batches), time_edges(*recorded.interval))
    notes = missing_notes(recorded, verdict, [])

    def human() -> None:
        out.print(f"[dim]run {escape(recorded.id)}, {escape(recorded.deployment or 'unknown deployment')}[/]")
        out.print(whole_verdict(verdict, uses, notes, out.width, recorded.start))
        if explain:
            out.print(explanation(verdict))
        console.print(f"[dim]next:[/] cluster report {recorded.id} --open")

    document = {
        "run": recorded.id,
        "deployment": recorded.deployment,
        "verdict": verdict,
        "ceilings": [use.to_json() for use in uses],
        "notes": notes,
    }
    emit(document, as_json, human)


def _judge_metrics(
    sources: list[Path], url: str | None, seconds: float | None, keep: Path | None, shown: Shown
) -> None:
    if url is not None and sources:
        fail("--url and --from: expected one of them", "cluster bottleneck --help", USAGE)
    if url is not None:
        show_live(url, seconds or WATCH_SECONDS, keep, shown)
        return
    if keep is not None or len(sources) > 2 or (seconds is not None and len(sources) == 1):
        fail(
            "--from: expected one scenario file, or two texts of /metrics with --seconds between; --keep is for --url",
            "cluster bottleneck --help",
            USAGE,
        )
    show_scenario(sources, seconds, shown)


def _confirm(recorded: Run, budget: str, resources: list[str] | None, profile: str, lab: str, as_json: bool) -> None:
    try:
        budget_seconds = DURATION.parse(budget)
    except ValueError as error:
        fail(f"--budget: {error}", "cluster bottleneck --help", USAGE)
    settings = {"load": load_of(recorded), "resources": resources or None}
    control = connect(profile, lab)
    result = experiment(control, budget_seconds, settings)
    accelerators = {name: node.accelerator.model for name, node in control.profile.nodes.items()}
    straggler = straggler_of(verdict_of(recorded), result, accelerators)
    result = {"run": recorded.id, **result, "straggler": straggler}
    if recorded.folder is not None:
        (recorded.folder / "causal.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    emit(result, as_json, lambda: show_result(result))


def load_of(recorded: Run) -> dict[str, Any]:
    """Return the load of a run, whole, as the causal experiment takes it; end the command when the run does not say."""
    if recorded.workload is None:
        fail(f"run {recorded.id}: run.json does not say what was sent (workload)", "cluster bench")
    return recorded.workload.to_json()
