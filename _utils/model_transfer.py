"""
Fetch a model's files by an index: each resumed where it broke off, and checked while it is written.
"""

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

INDEX = "index.json"
CHUNK_BYTES = 1 << 20
# A control node that is busy with other nodes.
ANSWER_SECONDS = 60.0
# A transfer that breaks off is taken up again; one that brings nothing so many times is given up.
TRIES = 5
PAUSE_SECONDS = 1.0
REPORT_SECONDS = 1.0
# The nodes' network has no proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# Called with the bytes that are there and those of the whole.
Report = Callable[[int, int], None]


def fetch(partial: str, url: str, report: Report | None = None) -> bool:
    """
    Return whether the control node has the folder; all of it is at ``partial`` then.

    partial
        folder to fetch it into; what an earlier try left there is gone on with
    url
        of the folder on the control node
    report
        called about once a second

    Raises ``RuntimeError`` when the control node has it and it cannot be fetched.
    """
    index = _index(url)
    if index is None:
        return False
    fetch_files(partial, index, lambda name: f"{url}/{name}", report)
    return True


def fetch_files(
    partial: str,
    index: Mapping[str, Mapping[str, Any]],
    address: Callable[[str], str],
    report: Report | None = None,
    private: Mapping[str, str] | None = None,
    opener: urllib.request.OpenerDirector = _OPENER,
) -> None:
    """
    Fetch every file of an index into a folder, and remove from it what is in no index.

    partial
        what an earlier try left there is gone on with
    index
        file name -> ``bytes`` and ``sha256``, or ``git``, its digest as git has it
    address
        returns where a file is
    private
        headers for the server that is asked, and for none that it leads to
    """
    os.makedirs(partial, exist_ok=True)
    for name in index:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise RuntimeError(f"{address(INDEX)}: {name!r}; expected names of files")
    for name in set(os.listdir(partial)) - set(index):
        os.unlink(os.path.join(partial, name))
    total = sum(int(file["bytes"]) for file in index.values())
    before, reported = 0, 0.0
    for name, file in sorted(index.items()):

        def there(size: int) -> None:
            nonlocal reported
            now = time.monotonic()
            if report and now - reported >= REPORT_SECONDS:
                reported = now
                report(before + size, total)  # noqa: B023 (called within this turn)

        _File(address(name), os.path.join(partial, name), file, there, private or {}, opener).fetch()
        before += int(file["bytes"])


def _index(url: str) -> Mapping[str, Mapping[str, Any]] | None:
    try:
        with _OPENER.open(f"{url}/{INDEX}", timeout=ANSWER_SECONDS) as answer:
            found: Mapping[str, Mapping[str, Any]] = json.load(answer)["files"]
            return found
    except urllib.error.HTTPError as error:
        if error.code == http.client.NOT_FOUND:
            return None
        raise RuntimeError(f"{url}/{INDEX}: {error}; is the boot service well? (cluster doctor)") from error
    except (OSError, ValueError, KeyError) as error:
        raise RuntimeError(f"{url}/{INDEX}: {error}; is the boot service well? (cluster doctor)") from error


class _File:
    """One file on its way, with the digest of what is there of it."""

    def __init__(
        self,
        url: str,
        path: str,
        wanted: Mapping[str, Any],
        there: Callable[[int], None],
        private: Mapping[str, str],
        opener: urllib.request.OpenerDirector,
    ) -> None:
        self._url, self._path, self._there = url, path, there
        self._private, self._opener = private, opener
        self._bytes, self._sha256 = int(wanted["bytes"]), wanted.get("sha256")
        self._expected = str(self._sha256 or wanted["git"])
        self._digest = self._empty()

    def fetch(self) -> None:
        """Fetch it from where an earlier try broke off; what is there and has another digest is fetched again."""
        silent, wrong = 0, 0
        with open(self._path, "ab"):
            # A file without content is fetched by being there.
            pass
        self._read()
        while True:
            size = os.path.getsize(self._path)
            if size >= self._bytes:
                if size == self._bytes and self._digest.hexdigest() == self._expected:
                    return
                os.truncate(self._path, 0)
                self._digest = self._empty()
                wrong += 1
                reason = "its content is not that of the index"
            else:
                reason = self._append(size)
                silent = silent + 1 if os.path.getsize(self._path) == size else 0
            if max(silent, wrong) >= TRIES:
                raise RuntimeError(f"{self._url}: {reason}, {TRIES} times; next: cluster apply model")
            if reason:
                time.sleep(PAUSE_SECONDS)

    def _empty(self) -> "hashlib._Hash":
        if self._sha256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self._bytes, usedforsecurity=False)

    def _read(self) -> None:
        """Take the digest of what is there."""
        self._digest = self._empty()
        with open(self._path, "rb") as file:
            while part := file.read(CHUNK_BYTES):
                self._digest.update(part)
                self._there(file.tell())

    def _append(self, size: int) -> str:
        """Add what the server has from byte ``size`` on; return why that broke off, or nothing."""
        request = urllib.request.Request(self._url, headers={"Range": f"bytes={size}-"} if size else {})  # noqa: S310
        for name, value in self._private.items():
            request.add_unredirected_header(name, value)
        try:
            with open(self._path, "ab") as target, self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
                # A server that does not know ranges sends the whole.
                if size and answer.status != http.client.PARTIAL_CONTENT:
                    target.truncate(0)
                    self._digest, size = self._empty(), 0
                while part := answer.read(CHUNK_BYTES):
                    target.write(part)
                    self._digest.update(part)
                    size += len(part)
                    self._there(size)
        except (OSError, http.client.HTTPException) as error:
            # Of a part that is written by half the digest is not known.
            self._read()
            return str(error) or type(error).__name__
        return ""
