"""The record on disk: one file, replaced whole, readable by root alone because it holds nonces."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

from pydantic import TypeAdapter

from bottleneck import atomic_files
from bottleneck.json_files import JsonFileError, read_json
from netboot.boot.state import State

log = logging.getLogger(__name__)
_state: TypeAdapter[State] = TypeAdapter(State)
FILE = "boots.json"
# Given up when the disk is full: the record is small, and can be written once more in its place.
RESERVE, RESERVE_BYTES = "boots.reserve", 1024 * 1024


def read(directory: Path) -> State | None:
    """Return the record in `directory`; None when there is none, or none that can be read."""
    try:
        return read_json(directory / FILE, _state)
    except JsonFileError as error:
        # Nodes that are up stay up without it; keep it for whoever wants to know what was in it.
        log.error("The boot record cannot be read, and a new one begins: %s", error)
        return None


def write(directory: Path, state: State, durable: bool = False) -> None:
    """Put the record into `directory`, whole or not at all; `durable` waits until the storage has it.

    Raises
    ------
    OSError
        When the disk takes nothing, also in the place of the reserve.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = _state.dump_json(state)
    try:
        atomic_files.replace(directory / FILE, content, mode=0o600, durable=durable)
    except OSError as error:
        reserve = directory / RESERVE
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not reserve.exists():
            raise
        reserve.unlink()
        log.error("The disk of %s is full: the boot record takes the room that was kept for it", directory)
        atomic_files.replace(directory / FILE, content, mode=0o600, durable=durable)


def keep_reserve(directory: Path) -> None:
    """Keep room for the record on the disk; where there is none now, it is tried again when this is called next."""
    reserve = directory / RESERVE
    with contextlib.suppress(OSError):
        if reserve.exists() and reserve.stat().st_size == RESERVE_BYTES:
            return
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with reserve.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
            except OSError:
                reserve.unlink()
