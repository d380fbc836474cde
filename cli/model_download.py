"""`cluster model download`: a model of the hub, once for all nodes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from bottleneck.units import size_text
from cli.cluster import runner_step, shown
from cli.control import connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import console, emit, out


def download(
    source: Annotated[
        str | None, typer.Argument(metavar="[ORGANISATION/MODEL]", help="On the hub.", show_default="the profile's")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The folder's name on the nodes.", show_default="that of the profile's model")
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Download a model of the hub to the control node, from which all nodes fetch it.

    Each file is checked by the hub's digest. When it breaks off, the same command goes on where it was. A gated model
    needs HF_TOKEN in the environment there.

    Examples:

      cluster model download

      cluster model download ORGANISATION/MODEL --name my-checkpoint
    """
    control = connect(profile, lab)
    with runner_step("Downloading the model", "cluster model download") as current:
        arguments = {"source": source, "name": name, "revision": revision}
        found = control.runner("model.download", arguments, shown(current))

    def human() -> None:
        out.print(f"[bold]{escape(found['name'])}[/]: {len(found['files'])} files, {size_text(found['bytes'])}")
        console.print("[dim]next:[/] cluster apply model")

    emit(found, as_json, human)
