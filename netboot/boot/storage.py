"""The record on disk: one file, replaced whole, readable by root alone because it holds nonces."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bottleneck import atomic_files
from netboot.boot.state import State

log = logging.getLogger(__name__)
_state: TypeAdapter[State] = TypeAdapter(State)
FILE = "boots.json"


def read(directory: Path) -> State | None:
    """Return the record in `directory`; None when there is none, or none that can be read."""
    path = directory / FILE
    try:
        return _state.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        # Nodes that are up stay up without it; keep it for whoever wants to know what was in it.
        log.error("The boot record %s cannot be read (%s): a new one begins", path, str(error).splitlines()[0])
        return None


def write(directory: Path, state: State, durable: bool = False) -> None:
    """Put the record into `directory`, whole or not at all; `durable` waits until the storage has it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_files.replace(directory / FILE, _state.dump_json(state), mode=0o600, durable=durable)
