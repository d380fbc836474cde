"""`cluster lab`: a whole cluster on this machine."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from bottleneck.profile import ProfileError, find_profile, load_profile
from bottleneck.units import RATE
from cli.campaign import campaign
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption, configured
from cli.output import FAILED, USAGE, emit, fail, out, step
from cli.pack import pack
from lab import lifecycle, operations
from lab.layout import CONTROL, LabError
from lab.requirements import check_root

app = typer.Typer(help="A whole cluster on this machine: nodes are namespaces, Salt is real.", no_args_is_help=True)
NameArgument = Annotated[
    str, typer.Argument(metavar="[NAME]", envvar="CLUSTER_LAB", help="Name of the lab.", callback=configured)
]


@app.command(epilog="Examples: cluster lab up · cluster lab up second --profile my.yaml")
def up(
    name: NameArgument = DEFAULT_LAB,
    profile: ProfileOption = DEFAULT_PROFILE,
    owner: Annotated[int | None, typer.Option(help="Process id; the lab goes down when that process ends.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a lab up. One that is up stays as it is; a broken one is made anew."""
    with _explained(), _terminated_cleanly():
        try:
            loaded = load_profile(find_profile(profile))
        except ProfileError as error:
            fail(str(error), f"cluster profile check {profile}", USAGE)
        with step(f"lab {name}") as current:
            result = lifecycle.up(loaded, name, current.detail, owner)
        emit(result, as_json, lambda: _print_status(result))


@app.command(epilog="Examples: cluster lab down · cluster lab down second --keep-logs logs")
def down(
    name: NameArgument = DEFAULT_LAB,
    keep_logs: Annotated[Path | None, typer.Option(help="Copy every node's logs to this folder first.")] = None,
) -> None:
    """Take a lab down: every process, namespace, group and file of it."""
    with _explained(), step(f"lab {name} down") as current:
        if not lifecycle.down(name, keep_logs):
            current.detail("it was not up")


@app.command(epilog="Examples: cluster lab status · cluster lab status --json")
def status(name: NameArgument = DEFAULT_LAB, as_json: JsonOption = False) -> None:
    """Show a lab's nodes and links; exit status 1 when it is not whole."""
    with _explained():
        check_root()
        result = operations.status(name)
        emit(result, as_json, lambda: _print_status(result))
        if not result["up"]:
            raise typer.Exit(FAILED)


@app.command(
    "exec",
    # What is not an option of ours, and everything after the dashes, is the command's.
    context_settings={"ignore_unknown_options": True},
    epilog="Examples: cluster lab exec node0 -- ip -brief address · cluster lab exec control -- salt '*' test.ping",
)
def execute(
    node: Annotated[str, typer.Argument(help="control, or a node of the profile.")],
    argv: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="What to run there.")],
    lab: LabOption = DEFAULT_LAB,
) -> None:
    """Run a command on a node; its exit status is the command's."""
    _become(lab, node, argv)


@app.command(epilog="Examples: cluster lab shell · cluster lab shell node0")
def shell(
    node: Annotated[str, typer.Argument(help="control, or a node of the profile.")] = CONTROL,
    lab: LabOption = DEFAULT_LAB,
) -> None:
    """Open a shell on a node; on control, `salt` and `salt-run` are at hand."""
    terminal = [f"TERM={os.environ.get('TERM', 'dumb')}", rf"PS1=\u@{node}({lab}):\w\$ "]
    _become(lab, node, ["env", *terminal, "bash", "--norc", "-i"])


@app.command(epilog='Examples: cluster lab throttle direct --rate "20 Mbit/s" · cluster lab throttle direct --restore')
def throttle(
    link: Annotated[str, typer.Argument(help="A network of the profile.")],
    rate: Annotated[str | None, typer.Option(help='What each link of it may carry, such as "20 Mbit/s".')] = None,
    restore: Annotated[bool, typer.Option("--restore", help="Put the profile's rate back.")] = False,
    lab: LabOption = DEFAULT_LAB,
) -> None:
    """Slow a network down, until `--restore`."""
    _one_of("--rate", rate, restore)
    try:
        value = RATE.parse(rate) if rate is not None else None
    except ValueError as error:
        fail(f"--rate: {error}", code=USAGE)
    with _explained():
        operations.throttle(lab, link, value)
        out.print(f"{link}: {'as in the profile' if value is None else rate}")


