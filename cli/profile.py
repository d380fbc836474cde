"""`cluster profile`: list, show, check and compare profiles."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bottleneck.profile import (
    ProfileError,
    find_profile,
    list_profiles,
    load_profile,
    profile_name,
    profiles_directory,
)
from bottleneck.profile.diff import profile_differences
from bottleneck.profile.hardware_checks import assumptions, open_points
from bottleneck.profile.local_overrides import set_mac
from cli.options import DEFAULT_PROFILE, JsonOption, ProfileOption
from cli.output import FAILED, USAGE, console, emit, fail, out
from cli.profile_text import (
    describe,
    memory_rows,
    print_checked,
    print_differences,
    set_mac_hint,
    untested_engines,
)

app = typer.Typer(help="Read and check profiles.", no_args_is_help=True)

NameArgument = Annotated[
    str, typer.Argument(envvar="CLUSTER_PROFILE", help="Profile name or path, such as embedded.", show_default=True)
]


@app.command("list", epilog="Examples: cluster profile list | cluster profile list --json")
def list_(as_json: JsonOption = False) -> None:
    """List the profiles there are."""
    rows = []
    for path in list_profiles():
        row: dict[str, Any] = {"name": profile_name(path), "path": str(path), "valid": True, "problems": []}
        try:
            profile = load_profile(path)
        except ProfileError as error:
            row |= {"valid": False, "problems": error.lines()}
        else:
            row |= {
                "version": profile.version,
                "kind": profile.kind,
                "nodes": len(profile.nodes),
                "deployments": list(profile.deployments),
                "description": profile.description,
            }
        rows.append(row)

    def human() -> None:
        if not rows:
            fail(f"no profiles in {profiles_directory()}", "set CLUSTER_PROFILES_DIR to a folder with profiles")
        table = Table("profile", "version", "kind", "nodes", "deployments", "description", box=None)
        for row in rows:
            if row["valid"]:
                deployments = ", ".join(row["deployments"])
                table.add_row(
                    row["name"], row["version"], row["kind"], str(row["nodes"]), deployments, escape(row["description"])
                )
            else:
                count = len(row["problems"])
                summary = f"[red]{count} problem{'s' if count > 1 else ''}[/]: cluster profile check {row['name']}"
                table.add_row(row["name"], "", "", "", "", summary)
        out.print(table)

    emit({"profiles": rows}, as_json, human)


@app.command(epilog="Examples: cluster profile show arc-a770/v0.1 | cluster profile show embedded --json")
def show(name: NameArgument = DEFAULT_PROFILE, as_json: JsonOption = False) -> None:
    """Show a profile: its machines, networks, model and deployments, and how they fit into memory."""
    try:
        profile = load_profile(find_profile(name))
    except ProfileError as error:
        fail(str(error), f"cluster profile check {name}")
    data = {
        **profile.model_dump(mode="json", exclude={"schema_version"}),
        "digest": profile.digest,
        "memory": memory_rows(profile),
        "path": str(profile.path),
        "engines": {kind: engine.model_dump(mode="json") for kind, engine in profile.engines.items()},
    }
    emit(data, as_json, lambda: describe(profile))


@app.command(epilog="Examples: cluster profile check embedded | cluster profile check arc-a770/v0.1 --deploy --json")
def check(
    name: NameArgument = DEFAULT_PROFILE,
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Fail also on what may be left open until something is deployed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a profile; print each problem with its line, or what was checked and what is still open."""
    try:
        profile = load_profile(find_profile(name))
        for node in profile.nodes:
            profile.engine_of(node).directory()
    except ProfileError as error:
        _report(error, as_json)
    memory = memory_rows(profile)
    still_open = open_points(profile)
    if deploy and still_open:
        _report(ProfileError(profile.path, still_open), as_json, set_mac_hint(profile, name))
    data = {
        **{"name": profile.name, "version": profile.version, "digest": profile.digest, "path": str(profile.path)},
        **{"valid": True, "problems": [], "memory": memory, "deployable": not still_open},
        "open": [{"key": point.key, "text": point.text} for point in still_open],
        "assumed": assumptions(profile),
        "untested": untested_engines(profile),
    }
    emit(data, as_json, lambda: print_checked(profile, memory, set_mac_hint(profile, name)))


@app.command(epilog="Examples: cluster profile diff arc-a770/v0.1 ryzen-ai-max/v0.2 | cluster profile diff A B --json")
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="Profile name or path; a run's profile.yaml is one too.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The profile to compare it with.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two profiles key by key: added, removed, changed, in the units a person writes."""
    loaded = []
    for name in (before, after):
        try:
            loaded.append(load_profile(find_profile(name)))
        except ProfileError as error:
            fail(str(error), f"cluster profile check {name}")
    found = profile_differences(loaded[0], loaded[1])
    data = {
        side: {"name": each.name, "version": each.version, "digest": each.digest, "path": str(each.path)}
        for side, each in zip(("before", "after"), loaded, strict=True)
    }
    rows = [asdict(each) for each in found]
    emit({**data, "differences": rows}, as_json, lambda: print_differences(loaded[0], loaded[1], found))


@app.command("set-mac", epilog='Examples: cluster profile set-mac node0 "d8:bb:c1:00:00:01" --profile arc-a770/v0.1')
def set_mac_(
    node: Annotated[str, typer.Argument(help="A node of the profile.")],
    mac: Annotated[str, typer.Argument(help="The MAC address of its port on the control network.")],
    profile: ProfileOption = DEFAULT_PROFILE,
    as_json: JsonOption = False,
) -> None:
    """Note a node's MAC address beside the profile, in a file that is laid over it and kept out of git."""
    try:
        loaded = load_profile(find_profile(profile))
        if node not in loaded.nodes:
            fail(f"no node {node} in {loaded.name}: expected {', '.join(loaded.nodes)}", None, USAGE)
        path = set_mac(loaded.path, node, loaded.control.network, mac)
        changed = load_profile(loaded.path)
    except ProfileError as error:
        fail(str(error), "cluster profile show " + profile)
    address = changed.nodes[node].links[changed.control.network].mac
    data = {"node": node, "mac": address, "path": str(path), "deployable": not open_points(changed)}

    def human() -> None:
        out.print(f"{node} is {address}: {escape(str(path))}", soft_wrap=True)
        for point in open_points(changed):
            console.print(f"[dim]still open:[/] {escape(point.key)}: {escape(point.text)}", soft_wrap=True)

    emit(data, as_json, human)


def _report(error: ProfileError, as_json: bool, next_command: str | None = None) -> None:
    problems = [
        {"file": problem.path or error.path, "line": problem.line, "key": problem.key, "text": problem.text}
        for problem in error.problems
    ]

    def human() -> None:
        for line in error.lines():
            out.print(line, markup=False, soft_wrap=True)

    emit({"path": error.path, "valid": False, "problems": problems}, as_json, human)
    count = len(problems)
    fail(f"{count} problem{'s' if count > 1 else ''}", next_command or "mend the lines above, then check again", FAILED)
