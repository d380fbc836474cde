"""Make a scenario out of plain `/metrics` texts: readings of a live server, or one each from before and after a load.

Both become the document of a scenario file, so that they are judged as that file would be.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bottleneck.runs.reading import open_text
from bottleneck.runs.scenario import ScenarioError
from bottleneck.telemetry.engine_names import PREFIX, is_engine_sample, other_server
from bottleneck.telemetry.prometheus_text import MetricsText

# Of these an engine has one from its start.
_MADE = {
    f"{PREFIX}{name}" for name in ("generation_tokens_total", "prompt_tokens_total", "iteration_tokens_total_count")
}
# Of these a reading during the load needs no more than the totals before and after.
_LEFT_OUT = ("_bucket", "_created")


class Reading(NamedTuple):
    """One text of a server's metrics, and when it was asked for, in seconds of any clock."""

    moment: float
    text: str


def engine_lines(text: str) -> list[str]:
    """Return the lines of a text that hold vLLM's metrics under any of their names.

    Parameters
    ----------
    text : str
        Prometheus exposition text, from any server.
    """
    return [line for line in text.splitlines() if is_engine_sample(line)]


def why_not(text: str) -> str:
    """Return why a text is no text of vLLM's metrics; empty when it is one.

    Parameters
    ----------
    text : str
        What an address or a file gave as vLLM's metrics.

    Returns
    -------
    str
        What was seen and what is expected, in one sentence.
    """
    names = MetricsText.parse(text).names()
    own = sorted(name for name in names if name.startswith(PREFIX))
    if own and not names & _MADE:
        # A router in front of engines counts requests under the same prefix.
        seen = f"{len(own)} metrics such as {own[0]} and none of the tokens that an engine makes"
        return f"{seen}; expected the /metrics of the engine itself, not of what stands before it"
    if own:
        return ""
    if text.lstrip()[:1] == "<":
        return "a web page; expected the text of vLLM's /metrics"
    if not names:
        return f"{len(text.splitlines())} lines and not one metric; expected the text of vLLM's /metrics"
    server = other_server(sorted(names))
    whose = f"metrics of {server}, which are not read" if server else f"{len(names)} metrics such as {min(names)}"
    return f"{whose}; expected some that begin with {PREFIX}"


def is_metrics_text(path: Path) -> bool:
    """Return whether a file is the text of vLLM's metrics.

    Parameters
    ----------
    path : Path
        File, plain or compressed by gzip or xz; one that cannot be read is none.
    """
    try:
        return bool(engine_lines(read_text(path)))
    except ScenarioError:
        return False


def readings_document(readings: Sequence[Reading], **words: object) -> dict[str, Any]:
    """Return the document of a scenario from readings of a live server.

    Parameters
    ----------
    readings : sequence of Reading
        At least two, in order of time: counts are from the first to the last.
    **words
        Further keys of the document.
    """
    first, last = readings[0], readings[-1]
    rows = []
    for reading in readings:
        lines = [line for line in engine_lines(reading.text) if not _name(line).endswith(_LEFT_OUT)]
        rows.append([round(reading.moment - first.moment, 3), *lines])
    return {
        **words,
        "metrics_before": first.text,
        "metrics_during": rows,
        "metrics_after": last.text,
        "seconds": last.moment - first.moment,
    }


def pair_document(before: Path, after: Path, seconds: float | None) -> dict[str, Any]:
    """Return the document of a scenario from two files with the text of `/metrics`.

    Parameters
    ----------
    before, after : Path
        Files with the text at the beginning and at the end of the load, plain or compressed.
    seconds : float or None
        Between the two; None takes it from when the files were written.

    Raises
    ------
    ScenarioError
        When a file cannot be read, or is no text of vLLM's metrics.
    """
    texts = []
    for path in (before, after):
        text = read_text(path)
        if reason := why_not(text):
            raise ScenarioError(f"{path}: {reason}")
        texts.append(text)
    if seconds is None:
        seconds = after.stat().st_mtime - before.stat().st_mtime
        if seconds <= 0:
            raise ScenarioError(
                f"{after}: not written after {before}, so how long the load lasted is not known; expected --seconds, "
                "and the text from before the load first"
            )
    return {
        "scenario": f"{before.name} to {after.name}",
        "metrics_before": texts[0],
        "metrics_after": texts[1],
        "seconds": seconds,
    }


def read_text(path: Path) -> str:
    """Return a file's text, decompressed by its ending.

    Parameters
    ----------
    path : Path
        File in UTF-8, plain or compressed by gzip (.gz) or xz (.xz).

    Raises
    ------
    ScenarioError
        When it cannot be read, is cut, or is no text.
    """
    try:
        with open_text(path) as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise ScenarioError(f"{path}: cannot be read ({error})") from error


def _name(line: str) -> str:
    return line.partition("{")[0].partition(" ")[0]
