"""Commands for the boot service, by files in a folder that only root can write to.

Not by HTTP, which anyone on the wire can speak, and not by Salt's bus, where every accepted
minion can send what it likes.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from bottleneck import atomic_files
from bottleneck.json_files import JsonFileError, read_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """A command to the boot service."""

    what: Literal["arm", "block", "deploy", "undeploy"]
    node: str
    powered_on: bool = False


_command: TypeAdapter[Command] = TypeAdapter(Command)


def give(directory: Path, command: Command) -> None:
    """Leave a command for the boot service whose record is in `directory`."""
    folder = directory / "commands"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_files.replace(folder / f"{secrets.token_hex(8)}.json", _command.dump_json(command), mode=0o600)


def take(directory: Path) -> Iterator[Command]:
    """Return the commands that were left, the oldest first, and remove them."""
    folder = directory / "commands"
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        command = None
        try:
            command = read_json(path, _command)
        except JsonFileError as error:
            log.error("A command that cannot be read was left: %s", error)
        path.unlink()
        if command:
            yield command
