"""
Fetch a model's folder from the control node: by its index, each file resumed where it broke off and checked.
"""

import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import node_files

INDEX = "index.json"
CHUNK_BYTES = 1 << 20
# A control node that is busy with other nodes.
ANSWER_SECONDS = 60.0
# A transfer that breaks off is taken up again; one that brings nothing so many times is given up.
TRIES = 5
PAUSE_SECONDS = 1.0
# The nodes' network has no proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(directory: str, url: str) -> bool:
    """
    Return whether the control node has the folder; it is at ``directory`` then, whole.

    directory
        appears when every file is there and has the digest of the index
    url
        of the folder

    Raises ``RuntimeError`` when the control node has it and it cannot be fetched.
    """
    index = _index(url)
    if index is None:
        return False
    partial = directory + ".fetched"
    os.makedirs(partial, exist_ok=True)
    for name, file in sorted(index.items()):
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise RuntimeError(f"{url}/{INDEX}: {name!r}; expected names of files")
        _fetch_file(f"{url}/{name}", os.path.join(partial, name), file)
    for name in set(os.listdir(partial)) - set(index):
        os.unlink(os.path.join(partial, name))
    node_files.replace_folder(partial, directory)
    return True


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


def _fetch_file(url: str, path: str, file: Mapping[str, Any]) -> None:
    """Fetch one file, from where an earlier try broke off; what is there and has another digest is fetched again."""
    wanted, silent, wrong = int(file["bytes"]), 0, 0
    with open(path, "ab"):
        # A file without content is fetched by being there.
        pass
    while True:
        there = os.path.getsize(path)
        if there >= wanted:
            if there == wanted and _sha256(path) == file["sha256"]:
                return
            os.truncate(path, 0)
            wrong += 1
            reason = "its content is not that of the index"
        else:
            reason = _append(url, path, there)
            silent = silent + 1 if os.path.getsize(path) == there else 0
        if max(silent, wrong) >= TRIES:
            raise RuntimeError(f"{url}: {reason}, {TRIES} times; next: cluster apply model")
        if reason:
            time.sleep(PAUSE_SECONDS)


def _append(url: str, path: str, there: int) -> str:
    """Add to a file what the server has of it from byte ``there`` on; return why that broke off, or nothing."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})  # noqa: S310
    try:
        # A server that does not know ranges sends the whole.
        with open(path, "ab") as target, _OPENER.open(request, timeout=ANSWER_SECONDS) as answer:
            if there and answer.status != http.client.PARTIAL_CONTENT:
                target.truncate(0)
            shutil.copyfileobj(answer, target, CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    return ""


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(CHUNK_BYTES):
            digest.update(part)
    return digest.hexdigest()
