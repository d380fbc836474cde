"""Read documents that something else wrote: what fits is kept, what does not is left out and named."""

from __future__ import annotations

import copy
import gzip
import json
import lzma
import zlib
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)
# More sentences about one document tell a person nothing more.
MOST_PROBLEMS = 8


def lenient(model: type[Model], document: object, name: str) -> tuple[Model | None, list[str]]:
    """Return a document as far as it fits its type, and sentences about the rest.

    Parameters
    ----------
    model : type[Model]
        What it should be.
    document : object
        Content as JSON or YAML gives it; anything.
    name : str
        Of the document, for the sentences.

    Returns
    -------
    Model or None
        Without the parts that do not fit; None when nothing is left that makes one.
    list of str
        What was left out: place, what was seen, what was expected.
    """
    content, problems = copy.deepcopy(document), list[str]()
    while True:
        try:
            return model.model_validate(content), problems[:MOST_PROBLEMS]
        except ValidationError as error:
            found = error.errors(include_url=False)
        places: dict[tuple[int | str, ...], str] = {}
        for each in found:
            at = ".".join(str(part) for part in each["loc"]) or "all of it"
            seen = "missing" if each["type"] == "missing" else f"{each['input']!r:.60}"
            # What is left out whole is named for the first of its faults.
            places.setdefault(_existing(content, each["loc"]), f"{name}: {at}: {seen}: {each['msg']}; left out")
        problems += places.values()
        if () in places:
            return None, problems[:MOST_PROBLEMS]
        # The last of a list first: those before it keep their places.
        for place in sorted(places, key=lambda place: [(isinstance(part, str), part) for part in place], reverse=True):
            _remove(content, place)


def _existing(content: Any, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the part of a location that leads somewhere: what lacks a key is left out whole."""
    for depth, part in enumerate(location):
        if not _has(content, part):
            return location[:depth]
        content = content[part]
    return location


def _has(content: object, part: int | str) -> bool:
    if isinstance(content, dict):
        return part in content
    return isinstance(content, list) and isinstance(part, int) and part < len(content)


def _remove(content: Any, place: tuple[int | str, ...]) -> None:
    for part in place[:-1]:
        if not _has(content, part):
            return
        content = content[part]
    if _has(content, place[-1]):
        content.pop(place[-1])


def read_object(path: Path, problems: list[str], needed: bool = True) -> dict[str, Any] | None:
    """Return the object that a JSON file holds, as `read_json`; what is no object is a problem too.

    Parameters
    ----------
    path
        The file, compressed or not.
    problems
        Sentences are added to it.
    needed
        Whether it is a problem that there is no such file.
    """
    known = len(problems)
    found = read_json(path, problems, needed)
    if isinstance(found, dict):
        return found
    if len(problems) == known and path.exists():
        problems.append(f"{path.name}: a {type(found).__name__}; expected an object")
    return None


def open_text(path: Path) -> TextIO:
    """Return a file of text to be read, compressed or not.

    Parameters
    ----------
    path : Path
        File whose ending says how it is compressed: .gz, .xz, or anything else for not at all.

    Returns
    -------
    TextIO
        What reads it, in UTF-8.
    """
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")


def read_json(path: Path, problems: list[str], needed: bool = True) -> Any:
    """Return what a JSON file holds, compressed or not; None, and a sentence in `problems`, when it cannot be read.

    Parameters
    ----------
    path : Path
        File whose ending says how it is compressed: .gz, .xz, or anything else for not at all.
    problems : list[str]
        Sentences so far; one is added.
    needed : bool
        Whether it is a problem that there is no such file.
    """
    try:
        with open_text(path) as stream:
            return json.load(stream)
    except FileNotFoundError:
        if needed:
            problems.append(f"{path.name}: missing")
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, RecursionError) as error:
        problems.append(f"{path.name}: cannot be read ({error})")
    return None
