r"""Parse lines of Prometheus' text format: a sample a line, `name{label="value"} number [timestamp]`.

The one place for it. The sampler of every node has this very file beside it (`salt/sampler/files` links to it), so it
imports the standard library alone. Names in quotes (UTF-8 names, Prometheus 3) are not read: vLLM writes none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]

_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*[ \t]*=[ \t]*"(?:[^"\\]|\\.)*"'
_LABELS = rf"\{{[ \t]*(?:{_LABEL}[ \t]*(?:,[ \t]*{_LABEL}[ \t]*)*,?[ \t]*)?\}}"
_SERIES = rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:[ \t]*({_LABELS}))?"
# A name without labels needs a blank behind it, or its last digit would be the value; Python would take 1_000.
_LINE = re.compile(rf"[ \t]*({_SERIES})(?:(?<=\}})[ \t]*|[ \t]+)([^ \t_]+)(?:[ \t]+-?[0-9]+)?[ \t\r]*")
_KEY = re.compile(_SERIES)
_ONE_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r'\\([\\"n])')


class Point(NamedTuple):
    """One sample line: a family's member, its labels in order of name, its value."""

    name: str
    labels: Labels
    value: float

    def label(self, name: str) -> str | None:
        """Return the value of one label, or None.

        Parameters
        ----------
        name : str
            Name of the label.
        """
        return next((value for key, value in self.labels if key == name), None)

    def key(self) -> str:
        """Return the point as the exposition text writes it, labels sorted by name."""
        if not self.labels:
            return self.name
        inside = ",".join(f'{name}="{_escape(value)}"' for name, value in self.labels)
        return f"{self.name}{{{inside}}}"


class Raw(NamedTuple):
    """One sample line with its labels as they are written."""

    name: str
    key: str
    value: float


def raw_samples(text: str) -> Iterator[Raw]:
    """Yield the samples of a text; comments and lines that are none are passed over.

    Parameters
    ----------
    text : str
        Prometheus exposition text, format 0.0.4.

    Yields
    ------
    Raw
        Name, key as it is written and value of each, in the order of the text.
    """
    # Not splitlines(): a label's value may hold what that takes for the end of a line.
    for line in text.split("\n"):
        found = raw_sample(line)
        if found is not None:
            yield found


def raw_sample(line: str) -> Raw | None:
    """Return the sample of one line, or None.

    Parameters
    ----------
    line : str
        One line without its end.

    Returns
    -------
    Raw or None
        None for a comment, an empty line and what is no sample.
    """
    match = None if line.startswith("#") else _LINE.fullmatch(line)
    if match is None:
        return None
    try:
        return Raw(match[2], match[1], float(match[4]))
    except ValueError:
        return None


def parse_line(line: str) -> Point | None:
    """Return the sample of one line with its labels parsed, or None.

    Parameters
    ----------
    line : str
        One line without its end.

    Returns
    -------
    Point or None
        None as in `raw_sample`, and for labels that cannot be read.
    """
    raw = raw_sample(line)
    series = parse_key(raw.key) if raw else None
    return Point(*series, raw.value) if raw and series else None


# The samples of every reading are those of the one before.
@lru_cache(maxsize=4096)
def parse_key(key: str) -> tuple[str, Labels] | None:
    """Return the name and the labels, in order of name, of a sample as the text writes it; None for anything else.

    Parameters
    ----------
    key : str
        A name, with labels in braces or without, such as ``up{job="x"}``.
    """
    match = _KEY.fullmatch(key.strip(" \t\r"))
    if match is None:
        return None
    labels = {name: _unescape(value) for name, value in _ONE_LABEL.findall(match[2] or "")}
    return match[1], tuple(sorted(labels.items()))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unescape(value: str) -> str:
    return _ESCAPED.sub(lambda part: "\n" if part[1] == "n" else part[1], value)
