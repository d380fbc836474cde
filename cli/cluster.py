"""Configure the nodes, deploy a model across them, say how it is."""

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cli.completion import node_names
from cli.control import Control, ControlError, Progress, connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import Step, console, emit, fail, out, plain, step

# How a person calls HAProxy's states of a server.
_HEAD_WORDS = {"UP": "serves", "DOWN": "does not answer", "MAINT": "taken out", "DRAIN": "takes nothing new"}


@contextlib.contextmanager
def runner_step(title: str, next_command: str | None = None) -> Iterator[Step]:
    """Show progress while a runner works; turn its failure into the command's."""
    try:
        with step(title) as current:
            yield current
    except ControlError as error:
        fail(str(error), error.next_command or next_command, error.code)


def shown(current: Step) -> Progress:
    """Return a callback that shows a runner's progress reports in a step."""

    def show(report: dict[str, Any]) -> None:
        current.detail(" ".join(str(report[key]) for key in ("node", "stage", "detail") if report.get(key)))

    return show


def apply_states(control: Control, test: bool, states: str | None = None) -> dict[str, Any]:
    """Run state.apply on every node; return each node's summary."""
    title = "Working out what an apply would change" if test else "Applying the states"
    with runner_step(title, "cluster status") as current:
        result: dict[str, Any] = control.runner("cluster.apply", {"test": test, "states": states}, shown(current))
    return result


