"""A control node reached over ssh."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from bottleneck.profile import Profile
from remote.control_interface import Control
from remote.session import Session, terminations_raised
from remote.target import Target


class RemoteControl(Control):
    """The control node of a hardware profile.

    Parameters
    ----------
    target
        How ssh gets there.
    """

    def __init__(self, profile: Profile, profile_path: Path, target: Target) -> None:
        super().__init__(profile, profile_path)
        self.target = target

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        on_stderr: Callable[[bytes], None],
    ) -> Session:
        """Start `argv` on the control node."""
        return Session(self.target, list(argv), stdin=stdin, stdout=stdout, on_stderr=on_stderr)

    def stream(self, argv: Sequence[str]) -> int:
        """Run `argv` with this process's input and output; Ctrl-C goes to it."""
        return stream(self.target, argv)


def stream(target: Target, argv: Sequence[str]) -> int:
    """Run `argv` there with this process's input and output; return its exit status."""
    with terminations_raised():
        running = Session(target, list(argv), stdin=0, stdout=None, on_stderr=_to_stderr)
        try:
            return running.follow()
        except BaseException:
            running.interrupt()
            raise


def _to_stderr(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
