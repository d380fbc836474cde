"""`cluster config`: which settings hold, and where each comes from."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cli import config
from cli.options import JsonOption
from cli.output import USAGE, console, emit, fail, out

app = typer.Typer()


@app.command()
def show(
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show every setting: flag before environment, ./cluster.toml upward, user directory, default.

    Examples:

      cluster config show --origin
    """
    try:
        values = config.lookup()
    except config.ConfigError as error:
        fail(str(error), "mend that file", USAGE)

    def human() -> None:
        table = Table("setting", "value", *(["origin"] if origin else []), box=None, pad_edge=False)
        for key, value in values.items():
            source = f"{value.origin} {value.where}".strip()
            table.add_row(key, escape(_text(value.value)), *([escape(source)] if origin else []))
        out.print(table)
        nearest = config.find_file()
        user = config.user_directory() / config.FILE_NAME
        console.print(f"[dim]files:[/] {escape(str(nearest or 'no cluster.toml upward'))}, {escape(str(user))}")

    document: dict[str, Any] = {
        "settings": {
            key: {"value": value.value, "origin": value.origin, "where": value.where} for key, value in values.items()
        }
    }
    emit(document, as_json, human)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(value) if isinstance(value, tuple) else str(value)
