"""`cluster top`: nodes, links, engine and the present verdict, live in the terminal."""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bottleneck.units import size_text
from cli.control import Control, ControlError, connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import emit, fail, out
from cli.report.page import confidence_word
from cli.report.quantity import quantity
from cli.verdict_text import bar

Latest = dict[str, Any]
# A resource that is used this much is shown in a colour.
BUSY, FULL = 0.6, 0.85
# Columns of a terminal that has room for everything, and of one that has not even for bars.
WIDE, NARROW = 90, 56


def _share(value: object) -> str:
    return "-" if not isinstance(value, int | float) else f"{value:.0%}"


def _colour(share: object) -> str:
    if not isinstance(share, int | float):
        return "dim"
    return "red" if share >= FULL else "yellow" if share >= BUSY else "green"


def _meter(share: object, width: int) -> Text:
    if not isinstance(share, int | float):
        return Text("-", style="dim")
    return Text(bar(share, width).ljust(width), style=_colour(share))


Cell = str | Text


def _table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[Cell]]) -> Table:
    """Return a table of the columns that are wanted; the first is to the left, bars too."""
    kept = [index for index, (_, wanted) in enumerate(columns) if wanted]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    for index in kept:
        name = columns[index][0]
        table.add_column(name, justify="left" if index == 0 or not name else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[index] for index in kept))
    return table


def _nodes(nodes: dict[str, Any], width: int) -> RenderableType:
    wide, narrow = width >= WIDE, width < NARROW
    rows: list[list[Cell]] = []
    lost: list[RenderableType] = []
    for name, node in sorted(nodes.items()):
        if not node.get("up"):
            age = node.get("age_seconds")
            silent = "never heard of" if age is None else f"lost, silent for {quantity(age, 's')}"
            lost.append(Text.assemble((name, "bold"), (f"  {silent}", "red")))
            continue
        busy, throttled = node.get("busy_ratio"), node.get("throttled_ratio")
        total, free = node.get("memory_total_bytes"), node.get("memory_available_bytes")
        used = "-"
        if total and free is not None:
            used = f"{size_text(total - free)} of {size_text(total)}" if wide else _share(1 - free / total)
        limited = isinstance(throttled, int | float) and throttled > 0.01
        rows.append(
            [
                Text(name, style="bold"),
                _share(busy),
                _meter(busy, 16 if wide else 6),
                _share(node.get("pressure_cpu_ratio")),
                Text(_share(throttled), style="red" if limited else ""),
                used,
            ]
        )
    columns = [
        ("node", True),
        ("CPU", True),
        ("", not narrow),
        ("waits" if narrow else "pressure", True),
        ("held" if narrow else "throttled", True),
        ("memory", not narrow),
    ]
    return Group(*([_table(columns, rows)] if rows else []), *lost)


def _links(nodes: dict[str, Any], measured: dict[str, Any], width: int) -> RenderableType:
    """Return the links; the deployment's own has the ceiling that the verdict was made with."""
    wide, narrow = width >= WIDE, width < NARROW
    rows: list[list[Cell]] = []
    for name, node in sorted(nodes.items()):
        for link, rates in sorted((node.get("links") or {}).items()):
            sent, received = rates.get("transmit_bytes_per_second"), rates.get("receive_bytes_per_second")
            ceiling = rates.get("capacity_bytes_per_second")
            if link == measured.get("name"):
                ceiling = measured.get("capacity_bytes_per_second") or ceiling
            known = [value for value in (sent, received) if value is not None]
            share = max(known) / ceiling if known and ceiling else None
            rows.append(
                [
                    Text.assemble((link, "bold"), f" {name}"),
                    quantity(sent, "bytes/s") or "-",
                    quantity(received, "bytes/s") or "-",
                    quantity(ceiling, "bytes/s") or "-",
                    _share(share),
                    _meter(share, 16 if wide else 6),
                ]
            )
    columns = [
        ("link", True),
        ("sends", True),
        ("receives", not narrow),
        ("ceiling", wide),
        ("used", True),
        ("", not narrow),
    ]
    return _table(columns, rows) if rows else Text("no link is sampled", style="dim")


def _engines(nodes: dict[str, Any], width: int) -> RenderableType:
    narrow = width < NARROW
    rows: list[list[Cell]] = []
    for name, node in sorted(nodes.items()):
        engine = node.get("engine")
        if not engine:
            continue
        waiting, cache = engine.get("waiting"), engine.get("kv_cache_ratio")
        rows.append(
            [
                Text(name, style="bold"),
                quantity(engine.get("running")) or "-",
                Text(quantity(waiting) or "-", style="yellow" if waiting else ""),
                Text(_share(cache), style=_colour(cache)),
                quantity(engine.get("generation_tokens_per_second")) or "-",
                quantity(engine.get("time_to_first_token_seconds"), "s") or "-",
                quantity(engine.get("inter_token_latency_seconds"), "s") or "-",
            ]
        )
    columns = [
        ("engine", True),
        ("run" if narrow else "running", True),
        ("wait" if narrow else "waiting", True),
        ("KV", True),
        ("tok/s" if narrow else "tokens/s", True),
        ("TTFT", True),
        ("ITL", not narrow),
    ]
    return _table(columns, rows) if rows else Text("no engine is read: nothing is deployed", style="dim")