def deploy_model(control: Control, deployment: str | None, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Deploy and wait until it serves; return the deployment's record."""
    name = deployment or control.profile.default_deployment
    node = next(iter(control.profile.nodes))
    with runner_step(f"Deploying {name}", f"cluster logs {node}") as current:
        arguments = {"deployment": name, "overrides": overrides}
        result: dict[str, Any] = control.runner("cluster.deploy", arguments, shown(current))
    return result


def undeploy_model(control: Control) -> dict[str, Any]:
    """Stop every worker."""
    with runner_step("Stopping the workers", "cluster status"):
        result: dict[str, Any] = control.runner("cluster.undeploy")
    return result


def print_changes(results: dict[str, Any], test: bool) -> None:
    """Print what an apply changed, or would change, one line a state."""
    for node, summary in sorted(results.items()):
        changed, failed = summary["changed"], summary["failed"]
        verb = "would change" if test else "changed"
        console.print(f"[bold]{node}[/]: {summary['states']} states, {len(changed)} {verb}, {len(failed)} failed")
        for state in changed:
            out.print(f"  [yellow]~[/] {state['name']}  [dim]{_one_line(state['comment'])}[/]")
        for state in failed:
            out.print(f"  [red]✗[/] {state['id']}  {_one_line(state['comment'])}")


def plan(
    states: Annotated[str | None, typer.Argument(help="Only these states, such as `engine` or `base,network`.")] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Say what `cluster apply` would change; change nothing.

    Examples:

      cluster plan

      cluster plan network --json
    """
    _apply(profile, lab, states, as_json, test=True)


def apply(
    states: Annotated[str | None, typer.Argument(help="Only these states, such as `engine` or `base,network`.")] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Take the nodes from bare to ready: base, network, engine, model, sampler.

    Examples:

      cluster apply

      cluster apply engine,model
    """
    _apply(profile, lab, states, as_json, test=False)


def _apply(profile: str, lab: str, states: str | None, as_json: bool, *, test: bool) -> None:
    results = apply_states(connect(profile, lab), test, states)
    emit({"nodes": results}, as_json, lambda: print_changes(results, test))
    if any(summary["failed"] for summary in results.values()):
        fail(*(("some states cannot be applied", "cluster status") if test else ("some states failed", "cluster plan")))


def deploy(
    deployment: Annotated[str | None, typer.Argument(help="A deployment of the profile.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Override a server setting: max_num_seqs=4 (repeatable).")
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Start vLLM across the nodes and wait until it serves.

    Examples:

      cluster deploy tp2

      cluster deploy pp2 --set max_num_seqs=4 --set link=ethernet
    """
    control = connect(profile, lab)
    record = deploy_model(control, deployment, parse_settings(setting or []))

    def human() -> None:
        out.print(f"{record['deployment']} serves at {control.profile.control.gateway_url}")
        console.print("[dim]its key:[/] cluster endpoint [dim]next:[/] cluster bench")

    emit(record, as_json, human)


def undeploy(
    profile: ProfileOption = DEFAULT_PROFILE, lab: LabOption = DEFAULT_LAB, as_json: JsonOption = False
) -> None:
    """Stop the deployment's workers on every node, whole process trees.

    Examples:

      cluster undeploy
    """
    stopped = undeploy_model(connect(profile, lab))
    emit(stopped, as_json, lambda: None)


def status(profile: ProfileOption = DEFAULT_PROFILE, lab: LabOption = DEFAULT_LAB, as_json: JsonOption = False) -> None:
    """Show the nodes, the deployment and its workers.

    Examples:

      cluster status --json
    """
    control = connect(profile, lab)
    with runner_step("Asking the nodes", f"cluster lab status {lab}" if control.lab else "cluster doctor"):
        seen: dict[str, Any] = control.runner("cluster.status")

    def human() -> None:
        deployment = seen["deployment"].get("deployment") or "nothing"
        out.print(f"profile {seen['profile']['name']} {seen['profile']['version']}, deployed: [bold]{deployment}[/]")
        table = Table("node", "minion", "worker", "stage", "requests", "processes", "log")
        for name, node in seen["nodes"].items():
            up = "[green]up[/]" if node["up"] else "[red]silent[/]"
            workers = node["workers"] or {"": {}}
            for worker, state in workers.items():
                requests = state.get("requests") or {}
                table.add_row(
                    name,
                    up,
                    worker,
                    state.get("stage", ""),
                    ", ".join(f"{count:.0f} {kind}" for kind, count in requests.items()),
                    str(state.get("processes", "")),
                    state.get("log") or "",
                )
                if state.get("reason"):
                    table.add_row("", "", "", f"[red]{_one_line(state['reason'])}[/]", "", "", "")
        out.print(table)
        for line in [*_of_gateway(seen["gateway"]), *_of_recovery(seen["recovery"])]:
            out.print(line, soft_wrap=True)

    emit(seen, as_json, human)


def _of_gateway(seen: dict[str, Any]) -> list[str]:
    """Return where clients ask, and how the gateway sees the heads."""
    if not seen["up"]:
        return [f"[red]gateway: {escape(seen['reason'])}[/]"]
    heads = (f"{node} {_HEAD_WORDS.get(head['state'], head['state'])}" for node, head in seen["heads"].items())
    return [f"gateway: {seen['url']} ({escape(', '.join(heads))})"]


def _of_recovery(recovery: dict[str, Any]) -> list[str]:
    """Return what the cluster did by itself that a person should know of."""
    lines = []
    if recovery["restarts"]:
        lines.append(f"[yellow]restarted {len(recovery['restarts'])} times in the last hour[/] (cluster audit)")
    if given_up := recovery["given_up"]:
        lines.append(f"[red]given up: {escape(given_up['reason'])}[/]; next: {escape(given_up['next'])}")
    if recovery["paused"]:
        lines.append("[yellow]paused: the cluster does nothing by itself[/] (cluster resume)")
    return lines


def logs(
    node: Annotated[str, typer.Argument(help="A node of the profile.", autocompletion=node_names)],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=2000, help="How many lines from the end.")] = 50,
    worker: Annotated[str | None, typer.Option(help="Only this worker.")] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Print the last lines of a node's worker logs.

    Examples:

      cluster logs node0 -n 100
    """
    control = connect(profile, lab)
    if node not in control.profile.nodes:
        fail(f"no node {node} in profile {profile}", "cluster profile show " + profile, 2)
    with runner_step(f"Reading {node}'s logs"):
        found: dict[str, list[str]] = control.runner("cluster.logs", {"node": node, "lines": lines, "worker": worker})

    def human() -> None:
        if not found:
            console.print(f"{node} has started no worker yet")
        for name, content in found.items():
            out.rule(name)
            plain("\n".join(content))

    emit({"node": node, "logs": found}, as_json, human)


def salt(
    context: typer.Context,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
) -> None:
    """Run `salt` on the control node with these arguments.

    Examples:

      cluster salt -- '*' test.ping

      cluster salt -- '*' state.apply
    """
    control = connect(profile, lab)
    try:
        raise typer.Exit(control.stream(["salt", *context.args]))
    except ControlError as error:
        fail(str(error), error.next_command, error.code)


def parse_settings(settings: list[str]) -> dict[str, Any] | None:
    """Turn `key=value` texts into a dictionary; values are JSON where they can be."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            fail(f"--set {setting}: expected key=value", "cluster deploy --help", 2)
        try:
            parsed[key] = json.loads(value)
        except ValueError:
            parsed[key] = value
    return parsed or None


def _one_line(text: str) -> str:
    return " ".join(str(text).split())[:200]
