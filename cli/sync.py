"""`cluster sync`: this checkout to the control node."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from bottleneck.profile import ProfileError, find_profile, load_profile
from cli import config
from cli.cluster import runner_step
from cli.control import control_target
from cli.options import JsonOption
from cli.output import USAGE, console, emit, fail, out
from remote import sync as transfer
from remote.sync_effects import PROFILE_CHANGED, Consequences, consequences, take_up
from remote.tree import EXCLUDES, Difference, TreeError

REPOSITORY = Path(__file__).resolve().parents[1]
SHOWN = 40
CONTROL = "cluster control cmd --"


def sync(
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would change; change nothing.")] = False,
    source: Annotated[
        Path | None, typer.Option(help="The tree to send.", show_default="the one this command is from")
    ] = None,
    no_restart: Annotated[
        bool, typer.Option("--no-restart", help="Leave the running master with the code that it has in memory.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send this tree to the control node and take it into use there, in one step.

    When code or a profile changed that the master has in memory, the master is restarted and learns of the profile. The
    control node keeps the last trees; nothing but those is ever deleted there.

    Examples:

      cluster sync --dry-run

      cluster sync
    """
    _refuse_lab()
    target = control_target()
    if target is None:
        fail("this machine is the control node: its tree is changed where it is", code=USAGE)
    root = (source or REPOSITORY).resolve()
    try:
        with runner_step(f"Comparing with {target.host}"):
            planned = transfer.plan(target, root, [*EXCLUDES, *config.texts("sync.exclude")])
        changes = planned.difference
        is_needed = planned.release != planned.current or changes.count > 0
        taken: dict[str, Any] = {"master": "untouched", "reason": "", "event": False}
        needed = consequences(changes, planned.behind)
        if not dry_run and is_needed:
            with runner_step(f"Sending {changes.count} changes") as current:
                transfer.send(target, planned, current.detail)
        if not dry_run and (is_needed or needed.restart):
            with runner_step("Looking after the running master"):
                taken = take_up(target, replace(needed, restart=needed.restart and not no_restart))
    except TreeError as error:
        fail(str(error), "cluster sync --help", USAGE)

    def human() -> None:
        for line in difference_lines(changes):
            out.print(line)
        if not is_needed:
            console.print(f"{target.host} has this tree already: {planned.release}")
            if needed.restart:
                console.print("its master began with an older one, as after a sync that was cut off")
        if not is_needed and not needed.restart:
            return
        if dry_run:
            console.print("[dim]next:[/] cluster sync")
        elif is_needed:
            console.print(f"in use on {target.host}: {planned.release}, before it {planned.current or 'none'}")
        if not dry_run:
            for line in _followed(taken, needed, no_restart):
                console.print(line, soft_wrap=True)

    document = {
        "release": planned.release,
        "previous": planned.current,
        "sent": is_needed and not dry_run,
        "added": changes.added,
        "changed": changes.changed,
        "deleted": changes.deleted,
        "master": taken["master"],
        "reason": taken["reason"],
        "event": PROFILE_CHANGED if taken["event"] else None,
        "init_needed": needed.init,
    }
    emit(document, as_json, human)
    if taken["master"] == "failed":
        fail(f"the master did not come up again: {taken['reason']}", f"{CONTROL} journalctl --unit salt-master")


def _refuse_lab() -> None:
    """End the command when it means a lab, whose control node reads this tree where it is."""
    if config.get("control.host") is not None:
        return
    try:
        profile = load_profile(find_profile(str(config.get("profile"))))
    except (ProfileError, config.ConfigError):
        return  # whatever is wrong there, the missing control node is said first
    if profile.kind == "lab":
        fail(
            f"profile {profile.name} is a lab: its control node reads this tree where it is, so there is nothing to "
            "send; engines that run take new code when the lab is started again",
            "cluster lab down && cluster lab up",
            USAGE,
        )


def _followed(taken: dict[str, Any], needed: Consequences, no_restart: bool) -> list[str]:
    """Return what was done about the running master, and what is still to be done."""
    restart = f"{CONTROL} systemctl restart salt-master"
    lines = {
        "restarted": ["its master was restarted: it has the new code"],
        "busy": [f"its master has the old code in memory: {escape(taken['reason'])}", f"[dim]after that:[/] {restart}"],
        "absent": [f"no master of ours runs there: {escape(taken['reason'])}"],
    }.get(taken["master"], [])
    if no_restart and needed.restart:
        lines = ["its master has the old code in memory", f"[dim]next:[/] {restart}"]
    if needed.profile and taken["event"]:
        lines.append(f"event sent: {PROFILE_CHANGED}; who is due: cluster reprovision --due")
    elif needed.profile and taken["master"] != "absent":
        lines.append(f"event not sent: {PROFILE_CHANGED}; who is due: cluster reprovision --due")
    lines.append(f"[dim]next:[/] {'cluster control init' if needed.init else 'cluster plan'}")
    return lines


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
