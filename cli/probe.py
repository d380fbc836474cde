"""`cluster probe`: measure what each node and each link can do at most."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bottleneck.units import duration_text, rate_text, size_text
from cli.cluster import runner_step, shown
from cli.control import Control, connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import console, emit, out

# Salt's own overhead on a slow machine comes on top of the 60 s that the probes may take.
TIMEOUT_SECONDS = 180.0


class Part(StrEnum):
    """A watched server: the document of a scenario, and what could not be seen."""

    NODES = "nodes"
    LINKS = "links"
    ALLREDUCE = "allreduce"


def measure(control: Control, only: str | None = None, force: bool = False) -> dict[str, Any]:
    """Measure the ceilings; return them with where they are kept and how long it took."""
    with runner_step("Measuring what the machines can do", "cluster status") as current:
        arguments = {"only": only, "force": force}
        result: dict[str, Any] = control.runner("probe.run", arguments, shown(current), timeout=TIMEOUT_SECONDS)
    return result


def probe(
    only: Annotated[Part | None, typer.Option(help="Measure this part alone and keep the rest as it was.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure even beside a deployment that is up.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Measure ceilings: memory, arithmetic, disk, links, and messages between ranks.

    Examples:

      cluster probe

      cluster probe --only links --json
    """
    result = measure(connect(profile, lab), only.value if only else None, force)

    def human() -> None:
        ceilings = result["ceilings"]
        out.print(node_table(ceilings))
        out.print(link_table(ceilings))
        for name, title in (("allreduce", "all-reduce"), ("send_receive", "send and receive")):
            if name in ceilings:
                messages = ceilings[name]
                ranks = f"{messages['ranks']} ranks over {messages['link']} with {messages['backend']}"
                out.print(f"{title} of {messages['deployment']}, {ranks}")
                out.print(message_table(messages))
        out.print("[dim]median, and in brackets the interval of the repeats[/]")
        console.print("[dim]next:[/] cluster deploy")

    emit(result, as_json, human)


def node_table(ceilings: dict[str, Any]) -> Table:
    """Return one row for each resource, one column for each node."""
    rows = (
        ("memory read", "memory_read_bytes_per_second", _gigabytes),
        ("memory copy", "memory_copy_bytes_per_second", _gigabytes),
        ("bf16 product", "gemm_bf16_flops_per_second", _operations),
        ("f32 product", "gemm_f32_flops_per_second", _operations),
        ("fp8 product", "gemm_fp8_flops_per_second", _operations),
        ("int8 product", "gemm_int8_flops_per_second", _operations),
        ("prompt, by the engine", "engine_prompt_flops_per_second", _operations),
        ("host to device", "host_to_device_bytes_per_second", _gigabytes),
        ("device to host", "device_to_host_bytes_per_second", _gigabytes),
        ("disk read", "disk_read_bytes_per_second", lambda value: f"{value / 1e6:.3g} MB/s"),
        ("process launch", "process_launch_seconds", duration_text),
        ("tiny operation", "kernel_dispatch_seconds", duration_text),
    )
    nodes = dict(sorted(ceilings.get("nodes", {}).items()))
    table = Table("resource", *nodes)
    table.add_row("measured on", *(_device(node) for node in nodes.values()))
    for title, key, text in rows:
        # A kind of accelerator has some of them.
        if any(node.get(key) for node in nodes.values()):
            table.add_row(title, *(_estimate(node.get(key), text) for node in nodes.values()))
    return table


def _device(node: dict[str, Any]) -> str:
    """Return what the accelerator's measures were made on, or why there are none."""
    device = node.get("device")
    if device is None:
        return escape(node.get("notes", {}).get("accelerator", "-"))
    name = device.get("name") or node.get("machine", {}).get("cpu_model") or "?"
    return escape(f"{name} ({device['kind']})")


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g} GB/s"


def _operations(value: float) -> str:
    return f"{value / 1e9:.3g} GFLOP/s" if value < 1e12 else f"{value / 1e12:.3g} TFLOP/s"


def link_table(ceilings: dict[str, Any]) -> Table:
    """Return one row for each direction of each link."""
    table = Table("link", "direction", "bandwidth", "one-way latency")
    for network, pairs in sorted(ceilings.get("links", {}).items()):
        for pair, link in sorted(pairs.items()):
            bandwidth = _estimate(link.get("bandwidth_bytes_per_second"), rate_text)
            table.add_row(network, pair, bandwidth, _estimate(link.get("latency_seconds"), duration_text))
    return table


def message_table(messages: dict[str, Any]) -> Table:
    """Return one row for each message size."""
    table = Table("size", "time")
    for size, seconds in sorted(messages.get("sizes", {}).items(), key=lambda item: int(item[0])):
        table.add_row(size_text(int(size)), _estimate(seconds, duration_text))
    return table


def _estimate(value: dict[str, Any] | None, text: Callable[[float], str]) -> str:
    if not value:
        return "-"
    return f"{text(value['median'])} [dim]({text(value['low'])} to {text(value['high'])})[/]"
