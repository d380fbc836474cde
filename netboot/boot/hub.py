"""Download a model of the hub to the control node, once for all nodes: resumed, each file checked by the hub's digests.

The hub has the SHA-256 of large files and git's own digest of small ones. What is there afterwards is a model as
`publish` makes one: a folder with an index.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck import atomic_files
from netboot.boot import model_transfer
from netboot.boot.models import INDEX, Index, ModelError, read_index
from netboot.image.manifest import File, file_of

HUB = "https://huggingface.co"
NEXT = "cluster model download"
ANSWER_SECONDS = 60.0
_SOURCE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The same weights in another form, beside those that an engine loads.
_TWICE = re.compile(r"consolidated.*\.safetensors|.*\.(bin|pth|pt|h5|msgpack|onnx|gguf)")
_WEIGHTS = re.compile(r"model.*\.safetensors")
_REFUSALS = {
    401: "wants to know who asks",
    403: "does not let this account read it",
    404: "does not know it, or it is private",
    429: "limits how often it is asked; wait some minutes",
}
_TOKEN = "a gated model needs access asked for on its page, and HF_TOKEN of that account on the control node"  # noqa: S105


@dataclass(frozen=True)
class Hub:
    """The server that has models.

    Attributes
    ----------
    token
        Of an account, for models that are not everybody's; sent to this server alone.
    """

    address: str = HUB
    token: str = ""

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Hub:
        """Return the hub that the hub's own client would ask: HF_ENDPOINT, HF_TOKEN."""
        return cls((environment.get("HF_ENDPOINT") or HUB).rstrip("/"), environment.get("HF_TOKEN", ""))

    @property
    def private(self) -> dict[str, str]:
        """Headers that nobody else is sent."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def download(
    source: str,
    store: Path,
    name: str,
    hub: Hub | None = None,
    revision: str = "main",
    report: model_transfer.Report | None = None,
) -> Index:
    """Put a model of the hub into the store, unless it is there; return its index.

    What has arrived before a failure is kept, and the next call goes on from there.

    Parameters
    ----------
    source
        ORGANISATION/MODEL.
    name
        Folder below the store, as nodes ask for it.

    Raises
    ------
    ModelError
        When the hub refuses it, a disk is too small, or another download of it is under way.
    """
    if not _SOURCE.fullmatch(source):
        raise ModelError(f"{source}: expected the name of a model on the hub, such as ORGANISATION/MODEL")
    hub, target = hub or Hub(), store / name
    store.mkdir(parents=True, exist_ok=True)
    with _alone(store / f".{name}.lock", source):
        if (target / INDEX).is_file():
            return read_index(target)
        commit, files = _listing(hub, source, revision)
        partial = store / f".{name}.downloaded"
        _check_room(store, partial, files)
        address = f"{hub.address}/{source}/resolve/{commit}/"
        try:
            model_transfer.fetch_files(
                str(partial),
                files,
                lambda file: address + urllib.parse.quote(file),
                report,
                hub.private,
                urllib.request.build_opener(),
            )
        except RuntimeError as error:
            text = str(error).partition("; next: ")[0]
            raise ModelError(f"{text}; what has arrived is kept; next: {NEXT}") from error
        index = Index(
            files={file: _whole(partial / file, known) for file, known in files.items()}, source=source, commit=commit
        )
        atomic_files.replace_json(partial / INDEX, index.model_dump())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return index


def wanted(names: list[str]) -> list[str]:
    """Return which files of a model are fetched: not those in folders, and no weights a second time."""
    flat = [name for name in names if "/" not in name and name != INDEX]
    if any(_WEIGHTS.fullmatch(name) for name in flat):
        flat = [name for name in flat if not _TWICE.fullmatch(name)]
    return sorted(flat)


def _listing(hub: Hub, source: str, revision: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the commit that a revision is now, and file name -> bytes and digest."""
    url = f"{hub.address}/api/models/{source}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"
    request = urllib.request.Request(url)  # noqa: S310
    for header, value in hub.private.items():
        request.add_unredirected_header(header, value)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            found = json.load(answer)
        known = {each["rfilename"]: each for each in found["siblings"]}
        files = {name: _digest(known[name]) for name in wanted(list(known))}
        commit = str(found["sha"])
    except urllib.error.HTTPError as error:
        reason = error.headers.get("X-Error-Message") or _REFUSALS.get(error.code, str(error.reason))
        hint = f"; {_TOKEN}" if error.code in (401, 403, 404) else ""
        raise ModelError(f"{source}: the hub answers {error.code}: {reason}{hint}; next: {NEXT}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{url}: {error}; can the control node reach the hub? next: {NEXT}") from error
    if "config.json" not in files:
        raise ModelError(f"{source} has no config.json: it is not in the form that an engine loads")
    return commit, files


def _digest(file: Mapping[str, Any]) -> dict[str, Any]:
    if file.get("lfs"):
        return {"bytes": int(file["lfs"]["size"]), "sha256": str(file["lfs"]["sha256"])}
    return {"bytes": int(file["size"]), "git": str(file["blobId"])}


def _whole(path: Path, known: Mapping[str, Any]) -> File:
    # The hub's SHA-256 was compared while the file was written.
    return File(sha256=known["sha256"], bytes=known["bytes"]) if "sha256" in known else file_of(path)


def _check_room(store: Path, partial: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    there = sum(path.stat().st_size for path in partial.iterdir()) if partial.is_dir() else 0
    missing, free = sum(file["bytes"] for file in files.values()) - there, shutil.disk_usage(store).free
    if missing > free:
        raise ModelError(f"{store} has {free / 1e9:.1f} GB free; expected {missing / 1e9:.1f} GB for what is missing")


@contextmanager
def _alone(lock: Path, source: str) -> Iterator[None]:
    with lock.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise ModelError(
                f"{source}: process {handle.read().strip() or '?'} downloads it already; wait for it"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
