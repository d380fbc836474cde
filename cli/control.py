"""Commands on the control node: how the CLI reaches Salt.

The CLI never imports Salt. It runs `salt` and `salt-run` on the control node; for a
profile of kind `lab` that is a namespace on this machine.
"""

import json
import os
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bottleneck.profile import Profile, ProfileError, find_profile, load_profile
from cli import lab as lab_module
from cli.output import UNREACHABLE, USAGE, fail

PROGRESS_MARK = "@progress "
Progress = Callable[[dict[str, Any]], None]


class ControlError(Exception):
    """A command on the control node failed; the text is a sentence for the person."""


@dataclass(frozen=True)
class Completed:
    """What a finished command left: its exit status and its output as text."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Control:
    """The control node of one cluster."""

    profile: Profile
    profile_path: Path
    lab: str

    def command(self, argv: Sequence[str], node: str = "control") -> list[str]:
        """Return the local command line that runs `argv` on `node`."""
        return lab_module.command(self.lab, node, list(argv))

    def run(
        self, argv: Sequence[str], *, input: str | None = None, stream: bool = False, timeout: float | None = None
    ) -> Completed:
        """Run `argv` on the control node; with `stream`, output goes straight to the terminal."""
        capture = None if stream else subprocess.PIPE
        finished = subprocess.run(
            self.command(argv), input=input, stdout=capture, stderr=capture, text=True, timeout=timeout, check=False
        )
        return Completed(finished.returncode, finished.stdout or "", finished.stderr or "")

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
        # Its own session, so that Ctrl-C reaches it once, from us, and it can clean up.
        process = subprocess.Popen(
            self.command(argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        said: list[str] = []
        assert process.stdout and process.stderr
        reader = threading.Thread(target=_read_progress, args=(process.stderr, said, on_progress), daemon=True)
        reader.start()
        output: list[str] = []
        drain = threading.Thread(target=lambda stdout: output.append(stdout.read()), args=(process.stdout,))
        drain.start()
        try:
            process.wait(timeout)
        except BaseException as error:
            _interrupt(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ControlError(f"{function} did not finish within {timeout:.0f} s") from error
            raise
        drain.join()
        reader.join()
        return _result(function, process.returncode, output[0] if output else "", said)

    def fetch(self, remote_directory: str, local_directory: Path) -> None:
        """Copy a folder of the control node to `local_directory`, whole or not at all."""
        partial = local_directory.with_name(local_directory.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            self.command(["tar", "-C", remote_directory, "-cf", "-", "."]), stdout=subprocess.PIPE
        )
        assert process.stdout
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            # Python before 3.11.4 has no filters; the archive is our own control node's.
            safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(partial, **safe)  # noqa: S202
        if process.wait() != 0:
            raise ControlError(f"could not read {remote_directory} on the control node")
        partial.rename(local_directory)


def connect(profile: str, lab: str) -> Control:
    """Return the control node of `profile`, or end the command with what to do first."""
    try:
        path = find_profile(profile)
        loaded = load_profile(path)
    except ProfileError as error:
        fail(str(error), f"cluster profile check {profile}", USAGE)
    if loaded.kind != "lab":
        fail(
            f"profile {loaded.name} describes hardware; this version drives the lab on this machine only",
            "cluster profile list",
            USAGE,
        )
    if os.geteuid() != 0:
        fail("the lab is made of namespaces, which needs root", "sudo -E cluster ...", UNREACHABLE)
    state = lab_module.status(lab)
    if not state.get("up"):
        fail(f"lab {lab} is not up", f"cluster lab up {lab}", UNREACHABLE)
    return Control(loaded, path, lab)


def runs_directory() -> Path:
    """Return the folder that holds this laptop's runs."""
    return Path(os.environ.get("CLUSTER_RUNS", "runs")).absolute()


def _read_progress(stream: IO[str], said: list[str], on_progress: Progress | None) -> None:
    for line in stream:
        if line.startswith(PROGRESS_MARK):
            try:
                report = json.loads(line.removeprefix(PROGRESS_MARK))
            except ValueError:
                continue
            if on_progress:
                on_progress(report)
        elif line.strip():
            said.append(line.rstrip())


def _interrupt(process: "subprocess.Popen[str]") -> None:
    """End the remote command: ask, wait for its clean-up, then insist."""
    for number, patience in ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _result(function: str, returncode: int, output: str, said: list[str]) -> Any:
    try:
        result = json.loads(output) if output.strip() else None
    except ValueError:
        result = output.strip()
    # Ours return data; a text is Salt's own complaint, which it ends with status 0 at times.
    if returncode == 0 and not isinstance(result, str):
        return result
    raise ControlError(_sentence(result, said) or f"{function} ended with status {returncode}")


def _sentence(result: Any, said: list[str]) -> str:
    """Pick the reason out of what a failed runner printed."""
    text = result if isinstance(result, str) else "\n".join(said)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line.split(": ", 1)[1] for line in lines if "CommandExecutionError: " in line]
    if reasons:
        return reasons[-1]
    lines = [line.removeprefix("Error running '").strip() for line in lines]
    return lines[-1] if lines else ""
