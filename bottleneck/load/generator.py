"""One load generator while it runs: start it, ask how far it is, read its result, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bottleneck.load.workload import Point, client_arguments, progress


class GeneratorError(Exception):
    """The generator failed; the text is its own last word."""


class Generator:
    """`vllm bench serve` against one head, in a process group of its own.

    Parameters
    ----------
    executable
        The `vllm` command of the engine's environment.
    directory
        Where its log and its result go; it is made when missing.
    stem
        Their name, less the ending.
    """

    def __init__(
        self,
        executable: Path,
        point: Point,
        *,
        base_url: str,
        model: str,
        tokenizer: str,
        directory: Path,
        stem: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.requests = point.requests
        self._result = directory / f"{stem}.json"
        self._log = directory / f"{stem}.log"
        arguments = client_arguments(
            point,
            base_url=base_url,
            model=model,
            tokenizer=tokenizer,
            result_directory=str(directory),
            result_name=self._result.name,
        )
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(executable), *arguments],
                env=generator_environment(executable, environment or {}),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # So that Ctrl-C reaches who started it, and that one ends it.
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

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
        raise GeneratorError(f"the load generator ended with status {self._process.poll()}: {reason}")

    def end(self) -> None:
        """End it and everything it started, if it runs."""
        for number, patience in ((signal.SIGINT, 2.0), (signal.SIGKILL, 2.0)):
            if self.is_running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)

    def _tail(self, size: int = 4096) -> str:
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - size))
            return file.read().decode(errors="replace")
        return ""


def generator_environment(executable: Path, engine: Mapping[str, str]) -> dict[str, str]:
    """Return the generator's environment: the engine's, and no proxy, for the nodes are reached directly."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    path = f"{executable.parent}:{inherited.get('PATH', '/usr/bin:/bin')}"
    return {**inherited, **engine, "TOKENIZERS_PARALLELISM": "false", "PATH": path}