@app.command(
    epilog='Examples: cluster lab slow node1 --cores 0.3 · cluster lab slow node1 --disk "8 MB/s" · '
    "cluster lab slow node1 --restore"
)
def slow(
    node: Annotated[str, typer.Argument(help="A node of the profile.")],
    cores: Annotated[float | None, typer.Option(help="CPU time per second it may use.")] = None,
    disk: Annotated[str | None, typer.Option(help='What it may read from its disk, such as "8 MB/s".')] = None,
    restore: Annotated[bool, typer.Option("--restore", help="Lift the limits.")] = False,
    lab: LabOption = DEFAULT_LAB,
) -> None:
    """Slow a node's CPU or its disk down, until `--restore`. What the page cache has, no disk is asked for."""
    _one_of("--cores, --disk", cores if disk is None else disk, restore)
    try:
        rate = RATE.parse(disk) if disk is not None else None
    except ValueError as error:
        fail(f"--disk: {error}", code=USAGE)
    with _explained():
        if cores is not None or restore:
            operations.slow(lab, node, cores)
            out.print(f"{node}: {'all its cores' if cores is None else f'{cores:g} cores'}")
        if rate is not None or (restore and operations.has_slow_disk(lab, node)):
            operations.slow_disk(lab, node, rate)
            out.print(f"{node}: {'its disk as it is' if rate is None else f'{disk} from its disk'}")


app.command("pack")(pack)
app.command(epilog='Examples: cluster lab campaign --seed 3 · cluster lab campaign --kind "kill a sampler" --faults 2')(
    campaign
)


def _become(lab: str, node: str, argv: list[str]) -> NoReturn:
    with _explained():
        command = operations.command(lab, node, argv)
    sys.stdout.flush()
    os.execvp(command[0], command)


def _one_of(option: str, value: object, restore: bool) -> None:
    if (value is None) != restore:
        fail(f"give either {option} or --restore", code=USAGE)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except LabError as error:
        fail(str(error), error.next_command, error.code)


@contextmanager
def _terminated_cleanly() -> Iterator[None]:
    """Make SIGTERM an exception, so that what was begun is cleaned up."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_status(result: dict[str, Any]) -> None:
    out.print(f"lab {result['name']}: {result['state']}")
    if "nodes" not in result:
        return
    table = Table("node", "cores", "CPU limit", "memory", "processes", "Salt", box=None)
    for name, node in result["nodes"].items():
        limit = node.get("memory_limit_bytes")
        memory = f"{node.get('memory_bytes', 0) / 2**30:.2f} GiB"
        table.add_row(
            name,
            ",".join(map(str, node["cores"])) if node["cores"] else "any",
            f"{node['quota_cores']:g} cores" if node.get("quota_cores") else "none",
            f"{memory} of {limit / 2**30:.0f} GiB" if limit else memory,
            str(node.get("processes", 0)),
            "runs" if node["salt"] else "[red]does not run[/]",
        )
    out.print(table)
    for name, network in result["networks"].items():
        rate = f"{network['rate_bytes_per_second'] * 8 / 1e6:g} Mbit/s"
        out.print(f"  {name}: {rate}{' [yellow](throttled)[/]' if network['is_throttled'] else ''}")
    out.print(f"  gateway: {'runs' if result['gateway'] else '[red]does not run[/]'}")
    if result["peak_memory_bytes"]:
        out.print(f"  memory at most: {result['peak_memory_bytes'] / 2**30:.2f} GiB")
    for note in result["notes"]:
        out.print(f"  note: {note}")
    out.print(f"[dim]next: {shlex.join(['cluster', 'lab', 'shell', CONTROL, '--lab', result['name']])}[/]")
