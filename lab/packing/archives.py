"""Compress trees of files into archives of xz, some side by side; one that is there already is not made again."""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

from bottleneck import atomic_files

# Archives unpack side by side, so they are many; a window of xz sees alike files only within one.
RAW_BYTES = 120_000_000
_WINDOW_BYTES = 64 * 2**20
_THREADS = 4


def relative_files(folder: Path, left_out: Sequence[str] = ()) -> list[str]:
    """Return the files and links below a folder, by their paths there, without those that patterns leave out.

    A pattern that fits a folder leaves out all that is below it; `**/NAME` fits the name anywhere.
    """
    found: list[str] = []
    for top, folders, files in os.walk(folder):
        place = os.path.relpath(top, folder)
        inside = "" if place == "." else f"{place}/"
        kept = [name for name in folders if not _fits(f"{inside}{name}", left_out)]
        links = [name for name in kept if (Path(top) / name).is_symlink()]
        folders[:] = sorted(set(kept) - set(links))
        found += [f"{inside}{name}" for name in [*files, *links] if not _fits(f"{inside}{name}", left_out)]
    return sorted(found)


def make(name: str, folder: Path, files: Sequence[str], into: Path, preset: int) -> list[Path]:
    """Return archives with files of a folder, named by what is in them.

    Parameters
    ----------
    name
        The beginning of their names.
    files
        Paths below the folder.
    preset
        How hard xz tries, 0 to 9.
    """
    into.mkdir(parents=True, exist_ok=True)
    jobs = []
    for group in _groups(folder, files):
        digest = _content_digest(folder, group, preset)
        jobs.append((folder, group, into / f"{name}-{digest}.tar.xz", preset))
    # Threads: xz works without the interpreter's lock.
    with ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(_compress, jobs))


def _groups(folder: Path, files: Sequence[str]) -> list[list[str]]:
    """Divide files into archives: libraries together, for they are compressed by another filter."""
    sizes = {name: (folder / name).lstat().st_size for name in files}
    groups: list[list[str]] = []
    for libraries in (True, False):
        chosen = [name for name in files if _is_library(name) == libraries]
        total = 0
        for number, name in enumerate(chosen):
            if number == 0 or total + sizes[name] > RAW_BYTES:
                groups.append([])
                total = 0
            groups[-1].append(name)
            total += sizes[name]
    return groups


def _is_library(name: str) -> bool:
    return ".so" in name.rpartition("/")[2]


def _content_digest(folder: Path, files: Sequence[str], preset: int) -> str:
    digest = hashlib.sha256(str(preset).encode())
    for name in files:
        path = folder / name
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        digest.update(f"{name}\0{path.lstat().st_mode:o}\0{len(content)}\0".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _compress(job: tuple[Path, Sequence[str], Path, int]) -> Path:
    folder, files, path, preset = job
    if path.exists():
        return path
    filters: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": _WINDOW_BYTES}]
    if _is_library(files[0]):
        filters.insert(0, {"id": lzma.FILTER_X86})
    with (
        atomic_files.replacing(path) as partial,
        lzma.open(partial, "wb", filters=filters) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        for name in files:
            archive.add(folder / name, name, recursive=False, filter=_nobodys)
    return path


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _fits(path: str, patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(path.rpartition("/")[2], pattern[3:]) if pattern.startswith("**/") else fnmatchcase(path, pattern)
        for pattern in patterns
    )
