"""The guard of the unit tests: a process that one starts is refused and named."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from tests.unit.conftest import Guard


@pytest.fixture
def guard(no_process_is_started: Guard) -> Guard:
    return no_process_is_started


def test_every_way_to_start_a_process_is_refused(guard: Guard) -> None:
    async def started() -> None:
        await asyncio.create_subprocess_exec(sys.executable, "-c", "")

    ways = (
        lambda: subprocess.run(["true"], check=False),
        lambda: subprocess.check_output("true", shell=True),
        lambda: os.system("true"),
        os.fork,
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: os.execv("/bin/true", ["true"]),
        lambda: asyncio.run(started()),
    )
    for way in ways:
        with pytest.raises(pytest.fail.Exception, match="a unit test started a process"):
            way()
    assert len(guard.started) == len(ways)
    guard.started.clear()


@pytest.mark.starts_programs
def test_a_marked_test_may() -> None:
    assert subprocess.run(["true"], check=False).returncode == 0
