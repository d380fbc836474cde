"""The profiles of this repository with some of their text replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

PROFILES = Path(__file__).parents[1] / "profiles"


def changed(folder: Path, name: str, *replacements: tuple[str, str]) -> Path:
    """Write a profile with some of its text replaced, once each, beside an engine map; return its file."""
    text = (PROFILES / f"{name}.yaml").read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    shutil.copy(PROFILES / "engines.yaml", folder)
    path = folder / "changed.yaml"
    path.write_text(text)
    return path
