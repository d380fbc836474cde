"""`cluster audit`, `cluster pause` and `cluster resume`: what the cluster does by itself, and whether it may."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cli.cluster import runner_step
from cli.control import connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import console, emit, out


def audit(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000, help="How many from the end.")] = 20,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Show what the cluster did by itself, with cause and result: restarts, reprovisioning, giving up.

    Examples:

      cluster audit -n 5

      cluster audit --json
    """
    control = connect(profile, lab)
    with runner_step("Reading the record"):
        found: dict[str, Any] = control.runner("recover.log", {"limit": lines})

    def human() -> None:
        if not found["entries"]:
            console.print("the cluster has done nothing by itself")
            return
        table = Table("when", "action", "cause", "result", "seconds")
        for entry in found["entries"]:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["time"]))
            words = [escape(str(entry.get(key, ""))) for key in ("action", "cause", "result", "seconds")]
            table.add_row(when, *words)
        out.print(table)

    emit(found, as_json, human)


def pause(
    reason: Annotated[str, typer.Argument(help="Why, for those who come after.")] = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Have the cluster do nothing by itself: no restart of workers, no reprovisioning.

    Examples:

      cluster pause "cables are being changed"
    """
    control = connect(profile, lab)
    with runner_step("Pausing"):
        found: dict[str, Any] = control.runner("recover.pause", {"reason": reason})
    emit(found, as_json, lambda: out.print("the cluster does nothing by itself until: cluster resume"))


def resume(profile: ProfileOption = DEFAULT_PROFILE, lab: LabOption = DEFAULT_LAB, as_json: JsonOption = False) -> None:
    """Let the cluster act by itself again, and look at once whether the deployment serves.

    Examples:

      cluster resume
    """
    control = connect(profile, lab)
    with runner_step("Resuming", "cluster audit"):
        found: dict[str, Any] = control.runner("recover.resume")

    def human() -> None:
        serves = {True: "the deployment serves", False: "the deployment does not serve"}.get(found["serves"])
        out.print(escape(f"{serves}: {found['reason']}" if serves else str(found["reason"])), soft_wrap=True)

    emit(found, as_json, human)
