"""The recorded runs on this laptop: which there are, and which one a person means."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.json_numbers import number
from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import RunError, is_run, load_run
from cli.control import runs_directory
from cli.output import USAGE, fail

LIST_COMMAND = "cluster run list"


@dataclass(frozen=True)
class RunHead:
    """A run as its small files tell it; the samples are not read.

    Attributes
    ----------
    document
        What run.json holds; empty when it cannot be read.
    """

    folder: Path
    document: dict[str, Any]

    @property
    def id(self) -> str:
        """The run's id: its folder's name."""
        return self.folder.name

    @property
    def started(self) -> float:
        """Time at which the run began, unix seconds; 0 when that is not known."""
        moment = number(self.document.get("started"))
        return moment if moment == moment else 0.0

    def text(self, key: str) -> str:
        """Return one of the texts of run.json."""
        return str(self.document.get(key) or "")

    def read(self, name: str) -> Any:
        """Return one of its JSON files, None when it is missing or broken."""
        return read_json(self.folder / name)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, None when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def run_heads() -> list[RunHead]:
    """Return every recorded run, the newest first."""
    folder = runs_directory()
    heads = []
    for path in folder.iterdir() if folder.is_dir() else ():
        # A folder that is still being fetched ends in .partial.
        if path.is_dir() and path.suffix != ".partial" and is_run(path):
            document = read_json(path / "run.json")
            heads.append(RunHead(path, document if isinstance(document, dict) else {}))
    return sorted(heads, key=lambda head: (head.started, head.id), reverse=True)


def find_run(text: str | None) -> Path:
    """Return the folder of the run that a person names; end the command when there is no such one.

    Parameters
    ----------
    text : str or None
        A run's id, the beginning of one that fits no other, or a folder; None is the newest run.
    """
    if text and Path(text).is_dir() and is_run(Path(text)):
        return Path(text)
    heads = run_heads()
    if not heads:
        fail(f"no recorded runs in {runs_directory()}", "cluster bench", USAGE if text else 1)
    if text is None:
        return heads[0].folder
    exact = [head for head in heads if head.id == text]
    fitting = exact or [head for head in heads if text and head.id.startswith(text)]
    if len(fitting) == 1:
        return fitting[0].folder
    if fitting:
        named = ", ".join(head.id for head in fitting[:5])
        fail(f"{text} is the beginning of {len(fitting)} runs: {named}", LIST_COMMAND, USAGE)
    ids = [head.id for head in heads]
    near = difflib.get_close_matches(text, ids, n=3, cutoff=0.5) or ids[:3]
    return fail(f"no run {text} in {runs_directory()}; the nearest: {', '.join(near)}", LIST_COMMAND, USAGE)


def open_run(text: str | None) -> Run:
    """Load the run that a person names, or end the command."""
    try:
        return load_run(find_run(text))
    except RunError as error:
        fail(str(error), LIST_COMMAND)
