"""Compare two images by what was written down when they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bottleneck.json_files import read_json
from netboot.image.manifest import CONTENTS, Contents, Manifest

_CONTENTS: TypeAdapter[Contents] = TypeAdapter(Contents)


@dataclass(frozen=True)
class Change:
    """Names on one side alone, and those on both with another value."""

    added: dict[str, str] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True)
class ImageDiff:
    """Two images compared."""

    old: str
    new: str
    packages: Change
    python: Change
    layers: Change
    files: Change
    kernel: tuple[str, str] | None
    bytes: tuple[int, int]

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def change(old: Mapping[str, str], new: Mapping[str, str]) -> Change:
    """Compare two mappings."""
    return Change(
        added={name: new[name] for name in sorted(new.keys() - old.keys())},
        removed={name: old[name] for name in sorted(old.keys() - new.keys())},
        changed={name: (old[name], new[name]) for name in sorted(old.keys() & new.keys()) if old[name] != new[name]},
    )


def compare(old: Manifest, old_contents: Contents, new: Manifest, new_contents: Contents) -> ImageDiff:
    """Compare two images: packages and versions, layers, and every file by its digest."""
    return ImageDiff(
        old=old.digest,
        new=new.digest,
        packages=change(old.packages, new.packages),
        python=change(old.python, new.python),
        layers=change(_layers(old), _layers(new)),
        files=change(old_contents, new_contents),
        kernel=(old.kernel, new.kernel) if old.kernel != new.kernel else None,
        bytes=(_bytes(old), _bytes(new)),
    )


def read_contents(folder: Path) -> Contents:
    """Return what an image's root holds; nothing when the list is missing.

    Raises
    ------
    JsonFileError
        When it cannot be read.
    """
    return read_json(folder / CONTENTS, _CONTENTS) or {}


def _layers(manifest: Manifest) -> dict[str, str]:
    return {layer.name: layer.sha256[:16] for layer in manifest.layers}


def _bytes(manifest: Manifest) -> int:
    return sum(file.bytes for file in manifest.files.values()) + sum(layer.bytes for layer in manifest.layers)
