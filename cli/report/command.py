"""`cluster report`: one HTML file about a run."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bottleneck import atomic_files
from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import load_run
from cli.completion import run_names
from cli.options import JsonOption
from cli.output import console, emit, fail, out
from cli.report.page import render
from cli.run_folders import open_run


def write_report(folders: Sequence[Path], path: Path) -> Path:
    """Write the report of the first run, compared with the others; return where it is.

    Raises
    ------
    RunError
        When a folder is not a run.
    OSError
        When the file cannot be written.
    """
    return _write([load_run(folder) for folder in folders], path)


def _write(runs: Sequence[Run], path: Path) -> Path:
    text = render(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a browser that has the old one open must not read half a page.
    atomic_files.replace(path, text)
    return path


def report(
    run: Annotated[
        list[str] | None,
        typer.Argument(help="A run's id or its beginning; more are compared with the first.", autocompletion=run_names),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.", show_default="report.html of the run")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a report of a run as one HTML file that opens anywhere, offline. Without RUN: the newest.

    Examples:

      cluster report --open

      cluster report 20261123T2130 20261123T2215 --output before-and-after.html
    """
    runs = [open_run(text) for text in run] if run else [open_run(None)]
    path = (output or (runs[0].folder or Path()) / "report.html").absolute()
    try:
        _write(runs, path)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror or error}", "cluster report --output FILE")

    def human() -> None:
        out.print(str(path), soft_wrap=True, markup=False)
        if not open_it:
            console.print("[dim]next:[/] cluster report --open")

    emit({"path": str(path), "runs": [item.id for item in runs]}, as_json, human)
    if open_it and not webbrowser.open(path.as_uri()):
        fail(f"no browser could be started; open {path} by hand")
