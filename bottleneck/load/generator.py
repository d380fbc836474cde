"""One load generator while it runs: start it, ask how far it is, read its result, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bottleneck.load.workload import Load, client_arguments, progress


class GeneratorError(Exception):
    """The generator failed; the text is its own last word."""


class Generator:
    """`vllm bench serve`, or what takes the same arguments, against one head, in a process group of its own.

    Parameters
    ----------
    command
        The `vllm` command of the engine's environment; another program with the words before its arguments.
    directory
        Where its log and its result go; it is made when missing.
    stem
        Their name, less the ending.
    server
        The socket of a process that has vLLM loaded already (`generator_server`), which is to start it: the seconds of
        its imports are saved. Left out, it is a process of its own.
    """

    def __init__(
        self,
        command: Sequence[str],
        load: Load,
        *,
        base_url: str,
        model: str,
        tokenizer: str,
        directory: Path,
        stem: str,
        environment: Mapping[str, str] | None = None,
        server: Path | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.requests = load.requests
        self._result = directory / f"{stem}.json"
        self._log = directory / f"{stem}.log"
        arguments = client_arguments(
            load,
            base_url=base_url,
            model=model,
            tokenizer=tokenizer,
            result_directory=str(directory),
            result_name=self._result.name,
        )
        variables = generator_environment(Path(command[0]), environment or {})
        self._process: _Process | _Forked
        if server is not None:
            self._process = _Forked(server, arguments, variables, directory, self._log)
        else:
            self._process = _Process(command, arguments, variables, directory, self._log)

    @property
    def is_running(self) -> bool:
        """Return whether it has not ended yet."""
        return self._process.status() is None

    def requests_done(self) -> int | None:
        """Return how many requests have ended; None while it is still starting."""
        found = progress(self._tail())
        return found[0] if found else None

    def result(self) -> dict[str, Any]:
        """Return what it saved.

        Raises
        ------
        GeneratorError
            When it saved nothing usable.
        """
        try:
            document = json.loads(self._result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            document = None
        if isinstance(document, dict):
            return document
        lines = [line.strip() for line in self._tail().splitlines() if line.strip()]
        reason = lines[-1][:300] if lines else "it said nothing"
        raise GeneratorError(f"the load generator ended with status {self._process.status()}: {reason}")

    def end(self) -> None:
        """End it and everything it started, if it runs."""
        for number, patience in ((signal.SIGINT, 2.0), (signal.SIGKILL, 2.0)):
            if self.is_running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                self._process.wait(patience)

    def _tail(self, size: int = 4096) -> str:
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - size))
            return file.read().decode(errors="replace")
        return ""


class _Process:
    """A generator that is a process of its own from the start."""

    def __init__(
        self,
        command: Sequence[str],
        arguments: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        log: Path,
    ) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, *arguments],
                env=environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # So that Ctrl-C reaches who started it, and that one ends it.
                start_new_session=True,
            )
        self.pid = self._process.pid

    def status(self) -> int | None:
        """Return its exit status; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> None:
        """Wait for its end, no longer than so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


class _Forked:
    """A generator that a `generator_server` forks, with vLLM loaded."""

    def __init__(
        self, server: Path, arguments: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path
    ) -> None:
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "directory": str(directory),
            "log": str(log),
        }
        self._status: int | None = None
        self._read = b""
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.settimeout(10.0)
            self._connection.connect(str(server))
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            while b"\n" not in self._read:
                part = self._connection.recv(4096)
                if not part:
                    raise GeneratorError(f"the generator server at {server} took no order")
                self._read += part
        except OSError as error:
            self._connection.close()
            raise GeneratorError(f"the generator server at {server} does not answer: {error}") from error
        first, _, self._read = self._read.partition(b"\n")
        self.pid = int(json.loads(first)["pid"])

    def status(self) -> int | None:
        """Return its exit status; None while it runs."""
        self.wait(0.0)
        return self._status

    def wait(self, seconds: float) -> None:
        """Wait for its end, no longer than so many seconds."""
        deadline = time.monotonic() + seconds
        while self._status is None:
            ready, _, _ = select.select([self._connection], [], [], max(deadline - time.monotonic(), 0.0))
            if not ready:
                return
            part = self._connection.recv(4096)
            self._read += part
            if b"\n" in self._read:
                self._status = int(json.loads(self._read)["status"])
            elif not part:
                # Its server is gone, and it with it.
                self._status = -int(signal.SIGKILL)
        self._connection.close()


def generator_environment(executable: Path, engine: Mapping[str, str]) -> dict[str, str]:
    """Return the generator's environment: the engine's, and no proxy, for the nodes are reached directly.

    Parameters
    ----------
    executable : Path
        Program of the generator; its folder comes first in the path.
    engine : Mapping[str, str]
        Variables of the engine's entry in the engine map.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    path = f"{executable.parent}:{inherited.get('PATH', '/usr/bin:/bin')}"
    return {**inherited, **engine, "TOKENIZERS_PARALLELISM": "false", "PATH": path}
