"""`cluster lab campaign`: break a lab that serves, one thing after another, and see what the cluster makes of it."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cli.options import DEFAULT_LAB, JsonOption, LabOption
from cli.output import FAILED, console, emit, fail, out
from lab.campaign import KINDS, Result, conduct, page, summary
from lab.layout import LabError
from lab.requirements import check_root


def campaign(
    seed: Annotated[int, typer.Option(help="The same seed makes the same faults in the same order.")] = 1,
    faults: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 25,
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="Only these kinds; again for each.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write a page with the command and its table.")] = None,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Break a lab that serves, one thing after another, under load; exit status 1 when something was not as it must be.

    The lab must be up and serve (`cluster deploy`). Ranks are killed, stopped and cut off, daemons killed, links and
    nodes slowed, files damaged, events forged. After each: requests are answered, samples arrive, nothing is left over,
    `cluster status` shows what is, and `cluster audit` names the cause.
    """
    results: list[Result] = []
    try:
        check_root()
        for result in conduct(lab, seed, faults, kinds or list(KINDS), lambda text: console.print(escape(text))):
            results.append(result)
            for text in result.violations:
                console.print(f"  [red]{escape(text)}[/]")
    except KeyboardInterrupt:
        # A campaign is long: what was seen until now is worth as much.
        console.print(f"ended after {len(results)} faults: interrupted")
    except LabError as error:
        if not results:
            fail(str(error), error.next_command, error.code)
        console.print(f"[red]ended after {len(results)} faults: {escape(str(error))}[/]")
    found: dict[str, Any] = {**summary(results), "seed": seed, "results": [asdict(each) for each in results]}
    if write is not None:
        setting = f"a lab on {os.cpu_count()} cores, two clients"
        command = shlex.join(["cluster", *sys.argv[1:]])
        write.write_text(page(results, command, setting), encoding="utf-8")
    emit(found, as_json, lambda: _print(found))
    if found["violations"] or len(results) < faults:
        raise typer.Exit(FAILED)


def _print(found: dict[str, Any]) -> None:
    table = Table("fault", "times", "known after (s)", "serves after (s)", "not as it must be", box=None)
    for kind, figures in [*found["kinds"].items(), ("all", found["all"])]:
        cells = [
            f"{figures[name]['median']:g} / {figures[name]['p99']:g}" if figures[name] else "-"
            for name in ("detected_seconds", "serving_seconds")
        ]
        table.add_row(escape(kind), str(figures["count"]), *cells, str(figures["violations"]))
    out.print(table)
