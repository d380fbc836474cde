"""Profiles as a person reads them: what there is, what fits, what differs."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from bottleneck.performance.model import parameters
from bottleneck.plan.nodes import deployment_memory
from bottleneck.profile import Profile, profile_name
from bottleneck.profile.diff import Difference
from bottleneck.profile.hardware_checks import assumptions, open_points, source_of
from bottleneck.profile.local_overrides import overlay_path
from bottleneck.profile.types import Accelerator
from bottleneck.units import byte_rate_text, duration_text, rate_text, size_text
from cli.output import console, out


def describe(profile: Profile) -> None:
    """Print a profile: its machines, networks, model and deployments."""
    out.print(f"[bold]{profile.name}[/] {profile.version} ({profile.kind})  {escape(profile.description)}")
    control = profile.control
    alias = f" ({escape(control.label)})" if control.label else ""
    where = f" via {control.interface or 'unknown'}" if profile.boot else ""
    out.print(f"control  {control.hostname}{alias}, {control.address} on {control.network}{where}\n")
    networks = Table("network", "kind", "subnet", "rate", "mtu", "medium", box=None)
    for name, network in profile.networks.items():
        rate = rate_text(network.rate_bytes_per_second)
        networks.add_row(name, network.kind, network.subnet, rate, str(network.mtu_bytes), escape(network.medium))
    out.print(networks)
    nodes = Table("\nnode", "\ncores", "\nmemory", "\naccelerator", "\nlinks", box=None)
    for name, node in profile.nodes.items():
        links = ", ".join(f"{network} {link.address}" for network, link in node.links.items())
        groups = (node.accelerator, *node.further_accelerators)
        what = " + ".join(f"{each.count} x {each.kind}, {size_text(each.memory_bytes)}" for each in groups)
        nodes.add_row(name, str(node.cores), size_text(node.memory_bytes), what, links)
    out.print(nodes)
    _accelerators(profile)
    shape, quantization = profile.model.shape, profile.model.quantization
    billions = parameters(profile.model.model_shape()).total / 1e9
    out.print(
        f"\nmodel  {profile.model.name} ({profile.model.source}): {billions:.3g} B parameters,"
        f" {shape.layers} layers, hidden {shape.hidden_size}, {quantization.bits} bit\n"
    )
    deployments = Table("deployment", "nodes", "tensor", "pipeline", "replicas", "link", "largest rank", box=None)
    for name, deployment in profile.deployments.items():
        mark = " (default)" if name == profile.default_deployment else ""
        layers = f" ({'+'.join(map(str, deployment.layers))})" if deployment.layers else ""
        sizes = (deployment.tensor_parallel, f"{deployment.pipeline_parallel}{layers}", deployment.replicas)
        largest = max(deployment_memory(profile, name), key=lambda fit: fit.memory.total_bytes / fit.limit_bytes)
        room = f"{size_text(largest.memory.total_bytes)} of {size_text(largest.limit_bytes)}"
        deployments.add_row(name + mark, ", ".join(deployment.nodes), *map(str, sizes), deployment.link, room)
    out.print(deployments)
    _boot(profile)
    console.print(f"[dim]next:[/] cluster profile check {profile_name(profile.path)}", soft_wrap=True)


def _accelerators(profile: Profile) -> None:
    """Print what is known of each kind of accelerator and its place, with the source of its bandwidth."""
    shown: dict[str, list[str]] = {}
    for name, node in profile.nodes.items():
        parts = _accelerator(profile, f"nodes.{name}.accelerator", node.accelerator)
        for index, further in enumerate(node.further_accelerators):
            parts += _accelerator(profile, f"nodes.{name}.further_accelerators.{index}", further)
        if node.architecture != "x86_64":
            parts.append(node.architecture)
        if node.board:
            parts.append(f"board {node.board}")
        if node.unused:
            parts.append(f"unused: {node.unused}")
        shown.setdefault("; ".join(parts), []).append(name)
    if all(text == profile.nodes[names[0]].accelerator.kind for text, names in shown.items()):
        return
    out.print()
    for text, names in shown.items():
        out.print(f"{', '.join(names)}  {escape(text)}", soft_wrap=True)


def _accelerator(profile: Profile, key: str, accelerator: Accelerator) -> list[str]:
    parts = [accelerator.model or accelerator.kind]
    if accelerator.memory_bandwidth_bytes_per_second:
        bandwidth = byte_rate_text(accelerator.memory_bandwidth_bytes_per_second)
        source = source_of(profile.sources, f"{key}.memory_bandwidth")
        basis = profile.sources[source].basis if source else "no source"
        parts.append(f"memory {bandwidth} on paper ({basis})")
    if accelerator.pcie:
        pcie = accelerator.pcie
        rate = byte_rate_text(pcie.bandwidth_bytes_per_second)
        parts.append(f"PCIe {pcie.generation}.0 x{pcie.lanes}, {rate} one way")
    if accelerator.interconnect_bytes_per_second:
        parts.append(f"between cards {byte_rate_text(accelerator.interconnect_bytes_per_second)} one way")
    return parts


def _boot(profile: Profile) -> None:
    boot = profile.boot
    if boot is None:
        return
    image = boot.image
    out.print(
        f"\nboot  {image.suite}, {image.kernel}, DHCP {boot.dhcp}, canary {boot.canary or next(iter(profile.nodes))},"
        f" back within {duration_text(boot.return_seconds)}; kernel line: {escape(' '.join(boot.kernel_line))}",
        soft_wrap=True,
    )


def memory_rows(profile: Profile) -> dict[str, list[dict[str, Any]]]:
    """Return the memory arithmetic of every deployment, by node."""
    return {
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


def untested_engines(profile: Profile) -> dict[str, str]:
    """Return what the engine map says has not been tried, by the kind of accelerator."""
    kinds = {node.accelerator.kind for node in profile.nodes.values()}
    return {kind: profile.engines[kind].untested for kind in sorted(kinds) if profile.engines[kind].untested}


def set_mac_hint(profile: Profile, name: str) -> str | None:
    """Return the command that fills in what is open, or None when nothing is."""
    for point in open_points(profile):
        if point.location[0] == "nodes":
            return f"cluster node discover, or: cluster profile set-mac {point.location[1]} MAC --profile {name}"
    return f"write it into {overlay_path(profile.path)}" if open_points(profile) else None


def print_checked(profile: Profile, memory: dict[str, list[dict[str, Any]]], hint: str | None) -> None:
    """Print what was checked, then what is open, assumed or untested."""
    links = sum(len(node.links) for node in profile.nodes.values())
    path = escape(str(profile.path))
    out.print(f"[green]ok[/] {path}: {profile.name} {profile.version}, digest {profile.digest}", soft_wrap=True)
    engines = ", ".join(sorted({node.accelerator.kind for node in profile.nodes.values()}))
    checked = [
        "keys, types and units",
        f"{len(profile.networks)} networks, {links} links: addresses and MACs inside their range and each once",
        f"engines and their lock files: {engines}",
        f"{len(memory)} deployments: ranks, divisibility, server settings, memory of the largest rank on each node",
    ]
    if profile.kind == "hardware":
        checked.insert(3, f"{len(profile.sources)} sources: every number of the hardware has one")
    if overlay_path(profile.path).is_file():
        checked.insert(0, f"with {escape(str(overlay_path(profile.path)))} laid over it")
    for line in checked:
        out.print(f"  {line}", soft_wrap=True)
    for name, fits in memory.items():
        for fit in fits:
            limit = size_text(fit["limit_bytes"])
            cache = f"{fit['kv_cache_tokens']} tokens of KV cache"
            out.print(f"    {name} {fit['node']}: {fit['arithmetic']} of {limit}; {cache}", soft_wrap=True)
    for kind, text in untested_engines(profile).items():
        out.print(f"[yellow]untested[/] engine for {kind}: {escape(text)}", soft_wrap=True)
    for key, says in assumptions(profile).items():
        out.print(f"[yellow]assumed[/] {escape(key)}: {escape(says)}", soft_wrap=True)
    for point in open_points(profile):
        out.print(f"[yellow]open[/] {escape(point.key)}: {escape(point.text)}", soft_wrap=True)
    if hint:
        console.print(f"[dim]nothing can be deployed before that; next:[/] {escape(hint)}", soft_wrap=True)


def print_differences(before: Profile, after: Profile, found: list[Difference]) -> None:
    """Print one line for each key that differs."""
    console.print(f"{before.name} {before.version} ({before.digest}) -> {after.name} {after.version} ({after.digest})")
    if not found:
        out.print("no difference")
    for each in found:
        key = escape(each.key)
        if each.before is None and each.after is not None:
            out.print(f"[green]+[/] {key}: {escape(each.after.text)}", soft_wrap=True)
        elif each.after is None and each.before is not None:
            out.print(f"[red]-[/] {key}: {escape(each.before.text)}", soft_wrap=True)
        elif each.before is not None and each.after is not None:
            out.print(f"[yellow]~[/] {key}: {escape(each.before.text)} -> {escape(each.after.text)}", soft_wrap=True)
