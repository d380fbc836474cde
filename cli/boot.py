"""Boots of the nodes: watch them live, look at one, expect one; machines that are not in the profile yet."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.completion import node_names
from cli.control import Control, ControlError, connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import console, emit, fail, out, step
from cli.report.quantity import quantity

app = typer.Typer()
node_app = typer.Typer()
REFUSALS_SHOWN = 5
FOLLOW_SECONDS = 3600
NodeArgument = Annotated[str, typer.Argument(help="A node of the profile.", autocompletion=node_names)]
View = dict[str, Any]


def _ask(control: Control, function: str, arguments: dict[str, Any] | None = None) -> Any:
    try:
        return control.runner(function, arguments)
    except ControlError as error:
        fail(str(error), "cluster profile check")


def _stage_line(node: dict[str, Any], now: float) -> Text:
    stuck, under_way = node["stuck"], node["under_way"]
    if node["blocked"]:
        return Text("blocked: no boot script until it is armed", style="yellow")
    if stuck:
        late = quantity(round(now - stuck["since"]), "s")
        return Text.assemble(("stuck ", "bold red"), (stuck["stage"], "bold red"), f" for {late}: {stuck['cause']}")
    if under_way:
        seconds = quantity(max(0, round(now - under_way["since"])), "s")
        line = Text.assemble(
            (under_way["stage"], "cyan"), (f" for {seconds} of {under_way['deadline_seconds']:g} s", "dim")
        )
        # It may still come right by itself, as what is tried again does.
        return line.append(f", trouble: {under_way['trouble']}", "yellow") if under_way["trouble"] else line
    if node["boot"]:
        return Text("up", style="green")
    return Text("has not booted yet", style="dim")


def nodes_table(view: View, now: float) -> Table:
    """Return a line a node: the stage reached, and what is under way or stuck and why."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("node", "reached", "in", "now"):
        table.add_column(name, no_wrap=name != "now")
    for name, node in sorted(view["nodes"].items()):
        boot = node["boot"]
        seconds = sum(span["seconds"] for span in boot["stages"]) if boot else None
        took = "-" if seconds is None else quantity(round(seconds, 1), "s")
        table.add_row(Text(name, style="bold"), node["stage"] or "-", took or "-", _stage_line(node, now))
    return table


def frame(view: View, now: float) -> RenderableType:
    """Return one frame of the live view: nodes, strangers, and who was turned away last."""
    parts: list[RenderableType] = [nodes_table(view, now)]
    if view["unknown"]:
        parts += [Text(""), Text(f"not in the profile: {', '.join(sorted(view['unknown']))} (cluster node discover)")]
    refusals = sorted(view["refusals"], key=lambda refusal: -refusal["at"])[:REFUSALS_SHOWN]
    for refusal in refusals:
        whom = f" as {refusal['node']}" if refusal["node"] else ""
        text = f"refused: a {refusal['what']} from {refusal['source']}{whom}, {refusal['reason']} ({refusal['count']}x)"
        parts.append(Text(text, style="yellow"))
    return Group(*parts)


def trace_table(boot: dict[str, Any]) -> Table:
    """Return where a boot's time went."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage")
    table.add_column("took", justify="right")
    table.add_column("at", justify="right")
    for span in boot["stages"]:
        end = span["start"] + span["seconds"] - boot["began"]
        stage = Text(span["stage"]) if span["attributed"] else Text(f"{span['stage']} (and stages not seen)", "yellow")
        table.add_row(stage, f"{span['seconds']:.1f} s", f"{end:.1f} s")
    return table


@app.command()
def watch(
    seconds: Annotated[float, typer.Option(min=1, help="End after this long.")] = FOLLOW_SECONDS,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Show every node's boot live, stage by stage; what is stuck is named with its cause. Ctrl-C ends it.

    Without a terminal, or with --json, it prints the present state once.

    Examples:

      cluster boot watch

      cluster boot watch --json
    """
    control = connect(profile, lab)
    if as_json or not out.is_terminal:
        view = _ask(control, "boot.show")
        emit(view, as_json, lambda: out.print(frame(view, view["at"])))
        return
    with Live(Text("asking the control node ..."), console=out, auto_refresh=False) as live:
        latest: list[View] = []

        def show(report: dict[str, Any]) -> None:
            latest[:] = [report["view"]]
            live.update(frame(report["view"], report["view"]["at"]), refresh=True)

        try:
            control.runner("boot.follow", {"seconds": seconds}, show, timeout=seconds + 60)
        except KeyboardInterrupt:
            return
        except ControlError as error:
            fail(str(error), "cluster status")


