"""The tree of this laptop on the control node: compare, send, check, take it into use in one step."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.control_interface import ControlError
from remote.quoting import PYTHON, shell_text
from remote.session import RemoteError, Session
from remote.target import Target
from remote.tree import Difference, Manifest, check_tree, compare, digest, manifest, stage

_RELEASES = Path(__file__).with_name("releases.py")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Steps of a sync that has not begun.

    Attributes
    ----------
    release
        Name of the tree's content.
    current
        The one in use on the control node; None when there is none yet.
    difference
        What changes there.
    behind
        What changes for the master that runs there: more than that, when an earlier sync was cut off before it was
        restarted, or it was busy.
    """

    root: Path
    tree: Manifest
    release: str
    current: str | None
    difference: Difference
    behind: Difference


def plan(target: Target, root: Path, patterns: Sequence[str]) -> Plan:
    """Compare the tree here with the one in use there.

    Raises
    ------
    TreeError
        When the tree here cannot be sent.
    RemoteError
        When the control node cannot be asked.
    """
    check_tree(root)
    tree = manifest(root, patterns)
    there = _ask(target, "show")
    used, loaded = there["tree"], there["loaded"]
    behind = compare(tree, used if loaded is None else loaded)
    return Plan(root, tree, digest(tree), there["release"], compare(tree, used), behind)


def send(target: Target, planned: Plan, report: Report) -> None:
    """Carry a plan out: the tree in use there is the old one or the new one, never a part of each.

    Raises
    ------
    RemoteError
        When it could not be sent; what is in use there is as it was.
    """
    if shutil.which("rsync") is None:
        raise ControlError("rsync is not installed here", "apt-get install rsync, or: brew install rsync")
    with tempfile.TemporaryDirectory(prefix="cluster-sync-") as folder:
        stage(planned.root, planned.tree, Path(folder))
        report("preparing")
        partial = str(_ask(target, "begin", planned.release)["partial"])
        try:
            for again in (False, True):
                report("sending" if not again else "sending every file")
                _rsync(target, Path(folder), partial, again)
                if _ask(target, "check", planned.release)["tree"] == planned.tree:
                    break
            else:
                raise RemoteError(f"what arrived on {target.host} is not what was sent", "cluster doctor")
            report("taking it into use")
            _ask(target, "finish", planned.release)
        except BaseException:
            with suppress(ControlError):
                _ask(target, "abandon", planned.release)
            raise


def rsync_command(target: Target, folder: Path, destination: str, every_file: bool = False) -> list[str]:
    """Return rsync's command line, of flags that macOS's own rsync has too.

    It deletes only below `destination`, which is a tree that is not in use yet.
    """
    flags = ["-rlpt", "--delete", *(["-I"] if every_file else [])]
    sudo = ["--rsync-path", "sudo -n rsync"] if target.sudo else []
    shell = ["-e", shell_text(target.ssh())]
    return ["rsync", *flags, *sudo, *shell, f"{folder}/", f"{target.host}:{destination}/"]


def _rsync(target: Target, folder: Path, destination: str, every_file: bool) -> None:
    finished = subprocess.run(
        rsync_command(target, folder, destination, every_file),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        errors = finished.stderr.strip().splitlines()
        reason = next((line for line in errors if "not found" in line), errors[-1] if errors else "it said nothing")
        hint = f"cluster control init {target.host}" if "not found" in reason else "cluster doctor"
        raise RemoteError(f"rsync to {target.host} ended with status {finished.returncode}: {reason}", hint)


def _ask(target: Target, action: str, *arguments: str) -> Any:
    source = _RELEASES.read_text(encoding="utf-8")
    errors = bytearray()
    argv = [PYTHON, "-I", "-S", "-c", source, action, target.directory, *arguments]
    running = Session(target, argv, on_stderr=errors.extend)
    output = running.stdout.read()
    if running.wait() != 0:
        lines = errors.decode("utf-8", "replace").strip().splitlines() or ["it gave no reason"]
        raise ControlError(f"{target.host}: {lines[-1]}")
    return json.loads(output)
