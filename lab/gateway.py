"""Run the gateway of a lab: HAProxy on its control node, which ends with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from bottleneck.plan import gateway
from bottleneck.plan.master import ENGINE_KEY_FILE, STATE_DIRECTORY
from bottleneck.profile import Profile
from lab import salt_config
from lab.cgroups import Hierarchy
from lab.layout import CONTROL

LOG = "/var/log/cluster/gateway.log"
CONFIGURATION = gateway.DIRECTORY / gateway.CONFIGURATION
ABSENT = (
    "haproxy is not installed on this machine (sudo apt-get install haproxy): there is no gateway, ask the heads"
    " themselves (cluster endpoint)"
)


def is_installed() -> bool:
    """Return whether this machine has HAProxy, as every node of the lab then has."""
    return shutil.which("haproxy") is not None


def files(profile: Profile) -> salt_config.Files:
    """Return what it reads on the control node, path -> text and mode."""
    made = gateway.files(profile, f"{STATE_DIRECTORY}/{ENGINE_KEY_FILE}")
    return {str(path): (text, 0o644) for path, text in made.items()}


def start(enter: Callable[[Sequence[str]], list[str]]) -> None:
    """Start it, once the key of the API is there.

    Parameters
    ----------
    enter
        Returns the command line that runs a command on the control node.

    Raises
    ------
    LabError
        When it does not take its configuration.
    """
    folders = f"mkdir -p -m 700 {Path(gateway.SOCKET).parent} && mkdir -p {Path(LOG).parent}"
    check = f"haproxy -c -q -f {CONFIGURATION}"
    # Its first process is root until it has read the key and has its sockets.
    run = f"exec setsid --fork haproxy -db -f {CONFIGURATION} >> {LOG} 2>&1 < /dev/null"
    salt_config.start_daemon(enter(["sh", "-ec", f"{folders} && {check} && {run}"]))


def runs(hierarchy: Hierarchy, lab: str) -> bool:
    """Return whether it runs in a lab that is up."""
    for pid in hierarchy.processes(lab, CONTROL):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"haproxy") and str(CONFIGURATION).encode() in words:
            return True
    return False
