"""`cluster lab pack`: what a lab needs on a bare machine, in pieces that travel one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bottleneck.profile import ProfileError, find_profile, load_profile
from cli.options import JsonOption
from cli.output import USAGE, console, emit, fail, out, step
from lab import LabError, packing
from lab.packing.build import PIECE_BYTES, PRESET

MEGABYTE = 1e6


def pack(
    folder: Annotated[Path, typer.Argument(help="Gets the pieces: folders piece1, piece2, ...")],
    profile: Annotated[str, typer.Option("--profile", "-p", help="What is to run there.")] = "gpu-pair",
    build: Annotated[
        Path | None, typer.Option(help="Scratch folder, by which a call goes on.", show_default="FOLDER/build")
    ] = None,
    piece: Annotated[float, typer.Option(min=1, max=1000, help="Megabytes of a piece, at most.")] = PIECE_BYTES
    / MEGABYTE,
    preset: Annotated[int, typer.Option(min=0, max=9, help="How hard xz tries.")] = PRESET,
    as_json: JsonOption = False,
) -> None:
    """Pack tools, Salt, the engine and this project for a machine on which nothing can be fetched.

    Every piece has its checksums and unpack.py, which says there what to do: python3 piece1/unpack.py

    Examples:

      cluster lab pack travelling

      cluster lab pack travelling --profile gpu-pair-cpu --preset 0
    """
    try:
        loaded = load_profile(find_profile(profile))
    except ProfileError as error:
        fail(str(error), f"cluster profile check {profile}", USAGE)
    try:
        with step(f"Packing {loaded.name}") as current:
            scratch = build or folder / "build"
            pieces = packing.pack(loaded, folder, scratch, int(piece * MEGABYTE), preset, current.detail)
    except LabError as error:
        fail(str(error), error.next_command, error.code)
    rows = [{"folder": str(each.folder), "bytes": each.size_bytes, "files": len(each.files)} for each in pieces]

    def human() -> None:
        for each in pieces:
            out.print(f"{each.folder}: {each.size_bytes / MEGABYTE:.1f} MB, {len(each.files)} files", soft_wrap=True)
        console.print("[dim]next, there:[/] python3 piece1/unpack.py add piece*; python3 piece1/unpack.py finish")

    emit({"pieces": rows}, as_json, human)
