"""`cluster sync`: this checkout to the control node."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cli import config
from cli.cluster import runner_step
from cli.control import control_target
from cli.options import JsonOption
from cli.output import USAGE, console, emit, fail, out
from cli.remote import sync as transfer
from cli.remote.tree import EXCLUDES, Difference, TreeError

REPOSITORY = Path(__file__).resolve().parents[1]
SHOWN = 40


def sync(
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would change; change nothing.")] = False,
    source: Annotated[
        Path | None, typer.Option(help="The tree to send.", show_default="the one this command is from")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send this tree to the control node and take it into use there, in one step.

    The control node keeps the last trees; nothing but those is ever deleted there.

    Examples:

      cluster sync --dry-run

      cluster sync
    """
    target = control_target()
    if target is None:
        fail("this machine is the control node: its tree is changed where it is", code=USAGE)
    root = (source or REPOSITORY).resolve()
    try:
        with runner_step(f"Comparing with {target.host}"):
            planned = transfer.plan(target, root, [*EXCLUDES, *config.get("sync.exclude")])
        changes = planned.difference
        is_needed = planned.release != planned.current or changes.count > 0
        if not dry_run and is_needed:
            with runner_step(f"Sending {changes.count} changes") as current:
                transfer.send(target, planned, current.detail)
    except TreeError as error:
        fail(str(error), "cluster sync --help", USAGE)

    def human() -> None:
        for line in difference_lines(changes):
            out.print(line)
        if not is_needed:
            console.print(f"{target.host} has this tree already: {planned.release}")
        elif dry_run:
            console.print("[dim]next:[/] cluster sync")
        else:
            console.print(f"in use on {target.host}: {planned.release}, before it {planned.current or 'none'}")
            console.print("[dim]next:[/] cluster plan")

    document = {
        "release": planned.release,
        "previous": planned.current,
        "sent": is_needed and not dry_run,
        "added": changes.added,
        "changed": changes.changed,
        "deleted": changes.deleted,
    }
    emit(document, as_json, human)


def difference_lines(changes: Difference) -> list[str]:
    """Return one line for each path, and one for those that are too many."""
    marked = [
        *(("[green]+[/]", path) for path in changes.added),
        *(("[yellow]~[/]", path) for path in changes.changed),
        *(("[red]-[/]", path) for path in changes.deleted),
    ]
    lines = [f"{mark} {escape(path)}" for mark, path in marked[:SHOWN]]
    if len(marked) > SHOWN:
        lines.append(f"[dim]and {len(marked) - SHOWN} more; --json has them all[/]")
    return lines
