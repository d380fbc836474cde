"""One command on the control node, from its start to its exit status."""

import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from remote.control_interface import ControlError
from remote.exit_codes import UNREACHABLE
from remote.quoting import shell_text, supervised
from remote.target import Target, socket_directory

SSH_FAILED = 255
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
# A signal takes a second channel of the same connection; this is how long that may take.
SIGNAL_TIMEOUT_SECONDS = 10.0
STALE_SECONDS = 86400.0


class RemoteError(ControlError):
    """The control node could not be reached or asked."""

    def __init__(self, message: str, next_command: str | None = None) -> None:
        super().__init__(message, next_command, UNREACHABLE)


class ConnectionLostError(RemoteError):
    """The connection ended while a command ran."""


class MarkFilter:
    """Takes the supervisor's lines out of a stream of bytes, wherever they stand.

    Parameters
    ----------
    mark
        What begins each of them; nothing else contains it.
    give
        Called with the bytes of everything else, as soon as it cannot be part of such a line.
    """

    def __init__(self, mark: str, give: Callable[[bytes], None]) -> None:
        self._mark, self._give = mark.encode(), give
        self._pending = b""
        self.pid: int | None = None
        self.status: int | None = None
        self.started = threading.Event()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._pending += data
        while True:
            before, found, after = self._pending.partition(self._mark)
            if not found:
                break
            line, newline, rest = after.partition(b"\n")
            if not newline:
                self._pass_on(before)
                self._pending = found + after
                return
            self._pass_on(before)
            self._note(line)
            self._pending = rest
        keep = next((n for n in range(len(self._mark) - 1, 0, -1) if self._pending.endswith(self._mark[:n])), 0)
        cut = len(self._pending) - keep
        self._pass_on(self._pending[:cut])
        self._pending = self._pending[cut:]

    def close(self) -> None:
        """The stream has ended: pass on what was held back."""
        self._pass_on(self._pending)
        self._pending = b""

    def _note(self, line: bytes) -> None:
        word, _, number = line.decode("ascii", "replace").strip().partition(" ")
        with suppress(ValueError):
            if word == "pid":
                self.pid = int(number)
                self.started.set()
            elif word == "exit":
                self.status = int(number)

    def _pass_on(self, data: bytes) -> None:
        if data:
            self._give(data)