@app.command()
def show(
    node: NodeArgument,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Show where the time of a node's newest boot went, from power-on to the first token.

    Examples:

      cluster boot show node0

      cluster boot show node0 --json
    """
    control = connect(profile, lab)
    view = _ask(control, "boot.show")
    found = view["nodes"].get(node)
    if found is None:
        fail(f"{node} is no node that boots; expected one of {', '.join(view['nodes'])}", "cluster node discover", 2)

    def human() -> None:
        boot = found["boot"]
        if not boot:
            out.print(_stage_line(found, view["at"]))
            return
        out.print(f"boot {boot['id']} of image {boot['image']}, armed because: {boot['because']}")
        out.print(trace_table(boot))
        out.print(f"{boot['attributed_ratio']:.0%} of the time is attributed to a stage")
        for note in boot["notes"]:
            out.print(Text(f"{note['stage']}: {note['text']}", style="yellow"))
        out.print(_stage_line(found, view["at"]))

    emit({"node": node, **found}, as_json, human)
    if found["stuck"]:
        raise typer.Exit(1)


@app.command()
def arm(
    node: NodeArgument,
    powered_on: Annotated[
        bool, typer.Option("--powered-on", help="It was switched on just now: time it from here.")
    ] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Expect a node to boot: it is named when it does not ask for an address in time.

    A node that is up gets no boot script even then: reboot it.

    Examples:

      cluster boot arm node0 --powered-on
    """
    with step(f"Arming {node}"):
        result = _ask(connect(profile, lab), "boot.arm", {"node": node, "powered_on": powered_on})
    emit(result, as_json, lambda: console.print("[dim]next:[/] cluster boot watch"))


@app.command()
def block(
    node: NodeArgument,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Give a node no boot script, and void those it has, until it is armed again.

    Examples:

      cluster boot block node1
    """
    with step(f"Holding {node}"):
        result = _ask(connect(profile, lab), "boot.block", {"node": node})
    emit(result, as_json, lambda: console.print(f"[dim]next:[/] cluster boot arm {node}"))


@node_app.command()
def discover(
    profile: ProfileOption = DEFAULT_PROFILE, lab: LabOption = DEFAULT_LAB, as_json: JsonOption = False
) -> None:
    """List the machines that asked to boot and are in no profile; nothing lets them in by itself.

    Examples:

      cluster node discover

      cluster node discover --json
    """
    found = _ask(connect(profile, lab), "boot.discover")

    def human() -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("MAC", "what it is", "address", "asked", "last"):
            table.add_column(column)
        now = time.time()
        for entry in found:
            age = quantity(max(0, round(now - entry["last"])), "s")
            table.add_row(
                entry["mac"], entry["detail"] or "-", entry["address"] or "-", f"{entry['count']}x", f"{age} ago"
            )
        out.print(table if found else Text("no machine outside the profile has asked to boot", style="dim"))
        if found:
            console.print("[dim]next:[/] write the MAC address of the one you mean into the profile")

    emit({"machines": found}, as_json, human)


@node_app.command()
def clear(
    node: Annotated[str, typer.Argument(help="A node of the profile.")],
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Let a node that was given up be reprovisioned and configured by itself again.

    Examples:

      cluster node clear node1
    """
    with step(f"Clearing {node}"):
        result = _ask(connect(profile, lab), "reprovision.clear", {"node": node})

    def human() -> None:
        out.print(f"{node} is tried again" if result["cleared"] else f"{node} had not been given up")
        console.print("[dim]next:[/] cluster reprovision --due")

    emit(result, as_json, human)


@node_app.command()
def rekey(
    nodes: Annotated[list[str] | None, typer.Argument(help="Nodes of the profile; all when left out.")] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Give nodes that are up new keys, with which they seal what they send.

    A node gets a new key by itself whenever it enrols; this is for a key that someone may have seen.

    Examples:

      cluster node rekey

      cluster node rekey node1
    """
    with step("Renewing keys"):
        result: dict[str, bool] = _ask(connect(profile, lab), "node_key.renew", {"nodes": nodes or None})

    def human() -> None:
        for name, renewed in result.items():
            out.print(f"{name}: {'has a new key' if renewed else 'did not answer with a new key'}")
        if not all(result.values()):
            console.print("[dim]next:[/] cluster status, then cluster node rekey again; the former key is still good")

    emit({"nodes": result}, as_json, human)
    if not all(result.values()):
        raise typer.Exit(1)
