"""`cluster doctor`: look at everything, one line each, with the evidence and the mend."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bottleneck.profile import Profile, ProfileError, find_profile, load_profile
from cli.control import connect, control_target
from cli.doctor.check import Check
from cli.doctor.control import INSPECTION, judge_control
from cli.doctor.laptop import check_laptop, check_reach
from cli.doctor.nodes import judge_engines, judge_node
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import FAILED, UNREACHABLE, USAGE, emit, fail, out, step
from remote.control_interface import Control, ControlError
from remote.quoting import PYTHON
from remote.target import Target

MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failed": "[red]✗[/]", "unknown": "[yellow]?[/]"}
# Emulated or busy machines take a minute to start a program of Salt's.
INSPECTION_SECONDS, FACTS_SECONDS = 120.0, 300.0
LOCK = Path(__file__).resolve().parents[2] / "setup/source.lock"


def doctor(
    problems: Annotated[bool, typer.Option("--problems", help="Leave out what is well.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Look at the laptop, the control node and the nodes; say what was seen and what mends it.

    Exit status 1 when something has failed, 4 when the control node cannot be reached.

    Examples:

      cluster doctor

      cluster doctor --problems --json
    """
    try:
        loaded = load_profile(find_profile(profile))
    except ProfileError as error:
        fail(str(error), f"cluster profile check {profile}", USAGE)
    target = control_target() if loaded.kind != "lab" else None
    checks: list[Check] = []
    with step("Looking at the laptop"):
        checks += check_laptop(target)
    reached = True
    if target is not None:
        with step(f"Reaching {target.host}"):
            checks.append(check_reach(target))
        reached = checks[-1].status == "ok"
    if reached:
        control = connect(profile, lab)
        checks += _beyond(control, loaded, target)

    shown = [check for check in checks if not problems or check.status != "ok"]
    counts = {status: sum(check.status == status for check in checks) for status in MARKS}
    emit({"checks": [check.to_json() for check in shown], "counts": counts}, as_json, lambda: _print(shown, counts))
    if not reached:
        raise typer.Exit(UNREACHABLE)
    if counts["failed"]:
        raise typer.Exit(FAILED)


def _beyond(control: Control, profile: Profile, target: Target | None) -> Iterator[Check]:
    """Look at the control node (of hardware) and at the nodes, through it."""
    if profile.kind != "lab":
        try:
            with step("Looking at the control node"):
                seen, clock = inspect(control, profile, target)
            yield from judge_control(profile, seen, clock, locked_salt())
        except ControlError as error:
            yield Check("control", "inspection", "unknown", str(error), error.next_command or "cluster control shell")
    facts: dict[str, Any] = {}
    checks: dict[str, list[dict[str, Any]]] = {}
    try:
        with step("Asking the nodes"):
            facts = node_facts(control, profile)
            checks = engine_checks(control, profile)
    except ControlError as error:
        yield Check("control", "questions to the nodes", "unknown", str(error), error.next_command or "cluster doctor")
    for name, node in profile.nodes.items():
        yield from judge_node(profile, name, facts.get(node.hostname))
        yield from judge_engines(name, checks.get(node.hostname, []))


def inspect(control: Control, profile: Profile, target: Target | None) -> tuple[dict[str, Any], float]:
    """Return what inspection.py sees on the control node, and how far its clock is from ours in seconds.

    Raises
    ------
    ControlError
        When it could not look.
    """
    programs = target.programs if target else f"{sys.prefix}/bin"
    words = [str(profile.control.interface), profile.control.address, programs]
    argv = [PYTHON, "-I", "-S", "-c", INSPECTION.read_text(encoding="utf-8"), *words]
    before = time.time()
    finished = control.run(argv, timeout=INSPECTION_SECONDS)
    try:
        seen: dict[str, Any] = json.loads(finished.stdout)
    except ValueError:
        reason = finished.stderr.strip().splitlines() or [f"status {finished.returncode}"]
        raise ControlError(f"could not look at the control node: {reason[-1]}") from None
    # It tells the time somewhere between our question and its answer: only what is outside counts.
    reported, after = float(seen["unix_seconds"]), time.time()
    return seen, reported - before if reported < before else max(0.0, reported - after)


def node_facts(control: Control, profile: Profile) -> dict[str, Any]:
    """Return what each node's hardware module read, by minion id; those that are silent are missing."""
    answers = _asked(control, profile, "hardware.facts")
    return {name: answer for name, answer in answers.items() if isinstance(answer, dict)}


def engine_checks(control: Control, profile: Profile) -> dict[str, list[dict[str, Any]]]:
    """Return what each node's engines were found to be, by minion id; those that are silent are missing."""
    answers = _asked(control, profile, "engine.checks")
    return {name: answer for name, answer in answers.items() if isinstance(answer, list)}


def _asked(control: Control, profile: Profile, function: str) -> dict[str, Any]:
    names = ",".join(node.hostname for node in profile.nodes.values())
    argv = ["salt", "--out=json", "--out-indent=-1", "--log-level=quiet", "--timeout=10", "-L", names, function]
    finished = control.run(argv, timeout=FACTS_SECONDS)
    facts: dict[str, Any] = {}
    for line in finished.stdout.splitlines():
        try:
            answers = json.loads(line)
        except ValueError:
            continue  # a sentence about who did not answer
        # When no minion answers at all, Salt's sentence is a JSON text.
        if isinstance(answers, dict):
            facts |= answers
    return facts


def locked_salt() -> str:
    """Return the version of Salt in the lock file."""
    found = re.search(r"^salt==([^\s;]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "none"


def _print(checks: list[Check], counts: dict[str, int]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    for check in checks:
        mend = f"\n[dim]mend:[/] {escape(check.mend)}" if check.mend else ""
        table.add_row(check.place, MARKS[check.status], check.what, escape(check.evidence) + mend)
    out.print(table)
    out.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))
