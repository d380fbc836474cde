"""The record of a benchmark: one JSON line a case, so that it can go on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Record:
    """One file of lines; a case's last line counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> dict[str, dict[str, Any]]:
        """Return the last line of every case, by its name; a line that was cut short is left out."""
        found: dict[str, dict[str, Any]] = {}
        for text in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                document = json.loads(text)
            except ValueError:
                continue
            found[str(document.get("case"))] = document
        return found

    def done(self) -> set[str]:
        """Return the cases that need not be run again: those that gave an answer."""
        return {case for case, document in self.lines().items() if not document.get("error")}

    def add(self, document: Mapping[str, Any]) -> None:
        """Append a case's line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(document) + "\n")
