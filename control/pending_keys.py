"""Bound what strangers leave in the master's key store.

Salt stores whatever a machine offers as its key, pending, until a person looks: any number, of any size. No key becomes
a node's by being offered (`netboot.boot.enrolment`), so a pending key is only a note that someone knocked. The newest
notes are kept, for a person to see; what is no key by its size alone goes at once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

# How often they are looked at (what strangers leave meanwhile is bounded by the link alone), and named in the log.
LOOK_SECONDS, LOG_SECONDS = 1.0, 10.0
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


class Keeper:
    """Bounds the keys now and then, and counts what went.

    Parameters
    ----------
    pki_directory : str or None
        The master's; None where there is none to look after.
    steady : callable
        A clock that nobody sets, seconds.
    """

    def __init__(self, pki_directory: str | None, steady: Callable[[], float]) -> None:
        self._folder, self._steady = pki_directory, steady
        self._looked = self._logged = -math.inf
        self.dropped = 0

    def look(self) -> None:
        """Drop what is too much, when it is time to look again."""
        now = self._steady()
        if self._folder is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        found = bound(Path(self._folder))
        self.dropped += found.count
        if found.count and now - self._logged >= LOG_SECONDS:
            self._logged = now
            names = ", ".join(ascii(name) for name in found.names)
            log.warning("Dropped %d keys that strangers offered, the last as %s", self.dropped, names)


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
