"""Recorded runs in one file: many of one deployment are much alike, so together they take a tenth of the room."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

SAMPLES = "samples.jsonl.gz"
# In the archive samples are plain text, or each file's own compression would hide how alike they are.
PLAIN_SAMPLES = "samples.jsonl"
# What says nothing of the run.
LEFT_OUT = frozenset({"versions.json", "verdict.json"})


def pack(folders: Sequence[Path], path: Path) -> Path:
    """Write runs into an archive, whole or not at all; each is a folder of its own name in it."""
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(partial, "wb", preset=6) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        # Alike files follow each other.
        for name in sorted({file.name for folder in folders for file in folder.iterdir() if file.is_file()} - LEFT_OUT):
            for folder in folders:
                if (folder / name).is_file():
                    content = (folder / name).read_bytes()
                    if name == SAMPLES:
                        content = gzip.decompress(content)
                    told = PLAIN_SAMPLES if name == SAMPLES else name
                    entry = tarfile.TarInfo(f"{folder.name}/{told}")
                    entry.size, entry.mode = len(content), 0o644
                    archive.addfile(entry, io.BytesIO(content))
    partial.rename(path)
    return path


def unpack(path: Path, into: Path, wanted: frozenset[str] | None = None) -> list[Path]:
    """Write an archive's runs, or those wanted of them, below a folder as they were recorded; return their folders."""
    found: dict[Path, None] = {}
    with tarfile.open(path, "r:xz") as archive:
        for entry in archive:
            run, _, name = entry.name.partition("/")
            stream = archive.extractfile(entry)
            if stream is None or not name or "/" in name or run in ("", ".", ".."):
                raise ValueError(f"{path}: {entry.name}: expected RUN/FILE")
            if wanted is not None and run not in wanted:
                continue
            folder = into / run
            folder.mkdir(parents=True, exist_ok=True)
            found[folder] = None
            content = stream.read()
            if name == PLAIN_SAMPLES:
                name, content = SAMPLES, gzip.compress(content, compresslevel=1)
            (folder / name).write_bytes(content)
    return list(found)


@contextmanager
def unpacked(path: Path, wanted: frozenset[str] | None = None) -> Iterator[list[Path]]:
    """Have an archive's runs, or those wanted of them, in a temporary folder while the block runs."""
    with TemporaryDirectory(prefix="verdicts-") as folder:
        yield unpack(path, Path(folder), wanted)