class Session:
    """A command under way on the control node.

    Parameters
    ----------
    stdin
        What the command reads: a descriptor or stream, `subprocess.PIPE`, or None for nothing. Either way
        the remote command ends when this process ends, however it does.
    stdout
        Where its output goes; None is this process's own.
    on_stderr
        Called with each piece of its error output.
    """

    def __init__(
        self,
        target: Target,
        argv: list[str],
        *,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        on_stderr: Callable[[bytes], None],
    ) -> None:
        self._target = target
        mark = f"\x1e{secrets.token_hex(16)}"
        self._filter = MarkFilter(mark, on_stderr)
        text = supervised(argv, mark=mark, lifeline=stdin is None, path=target.programs, sudo=target.sudo)
        # What ssh itself has to say goes to a file, apart from what the command says.
        folder = socket_directory()
        _sweep(folder)
        self._log = folder / f"log-{mark[1:]}"
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we pass it on.
        self.process = subprocess.Popen(
            [*target.ssh(), "-T", "-E", str(self._log), target.host, text],
            stdin=subprocess.PIPE if stdin is None else stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        # Where the command reads our input, ssh's input cannot tell it that we are gone.
        self._watch = None if stdin is None else _ended_with_us(self.process.pid)
        self._pump = threading.Thread(target=self._read_errors, daemon=True)
        self._pump.start()

    @property
    def stdout(self) -> IO[bytes]:
        """The command's output, when it was asked for as a pipe."""
        assert self.process.stdout
        return self.process.stdout

    @property
    def stdin(self) -> IO[bytes]:
        """The command's input, when it was asked for as a pipe."""
        assert self.process.stdin
        return self.process.stdin

    def wait(self, timeout: float | None = None) -> int:
        """Return the command's own exit status; 128 and the signal's number when one ended it.

        Raises
        ------
        subprocess.TimeoutExpired
            When it runs on.
        RemoteError
            When it could not be started there.
        ConnectionLostError
            When the connection ended first.
        """
        code = self.process.wait(timeout)
        self._unwatch()
        # ssh's background process may hold the stream open; the last line of ours ends it too.
        self._pump.join(1.0 if self._filter.status is not None else 5.0)
        log = self._log_text()
        if self._filter.status is not None:
            return self._filter.status
        raise _failure(self._target, code, log, started=self._filter.pid is not None)

    def signal(self, number: int) -> None:
        """Send a signal to the command and everything in its process group."""
        deadline = time.monotonic() + SIGNAL_TIMEOUT_SECONDS
        # It may have been sent off and not have said yet under which number it runs.
        while self.process.poll() is None and time.monotonic() < deadline and not self._filter.started.wait(0.05):
            pass
        if self._filter.pid is None or self.process.poll() is not None:
            self.process.kill()
            return
        kill = [*(["sudo", "-n", "--"] if self._target.sudo else []), "kill", f"-{int(number)}", str(self._filter.pid)]
        try:
            subprocess.run(
                [*self._target.ssh(), "-T", self._target.host, shell_text(kill)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SIGNAL_TIMEOUT_SECONDS,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            self.process.kill()

    def interrupt(self) -> None:
        """End the command: ask, wait for its clean-up, then insist; at last let the supervisor do it."""
        for number, patience in zip(INTERRUPTS, (20.0, 5.0, 5.0), strict=True):
            if self.process.poll() is not None:
                break
            self.signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        # Closing the connection's channel has the supervisor end what is left.
        self.process.kill()
        self.process.wait()
        self._unwatch()
        self._log_text()

    def follow(self) -> int:
        """Wait; Ctrl-C goes to the command, and the third one gives up on it."""
        for number in (*INTERRUPTS, None):
            try:
                return self.wait()
            except KeyboardInterrupt:
                if number is None:
                    break
                self.signal(number)
        self.interrupt()
        return 128 + signal.SIGINT

    def _read_errors(self) -> None:
        assert self.process.stderr
        descriptor = self.process.stderr.fileno()
        while data := os.read(descriptor, 65536):
            self._filter.feed(data)
        self._filter.close()

    def _unwatch(self) -> None:
        """End the watch over ssh, which has ended: its number may soon be another process's."""
        if self._watch:
            self._watch.kill()
            self._watch.wait()
            self._watch = None

    def _log_text(self) -> str:
        """Return what ssh itself said, and remove it."""
        try:
            return self._log.read_text(errors="replace").strip()
        except OSError:
            return ""
        finally:
            self._log.unlink(missing_ok=True)


@contextmanager
def terminations_raised() -> Iterator[None]:
    """Make SIGTERM and SIGHUP exceptions, so that the remote command is ended with us."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended_with_us(pid: int) -> subprocess.Popen[bytes]:
    """Have a process ended as soon as this one is gone, were it by SIGKILL.

    A shell waits on a pipe of which this process alone has the other end; Linux could do it in the kernel
    (PR_SET_PDEATHSIG), macOS cannot.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill "$1"', "sh", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _sweep(folder: Path) -> None:
    """Remove the logs that killed processes left."""
    for path in folder.glob("log-*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - STALE_SECONDS:
                path.unlink()


def _failure(target: Target, code: int, log: str, started: bool) -> RemoteError:
    """Return what to tell the person when ssh ended without the command's status."""
    host = target.host
    last = log.splitlines()[-1].strip() if log else ""
    if started:
        return ConnectionLostError(
            f"the connection to {host} was lost{f' ({last})' if last else ''}; what this command ran there is "
            "ended as by Ctrl-C, as soon as that machine sees it too",
            "cluster status",
        )
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in log:
        return RemoteError(
            f"{host} has another host key than the one that was trusted: it was installed anew, "
            "or another machine answers in its place",
            "cluster control trust --replace, after you have compared the fingerprint on the machine itself",
        )
    if "Host key verification failed" in log:
        return RemoteError(f"the host key of {host} is not known yet", f"cluster control trust {shell_text([host])}")
    if "Permission denied" in log:
        return RemoteError(f"{host} does not let you in: {last}", f"ssh-copy-id {shell_text([host])}")
    if code == SSH_FAILED:
        return RemoteError(f"cannot reach {host}: {last or 'ssh said nothing'}", "cluster doctor")
    if code in (126, 127):
        return RemoteError(f"{host} has no /usr/bin/python3", f"cluster control init {shell_text([host])}")
    return RemoteError(
        f"{host} did not start the command: ssh ended with status {code}{f' ({last})' if last else ''}; "
        "expected a login shell that takes a POSIX command line"
        + (", and sudo that asks for no password" if target.sudo else ""),
        "cluster doctor",
    )
