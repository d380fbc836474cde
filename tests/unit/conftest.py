"""No unit test starts a process unless it is marked so: `starts_programs`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest

# Whatever a process is started with goes through one of these; asyncio and multiprocessing do, too.
STARTERS = (
    (subprocess.Popen, "__init__"),
    (os, "fork"),
    (os, "forkpty"),
    (os, "posix_spawn"),
    (os, "posix_spawnp"),
    (os, "system"),
    *((os, name) for name in ("execv", "execve", "execvp", "execvpe")),
)


@dataclass
class Guard:
    """The processes that a test tried to start."""

    started: list[str] = field(default_factory=list)

    def refuse(self, *arguments: Any, **_keywords: Any) -> NoReturn:
        command = next((each for each in arguments if isinstance(each, str | list | tuple)), arguments)
        self.started.append(str(command))
        pytest.fail(f"a unit test started a process: {command}; replace the call, or mark the test starts_programs")


@pytest.fixture(autouse=True)
def no_process_is_started(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """Fail a test that starts a process, even where the code under test goes on without it."""
    guard = Guard()
    if request.node.get_closest_marker("starts_programs"):
        yield guard
        return
    for owner, name in STARTERS:
        monkeypatch.setattr(owner, name, guard.refuse)
    yield guard
    if guard.started:
        pytest.fail(f"{request.node.name} started processes: {'; '.join(guard.started)}")
