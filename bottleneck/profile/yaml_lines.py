"""Read a YAML file and remember on which line every key stands.

An error about a profile names the line to look at. PyYAML's node graph has the lines,
its constructed values do not, so this walks the graph and builds both.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bottleneck.units import shown

Location = tuple[str | int, ...]
"""Path of keys and list indexes from the root of a document."""

MAXIMUM_BYTES = 1 << 20
# An alias may stand for a large part of the file, and aliases nest: without a limit a
# small file can describe billions of values.
MAXIMUM_VALUES = 100_000
MAXIMUM_DEPTH = 50
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a file; `text` is "what was seen; expected what".

    Attributes
    ----------
    path
        The file, where it is another than the one that was asked for.
    """

    location: Location
    text: str
    line: int | None = None
    path: str | None = None

    @property
    def key(self) -> str:
        """The location as a person writes it, such as ``nodes.node0.links``."""
        return ".".join(str(part) for part in self.location)


class ProfileError(Exception):
    """A profile cannot be used; the text has one line for each problem."""

    def __init__(self, path: Path | str, problems: Iterable[Problem]) -> None:
        self.path = str(path)
        self.problems = tuple(problems)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """Return each problem as ``file:line: key: what was seen; expected what``."""
        found = []
        for problem in self.problems:
            path = problem.path or self.path
            where = path if problem.line is None else f"{path}:{problem.line}"
            found.append(": ".join(part for part in (where, problem.key, problem.text) if part))
        return found


@dataclass
class Document:
    """A parsed file: plain values, the line of every location, problems met while reading.

    Attributes
    ----------
    files
        Location -> the file it is from, where that is not `path`: a file was laid over it.
    """

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    files: dict[Location, Path] = field(default_factory=dict)

    def line(self, location: Location) -> int:
        """Return the line of a location or of its nearest ancestor that is in the file.

        Parameters
        ----------
        location : Location
            Keys and indices from the root of the document.

        Returns
        -------
        int
            Number of the line from 1; 1 for the root.
        """
        return self.lines.get(self._written(location), 1)

    def problem(self, location: Location, text: str) -> Problem:
        """Return a problem at a location, with its line and, where that is another, its file.

        Parameters
        ----------
        location : Location
            Keys and indices from the root of the document.
        text : str
            What was seen and what is expected.
        """
        file = self.files.get(self._written(location))
        return Problem(location, text, self.line(location), str(file) if file else None)

    def _written(self, location: Location) -> Location:
        """Return a location or its nearest ancestor that is in a file."""
        for length in range(len(location), 0, -1):
            if location[:length] in self.lines:
                return location[:length]
        return ()


class _Loader(yaml.SafeLoader):
    """YAML without the surprises of version 1.1: no dates, no base 60, no yes and no.

    An unquoted MAC such as 12:34:56:11:22:33 is a number in base 60 there.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own form


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def read(path: Path) -> Document:
    """Return the document of a YAML file whose root is a mapping.

    Parameters
    ----------
    path : Path
        File of at most 1 MiB.

    Raises
    ------
    ProfileError
        When there is nothing to go on with: the file cannot be read, is larger than
        1 MiB, is not YAML, or its root is not a mapping. Duplicate keys do not raise;
        they are in `Document.problems`, to be reported with what else is wrong.
    """
    document = Document(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAXIMUM_BYTES + 1)
    except OSError as error:
        raise ProfileError(
            path, [Problem((), f"{error.strerror or error}; expected a file that can be read")]
        ) from None
    if len(raw) > MAXIMUM_BYTES:
        raise ProfileError(path, [Problem((), f"more than {MAXIMUM_BYTES} bytes; expected a profile of a few KiB")])
    try:
        text = raw.decode("utf-8-sig")
        loader = _Loader(text)
        root = loader.get_single_node()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ProfileError(path, [Problem((), f"byte {raw[error.start]:#04x}; expected UTF-8 text", line)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        seen = " ".join(part for part in (error.context, error.problem) if part)
        raise ProfileError(path, [Problem((), f"{seen}; expected YAML", mark.line + 1 if mark else None)]) from None
    except yaml.YAMLError as error:
        raise ProfileError(path, [Problem((), f"{str(error).splitlines()[0]}; expected YAML")]) from None
    except RecursionError:
        raise ProfileError(path, [_too_deep(None)]) from None
    if root is None:
        raise ProfileError(path, [Problem((), "an empty file; expected a mapping of keys to values")])
    try:
        value = _Walk(document, loader).build(root, (), root.start_mark.line + 1)
    except _RefusedError as refused:
        raise ProfileError(path, [refused.problem]) from None
    if not isinstance(value, dict):
        line = root.start_mark.line + 1
        kind = "a list" if isinstance(value, list) else shown(value)
        raise ProfileError(path, [Problem((), f"{kind}; expected a mapping of keys to values", line)])
    document.data = value
    return document


class _RefusedError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


def _too_deep(line: int | None) -> Problem:
    return Problem((), f"values nested deeper than {MAXIMUM_DEPTH}; expected a profile", line)


class _Walk:
    """Turns a node graph into values, noting lines and duplicate keys on the way."""

    def __init__(self, document: Document, loader: _Loader) -> None:
        self._document = document
        self._loader = loader
        self._values = 0
        self._depth = 0

    def build(self, node: yaml.Node, location: Location, line: int) -> Any:
        self._document.lines[location] = line
        self._values += 1
        if self._values > MAXIMUM_VALUES:
            raise _RefusedError(Problem((), f"more than {MAXIMUM_VALUES} values; expected a profile", line))
        # Counted apart from the location, which an anchor that merges itself does not lengthen.
        if self._depth > MAXIMUM_DEPTH:
            raise _RefusedError(_too_deep(line))
        self._depth += 1
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, location)
            if isinstance(node, yaml.SequenceNode):
                items = enumerate(node.value)
                return [self.build(item, (*location, index), item.start_mark.line + 1) for index, item in items]
            return self._scalar(node, location, line)
        finally:
            self._depth -= 1

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        # Merged mappings first, so that the lines of own keys are noted last.
        merged = self._merged(node, location)
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._add(location, "a key that is a list or mapping; expected text", line)
                continue
            # Keys are names: 1 and on are the texts "1" and "on".
            key = key_node.value
            if key in own:
                self._add(
                    (*location, key), f"the key stands twice (first on line {lines[key]}); expected it once", line
                )
                continue
            own[key] = self.build(value_node, (*location, key), line)
            lines[key] = line
        return merged | own

    def _merged(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag != _MERGE:
                continue
            line = key_node.start_mark.line + 1
            for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                if isinstance(source, yaml.MappingNode):
                    # The first of several merged mappings wins.
                    merged = self.build(source, location, line) | merged
                else:
                    self._add(location, f"{shown(source.value)} after <<; expected an alias of a mapping", line)
        return merged

    def _scalar(self, node: yaml.Node, location: Location, line: int) -> Any:
        try:
            return self._loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, TypeError) as error:
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            self._add(location, f"{reason}; expected a plain value", line)
            return None

    def _add(self, location: Location, text: str, line: int) -> None:
        problem = Problem(location, text, line)
        # An alias is walked once for each place it stands in.
        if problem not in self._document.problems:
            self._document.problems.append(problem)
