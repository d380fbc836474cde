"""Ask of a control node what every command needs, wherever it is: run this, run that runner, give me that folder."""

import codecs
import json
import subprocess
import tarfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from bottleneck.profile import Profile
from remote.exit_codes import FAILED

PROGRESS_MARK = "@progress "
Progress = Callable[[dict[str, Any]], None]


class ControlError(Exception):
    """A command on the control node failed; a sentence for the person, what to run next, an exit status."""

    def __init__(self, message: str, next_command: str | None = None, code: int = FAILED) -> None:
        super().__init__(message)
        self.next_command = next_command
        self.code = code


@dataclass(frozen=True)
class Completed:
    """A finished command: its exit status and its output as text."""

    returncode: int
    stdout: str
    stderr: str


class Running(Protocol):
    """A command under way on the control node."""

    @property
    def stdin(self) -> IO[bytes]:
        """Its input, when that was asked for as a pipe."""

    @property
    def stdout(self) -> IO[bytes]:
        """Its output, when that was asked for as a pipe."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status, or raise subprocess.TimeoutExpired."""

    def interrupt(self) -> None:
        """End it: ask, wait for its clean-up, then insist."""


class Control(ABC):
    """The control node of one cluster.

    Parameters
    ----------
    lab
        Name of the lab on this machine whose control node it is; empty when it is a machine.
    """

    def __init__(self, profile: Profile, profile_path: Path, lab: str = "") -> None:
        self.profile = profile
        self.profile_path = profile_path
        self.lab = lab

    @abstractmethod
    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        on_stderr: Callable[[bytes], None],
    ) -> Running:
        """Start `argv` there; `stdin` None is no input, `stdout` None is this process's own output."""

    @abstractmethod
    def stream(self, argv: Sequence[str]) -> int:
        """Run `argv` there with this process's input and output; return its exit status."""

    @property
    def options(self) -> str:
        """Return what to add to a command so that it means this control node again."""
        return f" --lab {self.lab}" if self.lab else ""

    def run(
        self, argv: Sequence[str], *, input: str | None = None, stream: bool = False, timeout: float | None = None
    ) -> Completed:
        """Run `argv` on the control node; with `stream`, output goes straight to the terminal.

        Raises
        ------
        ControlError
            When it did not end within `timeout` seconds.
        """
        if stream:
            return Completed(self.stream(argv), "", "")
        errors = bytearray()
        running = self.start(argv, stdin=None if input is None else subprocess.PIPE, on_stderr=errors.extend)
        output: list[bytes] = []
        threads = [threading.Thread(target=lambda: output.append(running.stdout.read()), daemon=True)]
        if input is not None:
            threads.append(threading.Thread(target=_write, args=(running.stdin, input.encode()), daemon=True))
        for thread in threads:
            thread.start()
        try:
            code = _ended(running, timeout)
        except subprocess.TimeoutExpired as error:
            raise ControlError(f"{argv[0]} did not finish within {timeout:.0f} s") from error
        for thread in threads:
            thread.join()
        return Completed(code, _text(b"".join(output)), _text(bytes(errors)))

    def runner(
        self,
        function: str,
        arguments: dict[str, Any] | None = None,
        on_progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Run a Salt runner on the control node and return what it returned.

        Raises
        ------
        ControlError
            When the runner failed, with its own sentence.
        """
        argv = ["salt-run", "--out=json", "--log-level=error", function]
        argv += [f"{key}={json.dumps(value)}" for key, value in (arguments or {}).items() if value is not None]
        lines = ProgressLines(on_progress)
        running = self.start(argv, on_stderr=lines.feed)
        output: list[bytes] = []
        drain = threading.Thread(target=lambda: output.append(running.stdout.read()), daemon=True)
        drain.start()
        try:
            code = _ended(running, timeout)
        except subprocess.TimeoutExpired as error:
            raise ControlError(f"{function} did not finish within {timeout:.0f} s") from error
        drain.join()
        return _result(function, code, _text(b"".join(output)), lines.close())

    def fetch(self, remote_directory: str, local_directory: Path) -> None:
        """Copy a folder of the control node to `local_directory`, whole or not at all."""
        partial = local_directory.with_name(local_directory.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        errors = bytearray()
        running = self.start(["tar", "-C", remote_directory, "-cf", "-", "."], on_stderr=errors.extend)
        broken: tarfile.TarError | None = None
        try:
            with tarfile.open(fileobj=running.stdout, mode="r|") as archive:
                # Python before 3.11.4 has no filters; the archive is our own control node's.
                safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                archive.extractall(partial, **safe)  # noqa: S202 (filtered, where it can be)
            running.stdout.read()  # the padding after the last file
        except tarfile.TarError as error:
            broken = error
        except BaseException:
            running.interrupt()
            raise
        if running.wait() != 0 or broken:
            reason = _text(bytes(errors)).strip() or str(broken or "tar failed")
            raise ControlError(f"could not read {remote_directory} on the control node: {reason}")
        partial.rename(local_directory)


class ProgressLines:
    """Takes a runner's error output apart: progress reports, and what else it says."""

    def __init__(self, on_progress: Progress | None = None) -> None:
        self._on_progress = on_progress
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._stderr: list[str] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._take(line)

    def close(self) -> list[str]:
        """Return the lines that were no progress reports."""
        self._take(self._rest)
        self._rest = ""
        return self._stderr

    def _take(self, line: str) -> None:
        if line.startswith(PROGRESS_MARK):
            with suppress(ValueError):
                report = json.loads(line.removeprefix(PROGRESS_MARK))
                if self._on_progress:
                    self._on_progress(report)
        elif line.strip():
            self._stderr.append(line.rstrip())


def _ended(running: Running, timeout: float | None) -> int:
    """Return the exit status of a command, or end it with whatever ends the wait."""
    try:
        return running.wait(timeout)
    except ControlError:
        raise  # it has ended, and that is how
    except BaseException:
        running.interrupt()
        raise


def _write(stream: IO[bytes], data: bytes) -> None:
    # A command that does not read all of it is no failure of ours.
    with suppress(BrokenPipeError), stream:
        stream.write(data)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _result(function: str, returncode: int, output: str, lines: list[str]) -> Any:
    try:
        result = json.loads(output) if output.strip() else None
    except ValueError:
        result = output.strip()
    # Ours return data; a text is Salt's own complaint, which it ends with status 0 at times.
    if returncode == 0 and not isinstance(result, str):
        return result
    raise ControlError(_sentence(result, lines) or f"{function} ended with status {returncode}")


def _sentence(result: object, lines: list[str]) -> str:
    """Pick the reason out of what a failed runner printed."""
    text = result if isinstance(result, str) else "\n".join(lines)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line.split(": ", 1)[1] for line in lines if "CommandExecutionError: " in line]
    if reasons:
        return reasons[-1]
    lines = [line.removeprefix("Error running '").strip() for line in lines]
    return lines[-1] if lines else ""
