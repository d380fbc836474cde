"""`cluster profile`: list, show and check profiles."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bottleneck.plan import deployment_memory
from bottleneck.profile import (
    Profile,
    ProfileError,
    find_profile,
    list_profiles,
    load_profile,
    profile_name,
    profiles_directory,
)
from bottleneck.units import rate_text, size_text
from cli.options import DEFAULT_PROFILE, JsonOption
from cli.output import FAILED, emit, fail, out

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


@app.command(epilog="Examples: cluster profile show embedded | cluster profile show embedded --json")
def show(name: NameArgument = DEFAULT_PROFILE, as_json: JsonOption = False) -> None:
    """Show a profile: its machines, networks, model and deployments."""
    try:
        profile = load_profile(find_profile(name))
    except ProfileError as error:
        fail(str(error), f"cluster profile check {name}")
    data = {
        **profile.model_dump(mode="json", exclude={"schema_version"}),
        "path": str(profile.path),
        "engines": {kind: engine.model_dump(mode="json") for kind, engine in profile.engines.items()},
    }
    emit(data, as_json, lambda: _describe(profile))


def _describe(profile: Profile) -> None:
    out.print(f"[bold]{profile.name}[/] {profile.version} ({profile.kind})  {escape(profile.description)}")
    control = profile.control
    out.print(f"control  {control.hostname}, {control.address} on {control.network}\n")
    networks = Table("network", "kind", "subnet", "rate", "mtu", box=None)
    for name, network in profile.networks.items():
        rate = rate_text(network.rate_bytes_per_second)
        networks.add_row(name, network.kind, network.subnet, rate, str(network.mtu_bytes))
    out.print(networks)
    nodes = Table("\nnode", "\ncores", "\nmemory", "\naccelerator", "\nlinks", box=None)
    for name, node in profile.nodes.items():
        accelerator = node.accelerator
        links = ", ".join(f"{network} {link.address}" for network, link in node.links.items())
        what = f"{accelerator.count} x {accelerator.kind}, {size_text(accelerator.memory_bytes)}"
        nodes.add_row(name, str(node.cores), size_text(node.memory_bytes), what, links)
    out.print(nodes)
    shape, quantization = profile.model.shape, profile.model.quantization
    out.print(
        f"\nmodel  {profile.model.name} ({profile.model.source}): {shape.layers} layers, hidden {shape.hidden_size},"
        f" {quantization.bits} bit\n"
    )
    deployments = Table("deployment", "nodes", "tensor", "pipeline", "replicas", "link", box=None)
    for name, deployment in profile.deployments.items():
        mark = " (default)" if name == profile.default_deployment else ""
        sizes = (deployment.tensor_parallel, deployment.pipeline_parallel, deployment.replicas)
        deployments.add_row(name + mark, ", ".join(deployment.nodes), *map(str, sizes), deployment.link)
    out.print(deployments)


@app.command(epilog="Examples: cluster profile check embedded | cluster profile check ./mine.yaml --json")
def check(name: NameArgument = DEFAULT_PROFILE, as_json: JsonOption = False) -> None:
    """Check a profile; print each problem with its line, or what was checked."""
    try:
        profile = load_profile(find_profile(name))
        for node in profile.nodes:
            profile.engine_of(node).directory()
    except ProfileError as error:
        _report(error, as_json)
    memory = {
        deployment: [
            {
                "node": fit.node,
                "replica": fit.replica,
                "arithmetic": fit.memory.arithmetic(),
                "weights_bytes": fit.memory.weights_bytes,
                "kv_cache_bytes": fit.memory.kv_cache_bytes,
                "activations_bytes": fit.memory.activations_bytes,
                "runtime_bytes": fit.memory.runtime_bytes,
                "total_bytes": fit.memory.total_bytes,
                "limit_bytes": fit.limit_bytes,
                "kv_cache_tokens": fit.memory.kv_cache_tokens,
            }
            for fit in deployment_memory(profile, deployment)
        ]
        for deployment in profile.deployments
    }
    data = {"name": profile.name, "path": str(profile.path), "valid": True, "problems": [], "memory": memory}
    emit(data, as_json, lambda: _checked(profile, memory))


def _report(error: ProfileError, as_json: bool) -> None:
    problems = [
        {"file": error.path, "line": problem.line, "key": problem.key, "text": problem.text}
        for problem in error.problems
    ]

    def human() -> None:
        for line in error.lines():
            out.print(line, markup=False, soft_wrap=True)

    emit({"path": error.path, "valid": False, "problems": problems}, as_json, human)
    count = len(problems)
    fail(f"{count} problem{'s' if count > 1 else ''}", "mend the lines above, then check again", FAILED)


def _checked(profile: Profile, memory: dict[str, list[dict[str, Any]]]) -> None:
    links = sum(len(node.links) for node in profile.nodes.values())
    out.print(f"[green]ok[/] {escape(str(profile.path))}: {profile.name} {profile.version}", soft_wrap=True)
    engines = ", ".join(sorted({node.accelerator.kind for node in profile.nodes.values()}))
    for line in (
        "keys, types and units",
        f"{len(profile.networks)} networks, {links} links: addresses and MACs inside their range and each once",
        f"engines and their lock files: {engines}",
        f"{len(memory)} deployments: ranks, divisibility, server settings, memory of the largest rank on each node",
    ):
        out.print(f"  {line}", soft_wrap=True)
    for name, fits in memory.items():
        for fit in fits:
            limit = size_text(fit["limit_bytes"])
            cache = f"{fit['kv_cache_tokens']} tokens of KV cache"
            out.print(f"    {name} {fit['node']}: {fit['arithmetic']} of {limit}; {cache}", soft_wrap=True)
