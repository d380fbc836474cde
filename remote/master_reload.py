"""Has the running master of the control node take a new tree up: sent over ssh as text, needs only Debian's python3.

    python3 -I -S -c TAKEUP DIRECTORY RESTART EVENT

    RESTART   1: restart the cluster's own master, unless something runs that this would cut off
    EVENT     a tag to fire on its bus, or nothing

Prints one JSON document: `master` is `restarted`, `untouched`, `absent` (none of ours runs here), `busy` or `failed`,
`reason` says why, and `event` whether it was fired. A master that does not come up again is left as systemd has it.
"""

import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path

UNIT = "salt-master.service"
CONFIGURATION = Path("/etc/salt/master")
# A start takes about 10 s on a small machine; systemd gives up after 120 s by itself.
RESTART_TIMEOUT_SECONDS = 150
EVENT_TIMEOUT_SECONDS = 60
# What holds a lock of the cluster's directory (`control/locks.py`, `control/reprovisioning.py`) -> how that is said.
LOCKS = {
    "reprovision.lock": "nodes are being reprovisioned",
    "deployment.lock": "workers are being started or stopped",
    "bench.lock": "a bench is running",
}


def run(argv: list[str], seconds: int = 20) -> tuple[int, str, str]:
    """Run a program; return its status, what it said, and what it complained of."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, "", str(error)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def is_ours(directory: Path) -> bool:
    """Tell whether the unit runs, and runs the master of our own environment."""
    code, output, _ = run(["systemctl", "show", "--property=ActiveState", "--property=ExecStart", UNIT])
    return code == 0 and "ActiveState=active" in output and f"path={directory}/venv/bin/salt-master " in output


def obstacle() -> str:
    """Say what runs under the master that its restart would cut off; nothing when nothing does."""
    try:
        text = CONFIGURATION.read_text()
    except OSError as error:
        return f"{CONFIGURATION}: {error.strerror}"
    found = re.search(r"^cluster_directory: *(\S+)", text, re.MULTILINE)
    if not found:
        return ""
    folder = Path(found.group(1).strip("'\""))
    return next((reason for name, reason in LOCKS.items() if is_locked(folder / name)), "")


def is_locked(lock: Path) -> bool:
    """Tell whether a process holds a lock."""
    if not lock.exists():
        return False
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def began_with_it(directory: Path) -> bool:
    """Tell whether the running master began with the tree in use; its unit keeps that as a link."""
    loaded, used = (directory / name for name in ("loaded", "src"))
    return loaded.is_symlink() and loaded.readlink() == used.readlink()


def restart(directory: Path) -> tuple[str, str]:
    """Restart the master if that is needed and safe; return what became of it, and why."""
    if not is_ours(directory):
        return "absent", f"{UNIT} does not run {directory}/venv/bin/salt-master"
    if began_with_it(directory):
        return "untouched", ""
    reason = obstacle()
    if reason:
        return "busy", reason
    # The unit has started when the master listens, so this returns when it does, or when it will not.
    code, output, complained = run(["systemctl", "restart", UNIT], RESTART_TIMEOUT_SECONDS)
    if code or not is_ours(directory):
        lines = [*output.splitlines(), *complained.splitlines()] or [f"status {code}"]
        return "failed", lines[-1]
    return "restarted", ""


def fire(directory: Path, tag: str) -> bool:
    """Fire an event without data on the master's bus."""
    argv = [f"{directory}/venv/bin/salt-run", "--out=json", "--log-level=error", "event.send", tag]
    # On its error output Salt has more to say than errors.
    code, output, _ = run(argv, EVENT_TIMEOUT_SECONDS)
    return code == 0 and output.splitlines()[-1:] == ["true"]


def main() -> None:
    """Do what was asked."""
    directory, wanted, tag = Path(sys.argv[1]), sys.argv[2] == "1", sys.argv[3]
    master, reason = restart(directory) if wanted else ("untouched", "")
    fired = bool(tag) and master in ("restarted", "untouched") and is_ours(directory) and fire(directory, tag)
    json.dump({"master": master, "reason": reason, "event": fired}, sys.stdout)


if __name__ == "__main__":
    main()
