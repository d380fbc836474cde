"""`cluster run`: the recorded runs, one of them, two of them side by side."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bottleneck.load.client import client_result
from bottleneck.runs.compare import compare as compare_runs
from bottleneck.runs.reading import read_json
from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import client_files
from bottleneck.units import duration_text
from cli.completion import run_names
from cli.control import runs_directory
from cli.options import JsonOption
from cli.output import console, emit, out
from cli.report.comparison import change_words, estimate_words, metric_words
from cli.report.figures import Figures, client_figures
from cli.report.page import verdict_of
from cli.report.quantity import quantity
from cli.run_folders import RunHead, open_run, run_heads
from cli.verdict_text import headline

app = typer.Typer(help="List, show and compare recorded runs.", no_args_is_help=True)
RunArgument = Annotated[str, typer.Argument(help="A run's id or its beginning.", autocompletion=run_names)]


def figures_json(figures: Figures | None) -> dict[str, Any]:
    """Return a run's key figures as JSON-able data, in seconds and tokens."""
    if figures is None:
        return {}
    latencies = {
        f"{item.name.lower()}_seconds": {
            "mean": item.mean,
            **{f"p{share}": item.percentile(share) for share in (50, 95, 99)},
        }
        for item in figures.latencies
    }
    return {
        "requests": figures.requests,
        "failed": figures.failed,
        "output_tokens": figures.output_tokens,
        "output_tokens_per_second": figures.output_tokens_per_second,
        **latencies,
    }


def _summary(head: RunHead) -> dict[str, Any]:
    """Return what the list shows of a run, from its small files."""
    documents = [read_json(path, []) for path in client_files(head.folder)]
    figures = client_figures(client_result(documents)) if documents else None
    found = head.read("verdict.json")
    verdict = found if isinstance(found, dict) else {}
    return {
        "id": head.id,
        "started": head.started or None,
        "deployment": head.text("deployment"),
        "status": head.text("status") or "unknown",
        "note": head.text("note"),
        "verdict": {name: verdict.get(name) for name in ("class", "title", "confidence", "where")} if verdict else None,
        **figures_json(figures),
    }


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the recorded runs, the newest first.

    Examples:

      cluster run list

      cluster run list --json
    """
    rows = [_summary(head) for head in run_heads()]

    def human() -> None:
        if not rows:
            console.print(f"no recorded runs in {escape(str(runs_directory()))}\n[dim]next:[/] cluster bench")
            return
        table = Table("run", "when", "tokens/s", "first token", "verdict", "note", box=None, pad_edge=False)
        for column in table.columns[:4]:
            column.no_wrap = True
        for row in rows:
            verdict = row["verdict"]
            title = (
                f"{escape(str(verdict['title']))} [dim]{float(verdict['confidence'] or 0):.0%}[/]" if verdict else "-"
            )
            partial = "" if row["status"] == "complete" else f"[yellow]{escape(row['status'])}[/] "
            speed, first = row.get("output_tokens_per_second"), (row.get("ttft_seconds") or {}).get("p50")
            table.add_row(
                escape(row["id"]),
                _when(row["started"]),
                quantity(speed) if speed is not None else "-",
                quantity(first, "s") if first is not None else "-",
                title,
                partial + escape(row["note"]),
            )
        out.print(table)

    emit({"runs": rows}, as_json, human)


@app.command("show")
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show what a run sent, what the client saw, and its verdict.

    Examples:

      cluster run show 20261123T2130
    """
    recorded = open_run(run)
    figures, verdict = client_figures(recorded.client), verdict_of(recorded)
    batches: dict[str, int] = {}
    for batch in recorded.batches:
        node = str(batch.get("node", ""))
        batches[node] = batches.get(node, 0) + 1

    def human() -> None:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in _facts(recorded, figures, batches):
            table.add_row(f"[dim]{escape(name)}[/]", escape(value))
        out.print(table)
        out.print()
        out.print(headline(verdict))
        for problem in recorded.problems:
            console.print(f"[yellow]note:[/] {escape(problem)}")
        console.print(f"[dim]next:[/] cluster bottleneck {recorded.id}")

    document = {
        "id": recorded.id,
        "folder": str(recorded.folder),
        "started": recorded.interval[0],
        "ended": recorded.interval[1],
        "deployment": recorded.deployment,
        "status": recorded.status,
        "note": recorded.note,
        "profile": {"name": recorded.profile.name, "version": recorded.profile.version} if recorded.profile else None,
        "overrides": recorded.overrides,
        "settings": recorded.settings.model_dump(exclude_none=True),
        "workload": _load(recorded),
        "versions": recorded.versions,
        "batches": batches,
        "figures": figures_json(figures),
        "verdict": verdict,
        "problems": recorded.problems,
    }
    emit(document, as_json, human)


