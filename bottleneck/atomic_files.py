"""Replace files and make folders whole: a reader sees the old content or the new one, a crash leaves one of them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, content: str | bytes, *, mode: int = 0o644, durable: bool = False) -> None:
    """Put a file in the place of the one before.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    content : str or bytes
        Text is written as UTF-8.
    mode : int
        Permissions of the file; never more than these, not even while it is written.
    durable : bool
        Wait until the storage has it, for what must survive a crash of the machine.

    Raises
    ------
    OSError
        When it cannot be written; the old file is untouched and nothing is left beside it.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            os.fchmod(file.fileno(), mode)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        raise
    if durable:
        synchronise(path.parent)


def replace_json(path: Path, content: object, *, mode: int = 0o644, durable: bool = False) -> None:
    """Put a JSON document in the place of the one before.

    Parameters
    ----------
    path : Path
        File to replace; its folder must be there.
    content : Any
        Anything that JSON can carry. NaN and infinity are written as such, which JSON does not know: see `finite`.
    mode, durable : int, bool
        As in `replace`.

    Raises
    ------
    OSError
        As in `replace`; the old content stays.
    TypeError
        For content that JSON cannot carry; the old content stays.
    """
    replace(path, json.dumps(content, indent=1) + "\n", mode=mode, durable=durable)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Put a file in the place of the one before, for content that something else writes.

    Parameters
    ----------
    path : Path
        In a folder that exists.

    Yields
    ------
    Path
        Beside it, ending as it does: what the block writes there takes its place at the block's end.

    Raises
    ------
    OSError
        When it cannot be written. With whatever ends the block the old file is untouched and nothing is left beside it.
    """
    partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder that appears with all of its content.

    Parameters
    ----------
    path : Path
        Folder that is not there, or is empty; folders above it are made.

    Yields
    ------
    Path
        An empty folder beside it, which gets its name at the block's end.

    Raises
    ------
    OSError
        When it cannot be made or is there with content. With whatever ends the block nothing is left beside it.
    """
    partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def synchronise(path: Path) -> None:
    """Wait until the storage has a file's content, or a folder's entries.

    Parameters
    ----------
    path : Path
        File or folder that is there.

    Raises
    ------
    OSError
        Where it is not, or the storage reports an error.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
