"""Keep models on the control node that nodes fetch: folders under the name of their content, with an index.

A folder's name carries the digest of what the model is made of (`bottleneck.profile.paths`), the index the SHA-256 of
each of its files: a node takes what has both.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from pydantic import TypeAdapter

from bottleneck import atomic_files
from bottleneck.json_files import JsonFileError, read_json
from bottleneck.profile.value_types import Section
from netboot.image.manifest import File, file_of

INDEX = "index.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class ModelError(ValueError):
    """A folder that is no model which can be published."""


class Index(Section):
    """The files of a model, by their names."""

    files: dict[str, File]
    # Of one that was downloaded from the hub.
    source: str | None = None
    commit: str | None = None


_INDEX: TypeAdapter[Index] = TypeAdapter(Index)


def publish(source: Path, store: Path) -> Index:
    """Put a model's folder into the store, under its own name, and return its index.

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
    with atomic_files.new_folder(target) as partial:
        for name in names:
            _link(source / name, partial / name)
        index = Index(files={name: file_of(partial / name) for name in names})
        atomic_files.replace_json(partial / INDEX, index.model_dump(exclude_none=True))
    return index


def read_index(folder: Path) -> Index:
    """Return the index of a published model.

    Raises
    ------
    ModelError
        When there is none that can be read.
    """
    try:
        found = read_json(folder / INDEX, _INDEX)
    except JsonFileError as error:
        raise ModelError(f"{error}; take the folder away and put the model there again") from error
    if found is None:
        raise ModelError(f"{folder / INDEX}: no such file; expected the index of a published model")
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
