"""Let one thing at a time change the cluster, and say to the next one what is under way.

A lock is the kernel's lock on a file of the cluster's directory: it ends with its process, however that ends.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from salt.exceptions import CommandExecutionError

from control import records

# Whoever starts or stops workers; and whoever measures, of which several may run. A sync restarts the master under
# neither (`remote/master_reload.py` looks at the same files).
DEPLOYMENT, BENCH = "deployment.lock", "bench.lock"
# Whoever boots nodes anew, and whoever looks whether a deployment serves.
REPROVISION, RECOVERY = "reprovision.lock", "recover.lock"


class LockedError(CommandExecutionError):  # type: ignore[misc]  # Salt is not typed
    """Something that excludes this is under way; the text says what, since when, and what to do."""


@contextlib.contextmanager
def exclusive(opts: Mapping[str, Any], name: str, what: str, refusal: str | None = None) -> Iterator[None]:
    """
    Hold a lock alone.

    what
        what is under way while it is held, for whoever is refused meanwhile
    refusal
        what to say when another holds it, instead of what that one says of itself

    Raises ``LockedError`` at once when another process holds it.
    """
    with _locked(opts, name, fcntl.LOCK_EX, refusal) as descriptor:
        holder = {"what": what, "process": os.getpid(), "since": time.time()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield


@contextlib.contextmanager
def shared(opts: Mapping[str, Any], name: str) -> Iterator[None]:
    """Hold a lock beside others that hold it like this: as a mark that something is under way."""
    with _locked(opts, name, fcntl.LOCK_SH):
        yield


def is_taken(opts: Mapping[str, Any], name: str) -> bool:
    """Return whether a process holds a lock."""
    try:
        with shared(opts, name):
            return False
    except LockedError:
        return True


@contextlib.contextmanager
def _locked(opts: Mapping[str, Any], name: str, kind: int, refusal: str | None = None) -> Iterator[int]:
    path = records.path_of(opts, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(refusal or _sentence(os.pread(descriptor, 4096, 0))) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _sentence(content: bytes) -> str:
    try:
        holder = json.loads(content)
        since = datetime.fromtimestamp(float(holder["since"]), UTC).strftime("%H:%M:%S UTC")
        under_way = f"{holder['what']} is under way since {since}, process {int(holder['process'])} of the control node"
    except (KeyError, TypeError, ValueError):
        under_way = "another command that starts or stops workers is under way"
    return f"{under_way}: wait until it has ended, or end it where it runs (Ctrl-C stops what it started)"
