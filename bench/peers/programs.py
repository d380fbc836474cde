"""Install a program into an environment of its own, and run it with a deadline."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import venv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

INSTALL_SECONDS = 600.0
ASK_SECONDS = 120.0


class ProgramError(RuntimeError):
    """A program did not install or did not answer; it says command, exit status and the last of its output."""


@dataclass(frozen=True)
class Program:
    """A program in an environment of its own.

    Attributes
    ----------
    folder : Path
        The environment; also its home, so that it finds and leaves nothing elsewhere.
    name, version : str
        As on the package index.
    """

    folder: Path
    name: str
    version: str

    @property
    def installation(self) -> str:
        """The command that installs it, without where."""
        return f"pip install {self.name}=={self.version}"

    def install(self) -> None:
        """Make the environment, unless it stands from before.

        Raises
        ------
        ProgramError
            When pip fails.
        """
        if (self.folder / "bin" / self.name).exists():
            return
        venv.create(self.folder, with_pip=True, clear=True)
        pip = [str(self.folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"{self.name}=={self.version}"]
        _finish(pip, dict(os.environ), self.folder, INSTALL_SECONDS, self.installation)

    def run(self, *arguments: str, folder: Path | None = None) -> str:
        """Run it with arguments and return its standard output.

        Raises
        ------
        ProgramError
            When it fails or does not end in time.
        """
        # No proxy and no colours; nothing of this process's own settings.
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.folder),
            "NO_PROXY": "*",
            "NO_COLOR": "1",
            "COLUMNS": "120",
            "LC_ALL": "C.UTF-8",
        }
        command = [str(self.folder / "bin" / self.name), *arguments]
        shown = " ".join([self.name, *arguments])
        return _finish(command, environment, folder or self.folder, ASK_SECONDS, shown)


def run_ours(*arguments: str) -> str:
    """Run this repository's `cluster` command, by the interpreter and the working tree at hand.

    Raises
    ------
    ProgramError
        When it fails or does not end in time.
    """
    command = [sys.executable, "-c", "from cli.main import app; app(prog_name='cluster')", *arguments]
    root = Path(__file__).resolve().parents[2]
    return _finish(command, dict(os.environ), root, ASK_SECONDS, " ".join(["cluster", *arguments]))


def _finish(command: Sequence[str], environment: dict[str, str], folder: Path, deadline: float, shown: str) -> str:
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, error = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        raise ProgramError(f"`{_plain(shown)}` did not end within {deadline:.0f} s") from None
    finally:
        # Whatever it started goes with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        last = " / ".join((error.strip() or output.strip()).splitlines()[-3:])
        raise ProgramError(f"`{_plain(shown)}` ended with status {process.returncode}: {_plain(last)}")
    return output


def _plain(text: str) -> str:
    """Take out what is of one machine and one moment: folders and ports."""
    text = re.sub(r"(?<![\w:/])/(?:[\w.+-]+/)+", "", text)
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