def _load(run: Run) -> dict[str, Any]:
    return run.workload.to_json() if run.workload else {}


def _facts(run: Run, figures: Figures | None, batches: dict[str, int]) -> list[tuple[str, str]]:
    rows = [
        ("run", run.id),
        ("folder", str(run.folder)),
        ("when", f"{_when(run.interval[0])}, {duration_text(run.seconds) if run.seconds > 0 else 'unknown length'}"),
        ("deployment", run.deployment or "unknown"),
        ("status", run.status),
        (
            "workload",
            ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in _load(run).items()) or "unknown",
        ),
        ("batches", ", ".join(f"{node} {count}" for node, count in sorted(batches.items())) or "none"),
    ]
    if run.overrides:
        rows.append(("changed", ", ".join(f"{name} {value}" for name, value in run.overrides.items())))
    if run.note:
        rows.append(("note", run.note))
    if figures is None:
        return [*rows, ("client", "no timings")]
    rows.append(("requests", f"{figures.requests}, {figures.failed} failed"))
    if figures.output_tokens_per_second is not None:
        rows.append(("output", quantity(figures.output_tokens_per_second, "tokens/s")))
    for item in figures.latencies:
        p50, p95, p99 = (quantity(item.percentile(share), "s") for share in (50, 95, 99))
        rows.append((item.meaning, f"p50 {p50}, p95 {p95}, p99 {p99}"))
    return rows


@app.command("compare")
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A run's id or its beginning.", autocompletion=run_names)],
    second: Annotated[str, typer.Argument(metavar="B", help="The run that is compared with it.")],
    as_json: JsonOption = False,
) -> None:
    """Say which differences between two runs are beyond noise.

    Examples:

      cluster run compare 20261123T2130 20261123T2215
    """
    a, b = open_run(first), open_run(second)
    found = compare_runs([a], [b])
    verdicts = [verdict_of(run) for run in (a, b)]
    # What was not the same on purpose: a difference may come from it.
    loads = [_load(run) for run in (a, b)]
    changed = sorted(name for name in {*loads[0], *loads[1]} if loads[0].get(name) != loads[1].get(name))

    def human() -> None:
        for letter, run, verdict in zip("AB", (a, b), verdicts, strict=True):
            out.print(f"[bold]{letter}[/] {escape(run.id)}  {escape(run.deployment)}  {escape(run.note)}")
            out.print(
                f"  [dim]{escape(str(verdict.get('title')))}, confidence {float(verdict.get('confidence') or 0):.0%}[/]"
            )
        if changed:
            differences = ", ".join(f"{name} {loads[0].get(name)} / {loads[1].get(name)}" for name in changed)
            console.print(f"[yellow]note:[/] the workloads differ: {escape(differences)}")
        table = Table("measure", "A", "B", "change", "", box=None, pad_edge=False)
        for item in found:
            style = {"a": "red", "b": "green", None: "dim"}[item.better]
            better = {"a": "worse, ", "b": "better, ", None: ""}[item.better]
            sides = [
                f"{value} [dim]{interval}[/]"
                for value, interval in (estimate_words(item.a, item.unit), estimate_words(item.b, item.unit))
            ]
            table.add_row(metric_words(item.metric), *sides, change_words(item), f"[{style}]{better}{item.word}[/]")
        out.print(table)
        console.print(f"[dim]next:[/] cluster report {a.id} {b.id}")

    document = {
        "a": {"id": a.id, "deployment": a.deployment, "verdict": verdicts[0].get("class")},
        "b": {"id": b.id, "deployment": b.deployment, "verdict": verdicts[1].get("class")},
        "workload_differs": changed,
        "comparison": [item.to_json() for item in found],
    }
    emit(document, as_json, human)


def _when(moment: float | None) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else "unknown"
