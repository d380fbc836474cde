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
from pathlib import Path

from control import records
from control.nodes import Options

FILE = Path("secrets", "root.key")
_BYTES = 32


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


def _root(opts: Options) -> bytes:
    path = records.path_of(opts, str(FILE))
    try:
        return _read(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Several processes may come first together; whichever links its file first has made the secret for all.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink()
    return _read(path)


def _read(path: Path) -> bytes:
    found = path.read_bytes()
    if len(found) != _BYTES:
        raise records.RecordError(
            f"{path}: {len(found)} bytes, expected {_BYTES}; take it away, restart the master, then cluster apply"
        )
    return found
