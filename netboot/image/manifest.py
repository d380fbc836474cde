"""Manifests: what an image consists of, written down when it is made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from bottleneck.json_files import read_json
from bottleneck.profile.value_types import Section

SCHEMA = 1
MANIFEST, CONTENTS, ROOT, KERNEL, INITRD = "manifest.json", "contents.json", "root.squashfs", "vmlinuz", "initrd.img"
FILES = (KERNEL, INITRD, ROOT)
_DIGEST_CHARACTERS = 16

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Contents = dict[str, str]
"""Path -> what stands there: type, mode, owner, and the SHA-256 or the target."""


class File(Section):
    """One file of an image."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Layer(Section):
    """A squashfs that is mounted over the base."""

    name: str
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Manifest(Section):
    """One image. `digest` names it; `created` is the only thing that two equal builds differ in."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    digest: Digest
    created: str
    profile: str | None = None
    recipe: str
    recipe_digest: Sha256
    kernel: str
    suite: str
    sources: list[str]
    packages: dict[str, str]
    python: dict[str, str]
    files: dict[str, File]
    layers: list[Layer] = Field(default=[])
    build_seconds: float = 0.0

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return self.model_dump(by_alias=True)


_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def image_digest(recipe_digest: str, files: dict[str, File], layers: list[Layer]) -> str:
    """Return the name of an image: sixteen characters of the SHA-256 over its inputs and its files' digests."""
    content = {
        "recipe": recipe_digest,
        "files": {name: file.sha256 for name, file in files.items()},
        "layers": [[layer.name, layer.sha256] for layer in layers],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGEST_CHARACTERS]


def read_manifest(folder: Path) -> Manifest | None:
    """Return an image's manifest; None when there is none.

    Raises
    ------
    JsonFileError
        When it cannot be read.
    """
    return read_json(folder / MANIFEST, _MANIFEST)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write an image's manifest."""
    text = json.dumps(manifest.document(), indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def file_of(path: Path) -> File:
    """Return a file's size and SHA-256."""
    with path.open("rb") as stream:
        return File(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), bytes=path.stat().st_size)
