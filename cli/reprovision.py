"""`cluster reprovision`: boot nodes into another image or profile, one at a time."""

from typing import Annotated, Any

import typer
from rich.markup import escape

from cli.cluster import runner_step, shown
from cli.control import connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import USAGE, console, emit, fail, out

STEPS = "arm its boot, reboot, wait for it, apply its states"


def reprovision(
    node: Annotated[
        list[str] | None, typer.Argument(help="Nodes of the profile, or --all.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every node, the canary first.")] = False,
    due: Annotated[bool, typer.Option("--due", help="Only say which nodes are due, and why.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Cut off requests that do not end in boot.drain.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Boot nodes into the active image, one at a time: drain, reboot, netboot, enrol, apply, deploy again.

    Stops at the first node that does not come back. If the image is another than the node ran before, it is rolled
    back, and the nodes that have it are brought back.

    Examples:

      cluster reprovision --due

      cluster reprovision node1 --dry-run

      cluster reprovision --all
    """
    if sum((bool(node), every, due)) != 1:
        fail("expected names of nodes, --all or --due, one of them", "cluster reprovision --help", USAGE)
    control = connect(profile, lab)
    strangers = sorted(set(node or []) - set(control.profile.nodes))
    if strangers:
        known = ", ".join(control.profile.nodes)
        fail(f"no node {', '.join(strangers)} in {control.profile.name}: expected {known}", None, USAGE)
    if due:
        with runner_step("Asking which nodes are due", "cluster boot watch"):
            reasons: dict[str, list[str]] = control.runner("reprovision.due")
        emit({"due": reasons}, as_json, lambda: _print_due(reasons))
        return
    names = node or list(control.profile.nodes)
    title = "Working out what would be done" if dry_run else f"Reprovisioning {', '.join(names)}"
    with runner_step(title, "cluster boot watch") as current:
        result: dict[str, Any] = control.runner(
            "reprovision.run", {"nodes": names, "force": force, "test": dry_run}, shown(current)
        )
    emit(result, as_json, lambda: _print_result(result))
    if not dry_run and not result["ok"]:
        fail(result["summary"], "cluster boot watch")


def _print_due(reasons: dict[str, list[str]]) -> None:
    for name, why in sorted(reasons.items()):
        out.print(f"{name}: {escape('; '.join(why))}", soft_wrap=True)
    if reasons:
        console.print("[dim]next:[/] cluster reprovision " + " ".join(sorted(reasons)))
    else:
        out.print("no node is due")


def _print_result(result: dict[str, Any]) -> None:
    if not result.get("test"):
        out.print(escape(result["summary"]), soft_wrap=True)
        return
    deployment = result["deployment"]
    if deployment:
        out.print(f"drain and take down {deployment['deployment']}")
    for name in result["waiting"]:
        change = "another image than it runs" if name in result["renewed"] else "the image it runs, or its first"
        out.print(f"{name}: {STEPS}; {result['image']} ({change})", soft_wrap=True)
    if deployment:
        out.print(f"deploy {deployment['deployment']} again")
