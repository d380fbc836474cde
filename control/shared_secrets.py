"""Keep the control node's one secret, and derive from it what others share: keys for what is no one else's to read.

The secret is made at its first use, readable by root alone, and never leaves the machine. A key that is derived names
what it is for, so that one says nothing of another.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from control import records
from control.records import Options

FILE = Path("secrets", "root.key")
_BYTES = 32
# Of a secret that a person may put in place of ours.
LEAST_CHARACTERS = 16


def derived(opts: Options, *purpose: str) -> bytes:
    """Return the key for a purpose, 32 bytes.

    Parameters
    ----------
    purpose : str
        Words; two purposes that differ in any of them have keys that tell nothing of each other.
    """
    # Each word with its length: ("a", "bc") is not ("ab", "c").
    text = "".join(f"{len(word.encode())}:{word}" for word in purpose)
    return hmac.new(_root(opts), text.encode(), hashlib.sha256).digest()


def kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return what a secret's file holds; one that is not there is made, readable by root alone.

    Parameters
    ----------
    make : callable
        Returns what is written into a new file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Several processes may come first together; whichever links its file first has made the secret for all.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink()
    return path.read_bytes()


def _root(opts: Options) -> bytes:
    path = records.path_of(opts, str(FILE))
    found = kept(path, lambda: secrets.token_bytes(_BYTES))
    if len(found) != _BYTES:
        raise records.RecordError(
            f"{path}: {len(found)} bytes, expected {_BYTES}; take it away, restart the master, then cluster apply"
        )
    return found
