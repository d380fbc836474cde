"""The control nodes on this machine: a lab's, and this machine itself."""

import os
import signal
import subprocess
import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import IO

import lab as lab_module
from remote.control_interface import Control


class LocalProcess:
    """A command of this machine, in a session of its own so that Ctrl-C reaches it once, from us."""

    def __init__(
        self,
        command: list[str],
        stdin: int | IO[bytes] | None,
        stdout: int | IO[bytes] | None,
        on_stderr: Callable[[bytes], None],
    ) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._pump = threading.Thread(target=self._read_errors, args=(on_stderr,), daemon=True)
        self._pump.start()

    @property
    def stdin(self) -> IO[bytes]:
        """Its input, when that is a pipe."""
        assert self.process.stdin
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Its output, when that is a pipe."""
        assert self.process.stdout
        return self.process.stdout

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status; 128 and the signal's number when one ended it."""
        code = self.process.wait(timeout)
        self._pump.join()
        return 128 - code if code < 0 else code

    def interrupt(self) -> None:
        """End it: ask, wait for its clean-up, then insist."""
        for number, patience in ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            if self.process.poll() is not None:
                return
            os.killpg(self.process.pid, number)
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                continue

    def _read_errors(self, on_stderr: Callable[[bytes], None]) -> None:
        assert self.process.stderr
        descriptor = self.process.stderr.fileno()
        while data := os.read(descriptor, 65536):
            on_stderr(data)


class LocalControl(Control):
    """A control node whose commands are commands of this machine."""

    @abstractmethod
    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line, for this machine, that runs `argv` on the control node."""

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        on_stderr: Callable[[bytes], None],
    ) -> LocalProcess:
        """Start `argv` on the control node."""
        return LocalProcess(self.command(argv), stdin, stdout, on_stderr)

    def stream(self, argv: Sequence[str]) -> int:
        """Run `argv` in the terminal's own process group: Ctrl-C reaches it by itself."""
        code = subprocess.run(self.command(argv), check=False).returncode
        return 128 - code if code < 0 else code


class LabControl(LocalControl):
    """The control node of a lab: namespaces on this machine."""

    def command(self, argv: Sequence[str], node: str = "control") -> list[str]:
        """Return the command line that runs `argv` on `node` of the lab."""
        return lab_module.command(self.lab, node, list(argv))


class HereControl(LocalControl):
    """This machine is the control node."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return `argv` with the environment's own programs first."""
        path = f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}"
        return ["env", f"PATH={path}", *argv]
