"""Text of a node on a person's terminal: seen, never obeyed, and never the end of a command."""

import io
import re
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cli import output
from cli.safe_console import SafeConsole, own_markup, visible

CLI = Path(__file__).parents[2] / "cli"
HOSTILE = {
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "title": "\x1b]0;pwned\x07",
    "clear": "\x1b[2J\x1b[H",
    "c1 sequence": "\x9b2J",
    "backspace": "safe\b\b\b\bevil",
    "carriage return": "error\rfine ",
    "other direction": "\u202egnp.exe",
    "half a surrogate": "\ud800",
    "unknown tag": "[rank0]: NCCL error",
    "closing tag": "RuntimeError: [/usr/lib/x] missing",
    "closing style": "[/bold] and [/]",
    "link": "[link=file:///etc/passwd]click[/link]",
    "action": "[@click=app.quit]x[/]",
    "emoji and colour": "[#ff0000 on white blink]x[/]",
}


def written(*shown: object) -> str:
    stream = io.StringIO()
    made = SafeConsole(file=stream, force_terminal=True, width=100, highlight=False, color_system="truecolor")
    for each in shown:
        made.print(each)
    return stream.getvalue()


def without_styles(text: str) -> str:
    """Take away the colours that rich writes itself, and nothing else."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nothing_of_a_node_s_text_reaches_the_terminal_as_a_command(text: str) -> None:
    table = Table("name", "[bold]what[/]", title=f"of {text}")
    table.add_row(text, Text(text, style="red"))
    shown = without_styles(written(text, f"[red]{text}[/]", Text(f"trouble {text}"), Panel(text), table))
    assert visible(shown) == shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("text", ["[rank0]: NCCL error", "RuntimeError: [/usr/lib/x] missing", "a[0] = [b]", "[@x=y]"])
def test_brackets_of_a_message_are_shown(text: str) -> None:
    assert without_styles(written(f"[red]{text}[/]")).strip() == text
    table = Table("reason")
    table.add_row(f"[red]{text}[/]")
    assert text in without_styles(written(table))


def test_the_program_s_own_styles_stay() -> None:
    assert "\x1b[1;31merror:\x1b[0m" in written("[bold red]error:[/] no node")
    assert own_markup(r"[dim]next:[/] \[str] [x]") == r"[dim]next:[/] \[str] \[x]"


@settings(deadline=None)
@given(st.text())
def test_any_text_is_shown_without_an_error(text: str) -> None:
    shown = without_styles(written(text, f"[red]{text}[/]", Text(text)))
    assert visible(shown) == shown
    shown.encode()


def test_errors_steps_and_logs_go_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "".join(HOSTILE.values())
    output.plain(hostile)
    with output.step(hostile) as current:
        current.detail(hostile)
    with pytest.raises(typer.Exit):
        output.fail(hostile, hostile)
    seen = capsys.readouterr()
    for shown in (without_styles(seen.out), without_styles(seen.err)):
        assert shown and visible(shown) == shown


def test_no_other_way_leads_to_the_terminal() -> None:
    """A console, an echo or a print elsewhere in the program would be a second way."""
    ways = re.compile(r"\b(?:rich\.console|typer\.s?echo|click\.s?echo|sys\.stdout\.write)\b|(?<![.\w])print\(")
    allowed = {"output.py", "safe_console.py", "reference.py"}
    others = [
        f"{path.relative_to(CLI)}: {line.strip()}"
        for path in CLI.rglob("*.py")
        if path.name not in allowed
        for line in path.read_text().splitlines()
        if ways.search(re.sub(r"'.*'", "''", line))
        and not re.search(r"import .*\b(?:Group|RenderableType|ConsoleOptions|RenderResult)\b", line)
    ]
    assert others == []
