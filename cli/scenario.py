"""`cluster bottleneck --from` and `--url`: the verdict over an engine's metrics alone, recorded or live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from bottleneck.diagnosis.verdict import Verdict, analyse
from bottleneck.runs.metrics_texts import is_metrics_text, pair_document
from bottleneck.runs.run import Run
from bottleneck.runs.scenario import ScenarioError, judgeable, load_scenario
from cli.live import LiveError, watch
from cli.output import FAILED, UNREACHABLE, USAGE, console, emit, fail, out, step
from cli.report.series import time_edges
from cli.report.usage import Use, usage
from cli.verdict_text import explanation, whole_verdict

_FOREIGN = (
    "Commands above are for a server that `cluster deploy` started. Start one of your own anew with the same setting "
    "as an argument (max_num_seqs is --max-num-seqs), and read its own log."
)
_FORM = "read the form of a scenario: doc/reference/scenario-file.md"
_PAIR = "cluster bottleneck --from BEFORE --from AFTER --seconds SECONDS"


@dataclass(frozen=True)
class Shown:
    """With which ceilings recorded metrics are judged, and how the verdict is shown."""

    ceilings: Path | None
    as_json: bool
    explain: bool = False


def show_scenario(sources: Sequence[Path], seconds: float | None, shown: Shown) -> None:
    """Judge a scenario file, or two texts of `/metrics`, and print the verdict.

    Parameters
    ----------
    sources
        One scenario file; or the text from before the load and the one from after.
    seconds
        Between two texts; None takes it from when the files were written.
    """
    try:
        if len(sources) == 1:
            run = load_scenario(sources[0], shown.ceilings)
        else:
            before, after = sources
            run = judgeable(pair_document(before, after, seconds), f"{before}, {after}", shown.ceilings)
    except ScenarioError as error:
        if len(sources) == 1 and is_metrics_text(sources[0]):
            fail(f"{sources[0]}: the text of /metrics; expected two, from before and after a load", _PAIR, USAGE)
        fail(str(error), _FORM, USAGE)
    _show(run, ", ".join(str(source) for source in sources), shown)


def show_live(address: str, seconds: float, kept: Path | None, shown: Shown) -> None:
    """Watch a server for a while, judge what it reported, and print the verdict; `kept` takes the scenario file."""
    try:
        with step(f"watching {address} for {seconds:g} s") as progress:
            watched = watch(address, seconds, progress.detail)
        run = judgeable(watched.document, address, shown.ceilings)
    except LiveError as error:
        fail(str(error), error.next_command, UNREACHABLE if error.unreachable else FAILED)
    except ScenarioError as error:
        fail(str(error), _FORM, USAGE)
    if kept is not None:
        kept.write_text(json.dumps(watched.document) + "\n", encoding="utf-8")
    _show(replace(run, problems=(*run.problems, *watched.unseen)), address, shown)


def scenario_document(run: Run, verdict: Verdict, uses: list[Use]) -> dict[str, Any]:
    """Return what `--json` prints: the verdict's head at the top, all of it below."""
    whole = verdict.to_json()
    head = {key: whole[key] for key in ("class", "title", "fault", "confidence", "runners_up", "evidence", "notes")}
    return {"scenario": run.id, **head, "ceilings": [use.to_json() for use in uses], "verdict": whole}


def _show(run: Run, source: str, shown: Shown) -> None:
    verdict = analyse(run)
    uses = usage(run, {}, time_edges(*run.interval))
    emit(
        scenario_document(run, verdict, uses), shown.as_json, lambda: _print(run, verdict, uses, source, shown.explain)
    )


def _print(run: Run, verdict: Verdict, uses: list[Use], source: str, explain: bool) -> None:
    out.print(f"[dim]scenario {escape(run.id)}, {escape(source)}[/]")
    document = verdict.to_json()
    out.print(whole_verdict(document, uses, verdict.notes, out.width))
    if verdict.advice:
        out.print(f"\n[dim]{_FOREIGN}[/]")
    if explain:
        out.print(explanation(document))
    console.print("[dim]next:[/] cluster bottleneck --help")