def _found_verdict(latest: Latest) -> dict[str, Any]:
    # The store keeps a verdict with the window it is of.
    return (latest.get("verdict") or {}).get("verdict") or {}


def _verdict(latest: Latest) -> RenderableType:
    verdict, window = _found_verdict(latest), (latest.get("verdict") or {}).get("window") or {}
    if not verdict:
        return Text("no verdict yet: it takes a window in which the engine works", style="dim")
    confidence = float(verdict.get("confidence") or 0.0)
    strong = confidence >= 0.5
    line = Text.assemble(
        (str(verdict.get("title") or verdict.get("class") or "no verdict"), "bold magenta" if strong else "bold"),
        f"  confidence {confidence:.0%} ({confidence_word(confidence)})",
    )
    end, now = window.get("end"), latest.get("time")
    if isinstance(end, int | float) and isinstance(now, int | float):
        line.append(f", {quantity(max(0.0, round(now - end)), 's')} old", style="dim")
    lines: list[RenderableType] = [line]
    since, before = window.get("since"), window.get("before")
    if before and isinstance(since, int | float):
        was = " ".join(str(part) for part in (before.get("class"), before.get("node"), before.get("link")) if part)
        lines.append(Text(f"  since {_clock(since)}; before that: {was}", style="dim"))
    lines += [Text(f"  {item.get('statement')}", style="dim") for item in (verdict.get("evidence") or [])[:2]]
    return Group(*lines)


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%H:%M:%S")


def frame(latest: Latest, width: int = 100, note: str = "") -> RenderableType:
    """Return one frame of the live view.

    Parameters
    ----------
    latest
        What the `telemetry.latest` runner returned.
    width
        Columns of the terminal: a narrow one gets shorter bars.
    note
        A line at the bottom, such as why the numbers are old.
    """
    nodes = latest.get("nodes") or {}
    measured = _found_verdict(latest).get("measured") or {}
    moment = latest.get("time")
    clock = _clock(moment) if isinstance(moment, int | float) else "--:--:--"
    up = sum(bool(node.get("up")) for node in nodes.values())
    parts: list[RenderableType] = [
        Text.assemble(
            ("cluster top", "bold"),
            f"  {clock}  ",
            (f"{up} of {len(nodes)} nodes up", "" if up == len(nodes) else "red"),
        ),
        Text(""),
        _verdict(latest),
        Text(""),
        _nodes(nodes, width),
        Text(""),
        _links(nodes, measured.get("link") or {}, width),
        Text(""),
        _engines(nodes, width),
    ]
    if note:
        parts += [Text(""), Text(note, style="yellow")]
    return Group(*parts)


def follow(control: Control, interval: float, show: Callable[[Latest, str], None]) -> None:
    """Call `show` with every new state of the cluster and a note, until interrupted.

    One long-lived runner sends them all; when it ends, such as with a restart of the control node, the last state
    stays and another is started.

    Raises
    ------
    ControlError
        When the control node does not answer from the beginning.
    """
    last: list[Latest] = []

    def receive(latest: Latest) -> None:
        last[:] = [latest]
        show(latest, "")

    while True:
        note = "the control node stopped sending; asking again"
        try:
            control.runner("telemetry.watch", {"interval": interval}, receive)
        except ControlError as error:
            if not last:
                raise
            note = f"the control node does not answer: {error}"
        if last:
            show(last[0], note)
        time.sleep(interval)


@contextlib.contextmanager
def quit_key() -> Iterator[None]:
    """Turn the key q into an interrupt while the block runs."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    done = threading.Event()

    def listen() -> None:
        while not done.is_set():
            readable, _, _ = select.select([descriptor], [], [], 0.2)
            if readable and os.read(descriptor, 1) in (b"q", b"Q"):
                # The main thread waits for the runner: an interrupt ends that wait, and the runner.
                _thread.interrupt_main()
                return

    tty.setcbreak(descriptor)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        done.set()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.5, max=60.0, help="Seconds between two frames.")] = 2.0,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Show nodes, links, engine and the present verdict, live; q ends it.

    Without a terminal, or with --json, it prints one frame.

    Examples:

      cluster top

      cluster top --once --json
    """
    control = connect(profile, lab)
    if once or as_json or not (out.is_terminal and sys.stdin.isatty()):
        try:
            latest = control.runner("telemetry.latest")
        except ControlError as error:
            fail(str(error), "cluster status")
        emit(latest, as_json, lambda: out.print(frame(latest, out.width)))
        return
    with Live(Text("asking the control node ..."), console=out, screen=True, auto_refresh=False) as live:

        def show(latest: Latest, note: str) -> None:
            live.update(frame(latest, out.width, note or "q: quit"), refresh=True)

        problem = ""
        try:
            with quit_key():
                follow(control, interval, show)
        except KeyboardInterrupt:
            pass
        except ControlError as error:
            problem = str(error)
    if problem:
        fail(problem, "cluster status")
