"""Have load generators start at once: a process on the control node that has the engine's client loaded."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

from bottleneck.plan.engines import load_generator
from cli.control import Control, ControlError
from lab.layout import REPOSITORY

GENERATOR_SOCKET = "/run/cluster/generator.sock"
GENERATOR_SECONDS, GENERATOR_END_SECONDS = 120.0, 5.0


@contextlib.contextmanager
def generator(control: Control) -> Iterator[None]:
    """Have a process on the control node that starts load generators at once."""
    engine = load_generator(control.profile, control.profile.default_deployment)
    variables = {**engine.environment, "TOKENIZERS_PARALLELISM": "false"}
    program = str(REPOSITORY / "bottleneck" / "load" / "generator_server.py")
    stderr = bytearray()
    running = control.start(
        [
            "env",
            *(f"{name}={value}" for name, value in variables.items()),
            f"{engine.directory()}/bin/python",
            program,
            GENERATOR_SOCKET,
        ],
        stdin=subprocess.PIPE,
        on_stderr=stderr.extend,
    )
    watchdog = threading.Timer(GENERATOR_SECONDS, running.interrupt)
    watchdog.start()
    try:
        if running.stdout.readline().strip() != b"ready":
            last = stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise ControlError(f"the generator server did not start: {''.join(last)}", "cluster apply")
        watchdog.cancel()
        yield
    finally:
        watchdog.cancel()
        with contextlib.suppress(OSError):
            running.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(GENERATOR_END_SECONDS)
        running.interrupt()
