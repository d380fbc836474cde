"""
Read and replace small files of this node, and make folders: a reader sees the old content or the new, never half of it.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any


def read_json(path: str) -> Any:
    """Return a JSON file's content; None when it is not there or is not JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write_json(path: str, content: object, mode: int = 0o644, durable: bool = False) -> None:
    """Replace a JSON file; arguments as `write_text`."""
    write_text(path, json.dumps(content), mode, durable)


def write_text(path: str, text: str, mode: int = 0o644, durable: bool = False) -> None:
    """
    Replace a file's content by text.

    mode
        of the new file; what is secret is never readable by others, not even while it is written
    durable
        wait until the storage has it: for what must survive a crash of the machine
    """
    # Unique, because threads of one process may write the same file.
    partial = f"{path}.{os.getpid()}.{time.monotonic_ns()}.partial"
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        remove(partial)
        raise
    if durable:
        _synchronise(os.path.dirname(path) or ".")


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def new_folder(path: str, part: str = "") -> Iterator[str]:
    """
    Yield an empty folder, ``path`` with ``.partial`` behind it; at the block's end it stands at ``path``.

    path
        what stands there goes, once the new one is whole; two processes that make the same one need a lock
    part
        folder in the new one that is to stand at ``path`` in its stead; what is beside it goes

    When the block fails, nothing is left of the new one.
    """
    partial = f"{path}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    try:
        yield partial
        replace_folder(os.path.join(partial, part) if part else partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(made: str, path: str) -> None:
    """Put a folder that is whole in the place of the one before, if there is any."""
    shutil.rmtree(path, ignore_errors=True)
    os.rename(made, path)


def _synchronise(directory: str) -> None:
    """Have the storage keep a folder's entries: the new name of a file, too."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
