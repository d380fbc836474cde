"""
Make an engine's folder of an archive of programs, or of links to programs that are somewhere else.
"""

import hashlib
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import BinaryIO

DIGEST_FILE = "archive.sha256"
UNPACKED = "archive"
# Of one answer of the server, not of the whole archive.
SILENCE_SECONDS = 60.0
BLOCK_BYTES = 1 << 20


def unpack(directory: str, archive: Mapping[str, str]) -> None:
    """
    Fetch an archive, unpack it and link its programs; raise RuntimeError when it is another one than expected.

    directory
        folder of the engine; the caller takes it away when this fails
    archive
        the engine map's ``archive``: ``url``, ``sha256``, and the folder of its ``programs``
    """
    os.makedirs(directory)
    fetched = os.path.join(directory, "fetched")
    digest = _fetch(archive["url"], fetched)
    if digest != archive["sha256"]:
        raise RuntimeError(
            f"{archive['url']}: digest {digest}; expected {archive['sha256']}, of the engine map: it is another archive"
            " or was damaged on its way, and nothing of it was unpacked"
        )
    unpacked = os.path.join(directory, UNPACKED)
    os.makedirs(unpacked)
    try:
        with tarfile.open(fetched) as packed:
            # Nothing outside the folder, no devices, no other owner.
            packed.extractall(unpacked, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise RuntimeError(f"{archive['url']}: {error}; expected a tar archive of files below one folder") from error
    os.unlink(fetched)
    programs = os.path.join(unpacked, archive["programs"])
    if not os.path.isdir(programs):
        raise RuntimeError(f"{archive['url']}: no folder {archive['programs']}; expected the programs there")
    paths = [os.path.join(programs, name) for name in sorted(os.listdir(programs))]
    found = [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]
    if not found:
        raise RuntimeError(f"{archive['url']}: no program in {archive['programs'] or 'its top folder'}; expected some")
    link(directory, found)
    with open(os.path.join(directory, DIGEST_FILE), "w", encoding="ascii") as file:
        file.write(f"{digest}\n")


def link(directory: str, programs: Iterable[str]) -> None:
    """
    Link programs by their names into an engine's folder, where they are started from and looked for.

    directory
        folder of the engine
    programs
        absolute paths
    """
    os.makedirs(directory, exist_ok=True)
    # Programs are looked for in bin, and started by their path below the folder.
    os.symlink(".", os.path.join(directory, "bin"))
    for path in programs:
        os.symlink(path, os.path.join(directory, os.path.basename(path)))


def digest_in(directory: str) -> str:
    """
    Return the digest of the archive that an engine's folder was made of; empty for another folder.

    directory
        folder of the engine
    """
    with suppress(OSError), open(os.path.join(directory, DIGEST_FILE), encoding="ascii") as file:
        return file.read().strip()
    return ""


def _fetch(url: str, path: str) -> str:
    """Copy what is at an address into a file; return its SHA-256."""
    try:
        with urllib.request.urlopen(url, timeout=SILENCE_SECONDS) as answer, open(path, "wb") as file:  # noqa: S310 - the map allows http and https alone
            return _copied(answer, file)
    except (urllib.error.URLError, OSError) as error:
        raise RuntimeError(f"{url}: {getattr(error, 'reason', error)}; expected an archive there") from error


def _copied(source: BinaryIO, target: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := source.read(BLOCK_BYTES):
        digest.update(block)
        target.write(block)
    return digest.hexdigest()
