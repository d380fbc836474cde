"""Read JSON files into the types that they are written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from bottleneck.units import shown

_Form = TypeVar("_Form")
# Kinds of fault for which pydantic names the type of Python that it wanted.
_NO_OBJECT = ("dict_type", "model_type", "dataclass_type")


class JsonFileError(ValueError):
    """A file is there and cannot be used; the text names it, the place in it, what was seen and what was expected."""


def read_json(path: Path, form: TypeAdapter[_Form]) -> _Form | None:
    """Return the content of a JSON file; None when there is no such file.

    Parameters
    ----------
    path : Path
        The file, in UTF-8.
    form : TypeAdapter
        Of the type that it is expected to hold.

    Raises
    ------
    JsonFileError
        When it cannot be read, is not JSON or holds something else.
    """
    try:
        # Not pydantic's own parser: it refuses lone surrogates, which `json` writes and reads.
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JsonFileError(f"{path}: {error.strerror}; expected a file that can be read") from error
    except ValueError as error:
        raise JsonFileError(f"{path}: not JSON: {error}") from error
    try:
        return form.validate_python(content)
    except ValidationError as error:
        raise JsonFileError(f"{path}: {first_fault(error)}") from error


def first_fault(error: ValidationError) -> str:
    """Return the first fault of a document as a sentence: the place in it, what was seen, what was expected.

    Parameters
    ----------
    error : ValidationError
        Of the form that the document should have.
    """
    fault = error.errors(include_url=False)[0]
    place = ""
    for part in fault["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    seen = "" if fault["type"] == "missing" else f"{shown(fault['input'])}; "
    expected = "expected a JSON object" if fault["type"] in _NO_OBJECT else fault["msg"].lower()
    return f"{place}: {seen}{expected}" if place else f"{seen}{expected}"
