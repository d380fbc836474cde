"""Bound what strangers leave in the master's key store.

Salt stores whatever a machine offers as its key, pending, until a person looks: any number, of any size. No key becomes
a node's by being offered (`netboot.boot.enrolment`), so a pending key is only a note that someone knocked. The newest
notes are kept, for a person to see; what is no key by its size alone goes at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# An RSA key of 16384 bits is 2.8 kB as PEM; nodes have 2048 to 4096.
LARGEST_KEY_BYTES = 4096
MOST_KEYS, MOST_BYTES = 64, 64 * 1024
# Where Salt keeps keys that nobody has accepted. Denied ones are kept under the id of an accepted key.
FOLDERS = ("minions_pre", "minions_denied")


@dataclass(frozen=True)
class Dropped:
    """Keys that were removed, and what they took.

    Attributes
    ----------
    count : int
        How many.
    size_bytes : int
        Together.
    names : tuple of str
        Some of the ids that they were offered under: a stranger's own words.
    """

    count: int = 0
    size_bytes: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Key:
    path: Path
    size: int
    moment: float


def bound(pki_directory: Path) -> Dropped:
    """Remove the oldest keys that nobody accepted until few enough, and little enough, are left; return what went.

    An accepted key is never touched. What cannot be removed is looked at the next time.
    """
    dropped = Dropped()
    for folder in FOLDERS:
        count, size = 0, 0
        # The newest first: those are kept.
        for key in sorted(_keys(pki_directory / folder), key=lambda each: each.moment, reverse=True):
            count, size = count + 1, size + key.size
            if key.size > LARGEST_KEY_BYTES or count > MOST_KEYS or size > MOST_BYTES:
                count, size = count - 1, size - key.size
                with contextlib.suppress(OSError):
                    key.path.unlink()
                    names = (*dropped.names, key.path.name[:50])[:3]
                    dropped = Dropped(dropped.count + 1, dropped.size_bytes + key.size, names)
    return dropped


def _keys(folder: Path) -> Iterator[_Key]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        # Another driver keeps the keys elsewhere, or there were none yet.
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            # Hidden ones are being written.
            if entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                found = entry.stat(follow_symlinks=False)
                yield _Key(Path(entry.path), found.st_size, found.st_mtime)
