"""`cluster bottleneck`: what held a run back, with the evidence."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from bottleneck.samples import node_samples
from cli.options import JsonOption
from cli.output import console, emit, out
from cli.report.page import missing_notes, verdict_of
from cli.report.series import time_edges
from cli.report.usage import usage
from cli.run_folders import open_run
from cli.verdict_text import whole_verdict


def bottleneck(
    run: Annotated[
        str | None, typer.Argument(help="A run's id or its beginning.", show_default="the newest run")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Analyse the recorded measurements anew, not the verdict kept with them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what held a run back: the ledger, the ceilings, the verdict, what to try next.

    Examples:

      cluster bottleneck

      cluster bottleneck 20261123T2130 --json
    """
    recorded = open_run(run)
    verdict = verdict_of(recorded, again)
    uses = usage(recorded, node_samples(recorded.batches), time_edges(*recorded.interval))
    notes = missing_notes(recorded, verdict, [])

    def human() -> None:
        out.print(f"[dim]run {escape(recorded.id)}, {escape(recorded.deployment or 'unknown deployment')}[/]")
        out.print(whole_verdict(verdict, uses, notes))
        console.print(f"[dim]next:[/] cluster report {recorded.id} --open")

    document = {
        "run": recorded.id,
        "deployment": recorded.deployment,
        "verdict": verdict,
        "ceilings": [use.to_json() for use in uses],
        "notes": notes,
    }
    emit(document, as_json, human)
