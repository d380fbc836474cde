"""Keep models on the control node that nodes fetch: folders under the name of their content, with an index.

A folder's name carries the digest of what the model is made of (`bottleneck.profile.paths`), the index the SHA-256 of
each of its files: a node takes what has both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TypedDict

from netboot.image.manifest import file_of

INDEX = "index.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Entry(TypedDict):
    """A file of a model."""

    sha256: str
    bytes: int


class ModelError(ValueError):
    """A folder that is no model which can be published."""


def publish(source: Path, store: Path) -> dict[str, Entry]:
    """Put a model's folder into the store, under its own name, and return its index: file name -> digest and size.

    The folder appears there whole or not at all. Files are linked where both are on one file system, and copied where
    they are not. One that is there already is left as it is.

    Raises
    ------
    ModelError
        When the folder has no files, or something in it that is none.
    """
    target = store / source.name
    if (target / INDEX).is_file():
        return read_index(target)
    names = sorted(path.name for path in source.iterdir())
    wrong = [name for name in names if not (source / name).is_file() or name == INDEX]
    if wrong or not names or not _NAME.fullmatch(source.name):
        raise ModelError(f"{source}: {wrong[0] if wrong else 'empty'}; expected a folder of files, named by its digest")
    partial = store / f".{source.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        index: dict[str, Entry] = {}
        for name in names:
            _link(source / name, partial / name)
            file = file_of(partial / name)
            index[name] = Entry(sha256=file.sha256, bytes=file.bytes)
        (partial / INDEX).write_text(json.dumps({"files": index}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def read_index(folder: Path) -> dict[str, Entry]:
    """Return the index of a published model."""
    found: dict[str, Entry] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]
    return found


def model_file(store: Path, model: str, name: str) -> Path | None:
    """Return a file of a published model, or its index; None when there is no such model or file."""
    if not _NAME.fullmatch(model) or not re.fullmatch(r"\.?[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", name):
        return None
    folder = store / model
    if not (folder / INDEX).is_file():
        return None
    path = folder / name
    return path if path.is_file() else None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
