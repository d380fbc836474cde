"""Print what a command has to show: data on stdout, everything for the eye on stderr."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from cli import SCHEMA_VERSION
from cli.safe_console import SafeConsole, visible

console = SafeConsole(stderr=True, highlight=False)
out = SafeConsole(highlight=False)

FAILED, USAGE, UNREACHABLE = 1, 2, 4


def emit(data: object, as_json: bool, human: Callable[[], None]) -> None:
    """Print `data` as JSON alone on stdout, or call `human` to print it for a person."""
    if not as_json:
        human()
        return
    document = data if isinstance(data, dict) else {"items": data}
    typer.echo(json.dumps({"schema": SCHEMA_VERSION, **document}, indent=2, default=str))


def plain(text: str, nl: bool = True) -> None:
    """Print a text on stdout as it is, but for what a terminal would obey."""
    typer.echo(visible(text), nl=nl)


def fail(message: str, next_command: str | None = None, code: int = FAILED) -> NoReturn:
    """Say what failed and what to run next, and end the command with `code`."""
    console.print(f"[bold red]error:[/] {_escape(message)}", soft_wrap=True)
    if next_command:
        console.print(f"[dim]next:[/] {_escape(next_command)}", soft_wrap=True)
    raise typer.Exit(code)


class Step:
    """One step in progress; `detail` shows beside it."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.seconds = 0.0

    def detail(self, text: str) -> None:
        self._show(text)


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show a spinner while the block runs, then how long it took; plain lines without a terminal."""
    started = time.monotonic()
    status = console.status(console.render_str(title)) if console.is_terminal else None
    last = ""

    def show(text: str) -> None:
        nonlocal last
        if text == last:
            return
        last = text
        if status:
            status.update(console.render_str(f"{title}  [dim]{_escape(text)}[/]"))
        else:
            console.print(f"  {_escape(text)}", style="dim")

    current = Step(show)
    try:
        if status:
            status.start()
        else:
            console.print(f"{title} ...")
        yield current
    except BaseException:
        console.print(f"[red]✗[/] {title}  [dim]{time.monotonic() - started:.1f} s[/]")
        raise
    else:
        current.seconds = time.monotonic() - started
        console.print(f"[green]✓[/] {title}  [dim]{current.seconds:.1f} s[/]")
    finally:
        if status:
            status.stop()


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
