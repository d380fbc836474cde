"""Lay out a lab on this machine: names, folders, the record, the lock."""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bottleneck import atomic_files

REPOSITORY = Path(__file__).resolve().parents[1]
CONTROL = "control"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


class LabError(Exception):
    """A lab that cannot go on: a sentence, with the command to run next and the exit status."""

    def __init__(self, message: str, next_command: str | None = None, code: int = 1) -> None:
        super().__init__(message)
        self.next_command = next_command
        self.code = code


def check_name(name: str) -> str:
    """Return `name` when it can name a lab: it becomes a folder and a cgroup."""
    if not _NAME.fullmatch(name):
        raise LabError(
            f"{name!r} cannot name a lab; expected 1 to 32 lower-case letters, digits and inner hyphens", code=2
        )
    return name


def base_directory() -> Path:
    """Return the folder that holds every lab's folder."""
    return Path(os.environ.get("CLUSTER_LAB_DIRECTORY", "/var/lib/cluster-lab")).absolute()


def cache_directory() -> Path:
    """Return this machine's folder for engines and models, which all nodes of all labs share."""
    return Path(os.environ.get("CLUSTER_CACHE", "/var/cache/cluster")).absolute()


def lab_directory(name: str) -> Path:
    """Return the folder of one lab."""
    return base_directory() / name


def node_directory(name: str, node: str) -> Path:
    """Return the folder that holds the writable layer of one node."""
    return lab_directory(name) / "nodes" / node


@dataclass
class Record:
    """Record of `up`, kept in the lab's folder for the commands that come after it."""

    name: str
    profile: str
    profile_version: str
    profile_path: str
    profile_digest: str
    boot: str
    created: float
    state: str = "starting"
    inits: dict[str, list[int]] = field(default_factory=dict)  # node -> [process id, start ticks]
    cores: dict[str, list[int]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    devices: dict[str, dict[str, str]] = field(default_factory=dict)  # node -> what shows it its own accelerators
    ports: list[dict[str, Any]] = field(default_factory=list)  # one per shaped interface
    throttled: dict[str, float] = field(default_factory=dict)  # network -> bytes per second
    slowed: dict[str, float] = field(default_factory=dict)  # node -> cores
    slow_disks: dict[str, float] = field(default_factory=dict)  # node -> bytes per second
    notes: list[str] = field(default_factory=list)
    owner: int | None = None

    def environment_of(self, node: str) -> dict[str, str]:
        """Return the environment of every command in a node."""
        return {**self.environment, **self.devices.get(node, {})}

    def save(self) -> None:
        """Write the record whole: a reader sees the old one or the new one."""
        atomic_files.replace_json(lab_directory(self.name) / "lab.json", {"schema": 1, **asdict(self)})


def load_record(name: str) -> Record | None:
    """Return the record of lab `name`; None when there is none or it cannot be read."""
    try:
        data = json.loads((lab_directory(check_name(name)) / "lab.json").read_text())
        if data.pop("schema") != 1:
            return None
        return Record(**data)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def boot_id() -> str:
    """Return the kernel's name for this boot: process ids of another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@contextmanager
def locked(name: str, patience_seconds: float = 120.0) -> Iterator[None]:
    """Hold the lab's lock; the kernel drops it if this process dies.

    Raises
    ------
    LabError
        When another command keeps it for longer than `patience_seconds`.
    """
    base = base_directory()
    base.mkdir(parents=True, exist_ok=True)
    path = base / f"{check_name(name)}.lock"
    deadline = time.monotonic() + patience_seconds
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file: then this lock guards nothing.
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                break
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise LabError(
                f"another command has held lab {name} for {patience_seconds:.0f} s", f"cluster lab status {name}"
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        # Only an empty lab needs no lock file; unlinking it while held is safe (see above).
        if not lab_directory(name).exists():
            path.unlink(missing_ok=True)
        os.close(descriptor)
