"""From a fresh Debian machine to a control node: what it needs first, the tree, then its states."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from remote import sync
from remote.control_interface import ControlError, ProgressLines
from remote.quoting import shell_text
from remote.session import ConnectionLostError, RemoteError, Session
from remote.target import Target

Report = Callable[[str], None]
# What the tree, its environment and the supervisor of our commands need; the rest is a state.
FIRST_PACKAGES = ("ca-certificates", "g++", "python3", "python3-dev", "python3-venv", "rsync")
FIRST_TIMEOUT_SECONDS = 900.0
_FIRST = """
set -eu
. /etc/os-release
case "$ID" in debian) ;; *) echo "it runs $PRETTY_NAME; expected Debian 12 or later" >&2; exit 3 ;; esac
[ "${VERSION_ID:-99}" -ge 12 ] || { echo "it runs $PRETTY_NAME; expected Debian 12 or later" >&2; exit 3; }
missing=
for package in "$@"; do
  dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
apt-get install -y -q --no-install-recommends $missing >/dev/null
echo $missing
"""


def first_packages(target: Target) -> list[str]:
    """Install what everything else stands on; return what was missing. Needs nothing there but a shell.

    Raises
    ------
    RemoteError
        When it is no Debian, or the packages cannot be had.
    """
    words = ["sh", "-c", _FIRST, "sh", *FIRST_PACKAGES]
    argv = [*(["sudo", "-n", "--"] if target.sudo else []), *words]
    try:
        finished = subprocess.run(
            [*target.ssh(), "-T", target.host, shell_text(argv)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FIRST_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RemoteError(f"{target.host} did not install its packages in {FIRST_TIMEOUT_SECONDS:.0f} s") from None
    if finished.returncode:
        reasons = finished.stderr.strip().splitlines() or ["it gave no reason"]
        raise RemoteError(f"{target.host}: {reasons[-1]}", f"cluster control cmd -- apt-get update  (on {target.host})")
    return finished.stdout.split()


def send_tree(target: Target, root: Path, patterns: Sequence[str], report: Report) -> sync.Plan:
    """Bring the tree there up to date; return what that took."""
    planned = sync.plan(target, root, patterns)
    if planned.release != planned.current or planned.difference.count:
        sync.send(target, planned, report)
    return planned


def apply_states(target: Target, profile: str, test: bool, report: Report) -> dict[str, Any]:
    """Apply the control node's own states; return what changed and what failed.

    Raises
    ------
    ControlError
        When they could not be applied at all.
    """
    lines = ProgressLines(lambda seen: report(f"{seen.get('stage', '')}: {seen.get('detail', '')}"))
    argv = [f"{target.tree}/setup/control-node", profile, *(["test"] if test else [])]
    running = Session(target, argv, on_stderr=lines.feed)
    try:
        output = running.stdout.read()
        code = running.wait()
    except ConnectionLostError as error:
        # Nothing is half done that doing it again does not finish.
        raise ConnectionLostError(str(error), f"cluster control init {shell_text([target.host])}") from None
    except ControlError:
        raise
    except BaseException:
        running.interrupt()
        raise
    reasons = lines.close()
    try:
        returned = json.loads(output)["local"]
    except (ValueError, KeyError):
        returned = None
    if not isinstance(returned, dict):
        reason = returned[0] if isinstance(returned, list) and returned else (reasons or [f"status {code}"])[-1]
        raise ControlError(f"the control node's states could not be applied: {reason}", "cluster control shell")
    return summary(returned)


def summary(returned: dict[str, Any]) -> dict[str, Any]:
    """Return what an apply did: how many states, which changed, which failed."""
    states = [{"id": key.split("_|-")[1], **state} for key, state in returned.items()]
    return {
        "states": len(states),
        "changed": [
            {"name": state["id"], "comment": state.get("comment", "")}
            for state in states
            if state.get("changes") and state["result"] is not False
        ],
        "failed": [
            {"id": state["id"], "comment": state.get("comment", "")} for state in states if state["result"] is False
        ],
    }
