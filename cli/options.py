"""Options that most commands share."""

from typing import Annotated, Any

import typer

from cli import config
from cli.output import USAGE, fail


def configured(context: typer.Context, parameter: typer.CallbackParam, value: object) -> Any:
    """Return an option's value; where nobody gave it, what the settings say."""
    source = context.get_parameter_source(parameter.name or "")
    if source is None or source.name != "DEFAULT":
        return value
    key = "lab" if parameter.envvar == config.SETTINGS["lab"].variable else "profile"
    try:
        return config.get(key)
    except config.ConfigError as error:
        fail(str(error), "cluster config show --origin", USAGE)


ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        envvar="CLUSTER_PROFILE",
        help="Profile name or path.",
        callback=configured,
        show_default=True,
    ),
]
LabOption = Annotated[
    str,
    typer.Option(
        "--lab",
        envvar="CLUSTER_LAB",
        help="Name of the lab on this machine.",
        callback=configured,
        show_default=True,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print data alone, as JSON, on stdout.")]

DEFAULT_PROFILE = "embedded"
DEFAULT_LAB = "demo"
