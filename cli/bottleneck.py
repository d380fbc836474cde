"""`cluster bottleneck`: what held a run back, with the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bottleneck.samples import node_samples
from bottleneck.verdict import Verdict
from cli.options import JsonOption
from cli.output import USAGE, console, emit, fail, out
from cli.report.page import missing_notes, verdict_of
from cli.report.series import time_edges
from cli.report.usage import usage
from cli.run_folders import open_run
from cli.scenario import show_scenario
from cli.verdict_text import evidence_lines, headline, ledger_table, section, whole_verdict


def show_verdict(verdict: Verdict) -> None:
    """Print a verdict in short: the name, the ledger, the evidence."""
    document = verdict.to_json()
    out.print(headline(document))
    out.print(section("Where the time of an output token goes", ledger_table(document["ledger"], out.width)))
    out.print(section("Evidence", evidence_lines(document)))


def bottleneck(
    run: Annotated[
        str | None, typer.Argument(help="A run's id or its beginning.", show_default="the newest run")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Analyse the recorded measurements anew, not the verdict kept with them.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Judge recorded engine metrics, a scenario file, instead of a run."),
    ] = None,
    ceilings: Annotated[
        Path | None, typer.Option("--ceilings", help="With --from: the ceilings of the scenario's machine.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what held a run back: the ledger, the ceilings, the verdict, what to try next.

    Examples:

      cluster bottleneck

      cluster bottleneck 20261123T2130 --json

      cluster bottleneck --from scenario.json.gz --ceilings ceilings.json --json
    """
    if source is not None:
        if run is not None or again:
            fail("--from takes a scenario file; a run and --again do not go with it", code=USAGE)
        show_scenario(source, ceilings, as_json)
        return
    if ceilings is not None:
        fail("--ceilings goes with --from; a run has its own ceilings", "cluster bottleneck --help", USAGE)
    recorded = open_run(run)
    verdict = verdict_of(recorded, again)
    uses = usage(recorded, node_samples(recorded.batches), time_edges(*recorded.interval))
    notes = missing_notes(recorded, verdict, [])

    def human() -> None:
        out.print(f"[dim]run {escape(recorded.id)}, {escape(recorded.deployment or 'unknown deployment')}[/]")
        out.print(whole_verdict(verdict, uses, notes, out.width))
        console.print(f"[dim]next:[/] cluster report {recorded.id} --open")

    document = {
        "run": recorded.id,
        "deployment": recorded.deployment,
        "verdict": verdict,
        "ceilings": [use.to_json() for use in uses],
        "notes": notes,
    }
    emit(document, as_json, human)
