"""Recorded runs in one file: many of one deployment are much alike, so together they take a tenth of the room."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bottleneck import atomic_files

SAMPLES = "samples.jsonl.gz"
# In the archive samples are plain text, or each file's own compression would hide how alike they are.
PLAIN_SAMPLES = "samples.jsonl"
# What says nothing of the run.
LEFT_OUT = frozenset({"verdict.json"})
# Of a run that is trimmed: samples so far outside of its interval, histograms whose buckets are kept, and digits: a
# sample is taken every tenth of a second, a request is timed to a microsecond by a client that waits its turn.
KEPT_SECONDS = 0.5
KEPT_BUCKETS = ("vllm:iteration_tokens_total", "vllm:inter_token_latency_seconds", "vllm:time_to_first_token_seconds")
SAMPLE_DIGITS, CLIENT_DIGITS = 4, 5


def pack(folders: Sequence[Path], path: Path) -> Path:
    """Write runs into an archive, whole or not at all; each is a folder of its own name in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_files.replacing(path) as partial,
        lzma.open(partial, "wb", preset=6) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        # Alike files follow each other.
        for name in sorted({file.name for folder in folders for file in folder.iterdir() if file.is_file()} - LEFT_OUT):
            for folder in folders:
                if (folder / name).is_file():
                    content = (folder / name).read_bytes()
                    if name == SAMPLES:
                        content = gzip.decompress(content)
                    member = PLAIN_SAMPLES if name == SAMPLES else name
                    entry = tarfile.TarInfo(f"{folder.name}/{member}")
                    entry.size, entry.mode = len(content), 0o644
                    archive.addfile(entry, io.BytesIO(content))
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


def trimmed(folder: Path, into: Path) -> Path:
    """Write a run without what no verdict reads: far samples, buckets of histograms, digits below the noise."""
    into.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name in LEFT_OUT or not path.is_file():
            continue
        if path.suffix == ".prom":
            (into / path.name).write_text(_without_buckets(path.read_text(encoding="utf-8")), encoding="utf-8")
        elif path.name == SAMPLES:
            head = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            first, last = head["started"] - KEPT_SECONDS, head["ended"] + KEPT_SECONDS
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            batches = [batch for line in lines if _touches(batch := json.loads(line), first, last)]
            text = "".join(_slim(batch, SAMPLE_DIGITS) + "\n" for batch in batches)
            (into / path.name).write_bytes(gzip.compress(text.encode(), compresslevel=1))
        elif path.suffix == ".json":
            digits = CLIENT_DIGITS if path.name == "client.json" else None
            text = _slim(json.loads(path.read_text(encoding="utf-8")), digits)
            (into / path.name).write_text(text + "\n", encoding="utf-8")
        else:
            shutil.copy(path, into)
    return into


def _touches(batch: Mapping[str, Any], first: float, last: float) -> bool:
    return bool(batch["t1"] >= first and batch["t0"] <= last)


def _without_buckets(text: str) -> str:
    """Return metrics without their help, when series began, and buckets, but those that tell steps apart."""
    kept = []
    for line in text.splitlines(keepends=True):
        name = line.partition("{")[0].partition(" ")[0]
        if name.startswith("vllm:") and not name.endswith("_created") and (
            not name.endswith("_bucket") or name.startswith(KEPT_BUCKETS)
        ):  # fmt: skip
            kept.append(line)
    return "".join(kept)


def _slim(document: object, digits: int | None) -> str:
    return json.dumps(document if digits is None else _rounded(document, digits), separators=(",", ":"))


def _rounded(value: object, digits: int) -> object:
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {key: _rounded(each, digits) for key, each in value.items()}
    return [_rounded(each, digits) for each in value] if isinstance(value, list) else value


@contextmanager
def unpacked(path: Path, wanted: frozenset[str] | None = None) -> Iterator[list[Path]]:
    """Have an archive's runs, or those wanted of them, in a temporary folder while the block runs."""
    with TemporaryDirectory(prefix="verdicts-") as folder:
        yield unpack(path, Path(folder), wanted)
