"""`cluster bottleneck --from`: the verdict over recorded engine metrics, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from bottleneck.diagnosis.verdict import Verdict, analyse
from bottleneck.runs.run import Run
from bottleneck.runs.scenario import ScenarioError, load_scenario
from cli.output import USAGE, console, emit, fail, out
from cli.report.series import time_edges
from cli.report.usage import Use, usage
from cli.verdict_text import whole_verdict


def show_scenario(path: Path, ceilings: Path | None, as_json: bool) -> None:
    """Judge a scenario file and print the verdict."""
    try:
        run = load_scenario(path, ceilings)
    except ScenarioError as error:
        fail(str(error), "read the form of a scenario: doc/reference/scenario-file.md", USAGE)
    verdict = analyse(run)
    uses = usage(run, {}, time_edges(*run.interval))
    emit(scenario_document(run, verdict, uses), as_json, lambda: _print(run, verdict, uses, path))


def scenario_document(run: Run, verdict: Verdict, uses: list[Use]) -> dict[str, Any]:
    """Return what `--json` prints: the verdict's head at the top, all of it below."""
    whole = verdict.to_json()
    head = {key: whole[key] for key in ("class", "title", "fault", "confidence", "runners_up", "evidence", "notes")}
    return {"scenario": run.id, **head, "ceilings": [use.to_json() for use in uses], "verdict": whole}


def _print(run: Run, verdict: Verdict, uses: list[Use], path: Path) -> None:
    out.print(f"[dim]scenario {escape(run.id)}, {escape(str(path))}[/]")
    out.print(whole_verdict(verdict.to_json(), uses, verdict.notes, out.width))
    console.print("[dim]next:[/] cluster bottleneck --help")
