"""Divide archives into pieces that travel one by one: folders of at most so many bytes, each with its checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.layout import LabError

MANIFEST, SUMS = "pack.json", "SHA256SUMS"
_BLOCK_BYTES = 1 << 20


@dataclass
class Piece:
    """One folder of a pack."""

    folder: Path
    size_bytes: int = 0
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """A stretch of an archive."""

    name: str
    archive: Path
    offset: int
    size: int


def divide(
    archives: Sequence[Path], manifest: Mapping[str, Any], extra: Mapping[str, bytes], output: Path, piece_bytes: int
) -> list[Piece]:
    """Write pieces; every one has the manifest, so that each can be checked by itself and they may come in any order.

    Parameters
    ----------
    manifest
        With `archives`: their names; each gets the names, sizes and digests of its parts.
    extra
        Files that every piece has, by name.

    Raises
    ------
    LabError
        When a piece has no room beside what every one has.
    """
    parts = {path.name: _parts(path, piece_bytes // 2) for path in archives}
    listed = [
        {
            **entry,
            "parts": [
                {"name": part.name, "bytes": part.size, "sha256": _digest(part)} for part in parts[entry["name"]]
            ],
        }
        for entry in manifest["archives"]
    ]
    digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]
    text = json.dumps({**manifest, "archives": listed, "pack": digest}, indent=1).encode() + b"\n"
    everywhere = {MANIFEST: text, **extra}
    room = piece_bytes - sum(map(len, everywhere.values())) - 4096
    if room < piece_bytes // 2:
        raise LabError(f"pieces of {piece_bytes} bytes have no room for half an archive beside their manifest", code=2)
    for old in output.glob("piece*"):
        shutil.rmtree(old)
    pieces: list[Piece] = []
    # The largest first, each into the first piece with room.
    for part in sorted((part for found in parts.values() for part in found), key=lambda each: -each.size):
        piece = next((each for each in pieces if each.size_bytes + part.size <= room), None)
        if piece is None:
            piece = Piece(output / f"piece{len(pieces) + 1}")
            piece.folder.mkdir(parents=True)
            pieces.append(piece)
        _copy(part, piece.folder / part.name)
        piece.files.append(part.name)
        piece.size_bytes += part.size
    for piece in pieces:
        for name, content in everywhere.items():
            (piece.folder / name).write_bytes(content)
        names = sorted(path.name for path in piece.folder.iterdir())
        sums = [f"{hashlib.sha256((piece.folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
        (piece.folder / SUMS).write_text("".join(sums), encoding="utf-8")
        piece.size_bytes = sum(path.stat().st_size for path in piece.folder.iterdir())
    return pieces


def _parts(archive: Path, most: int) -> list[_Part]:
    size = archive.stat().st_size
    if size <= most:
        return [_Part(archive.name, archive, 0, size)]
    return [
        _Part(f"{archive.name}.{number:02d}", archive, offset, min(most, size - offset))
        for number, offset in enumerate(range(0, size, most))
    ]


def _digest(part: _Part) -> str:
    found = hashlib.sha256()
    for block in _blocks(part):
        found.update(block)
    return found.hexdigest()


def _copy(part: _Part, path: Path) -> None:
    with path.open("wb") as file:
        for block in _blocks(part):
            file.write(block)


def _blocks(part: _Part) -> Iterator[bytes]:
    with part.archive.open("rb") as file:
        file.seek(part.offset)
        left = part.size
        while left:
            block = file.read(min(left, _BLOCK_BYTES))
            left -= len(block)
            yield block
