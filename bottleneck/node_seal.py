"""Seal what a node sends with the node's own key, so that no other node can have sent it.

A seal is an HMAC-SHA256 over a purpose and a text. The text is sent as it was sealed and read only after the seal
held: nothing is encoded a second time, so there is no second encoding to agree on. Node code and the control node share
this file; it uses the standard library alone.
"""

import hashlib
import hmac
from pathlib import Path

KEY_FILE = "/etc/cluster/node.key"
KEY_BYTES = 32
BATCHES, ANSWER = "batches", "answer"


class NodeKeyError(ValueError):
    """A node has no key that can be used; the text says what to do."""


def seal(key: bytes, purpose: str, minion: str, text: str) -> str:
    """Return the seal of a text.

    Parameters
    ----------
    key : bytes
        The node's own.
    purpose : str
        `BATCHES` or `ANSWER`: what was sealed as one is not taken as the other.
    minion : str
        Id under which the master knows the node.
    text : str
        As it is sent.

    Returns
    -------
    str
        64 hex digits.
    """
    # Each word with its length: ("a", "bc") is not ("ab", "c").
    words = "".join(f"{len(word)}:{word}" for word in (purpose, minion))
    # Half a surrogate pair is no Unicode, and JSON can spell one.
    return hmac.new(key, (words + text).encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def holds(key: bytes, purpose: str, minion: str, text: str, found: object) -> bool:
    """Return whether a text has its node's seal.

    Parameters
    ----------
    key, purpose, minion, text
        As `seal` takes them.
    found : object
        What came as the seal; it may be anything.
    """
    if not isinstance(found, str) or not found.isascii():
        return False
    return hmac.compare_digest(seal(key, purpose, minion, text), found)


def read_key(path: str) -> bytes:
    """Return the key that a node keeps in a file.

    Parameters
    ----------
    path : str
        Of the file; it has the key in hex.

    Raises
    ------
    NodeKeyError
        When there is none, or it is no key.
    """
    try:
        key = bytes.fromhex(Path(path).read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise NodeKeyError(f"{path}: {error}; the node gets its key with: cluster apply") from None
    if len(key) != KEY_BYTES:
        raise NodeKeyError(f"{path}: {len(key)} bytes, expected {KEY_BYTES}; take it away, then: cluster apply")
    return key


class KeyFile:
    """A node's key as its file has it now: a key that is changed is used from the next sending on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._key = b""

    def read(self) -> bytes:
        """Return the key; errors as `read_key`."""
        try:
            found = Path(self._path).stat()
            seen = (found.st_mtime_ns, found.st_ino)
        except OSError:
            seen = None
        if seen is None or seen != self._seen:
            self._key = read_key(self._path)
            self._seen = seen
        return self._key
