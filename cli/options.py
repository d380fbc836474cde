"""Options that most commands share."""

from typing import Annotated

import typer

ProfileOption = Annotated[
    str,
    typer.Option("--profile", "-p", envvar="CLUSTER_PROFILE", help="Profile name or path.", show_default=True),
]
LabOption = Annotated[
    str, typer.Option("--lab", envvar="CLUSTER_LAB", help="Name of the lab on this machine.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print data alone, as JSON, on stdout.")]

DEFAULT_PROFILE = "embedded"
DEFAULT_LAB = "demo"
