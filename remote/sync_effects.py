"""Work out what a sync means for what already runs on the control node: its master, its states, its nodes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.control_interface import ControlError
from remote.quoting import PYTHON
from remote.session import Session
from remote.target import Target
from remote.tree import Difference

_MASTER_RELOAD = Path(__file__).with_name("master_reload.py")
PROFILE_CHANGED = "cluster/profile/changed"
# What a running master has loaded: its engines, the runners that its reactor calls, what those import, the profile.
# States, pillar, reactor and the nodes' modules are read anew at each use.
LOADED = ("_engines/", "_runners/", "bottleneck/", "control/", "netboot/", "profiles/")
# What only the control node's own states bring into use.
ITS_STATES = ("pyproject.toml", "requirements.lock", "setup/", "profiles/", "reactor/reactor.conf", "salt/control/")


@dataclass(frozen=True)
class Consequences:
    """Steps that have to follow a sync.

    Attributes
    ----------
    restart
        Whether the master has old code or an old profile in memory.
    profile
        Whether a profile changed, so that nodes may be due to be reprovisioned.
    init
        Whether the control node's own states have to be applied again.
    """

    restart: bool
    profile: bool
    init: bool


def consequences(difference: Difference, behind: Difference) -> Consequences:
    """Return what has to follow when the tree in use changes so, and what the master has in memory changes so."""
    return Consequences(
        restart=any(path.startswith(LOADED) for path in behind.paths),
        profile=any(path.startswith("profiles/") for path in behind.paths),
        init=any(path.startswith(ITS_STATES) for path in difference.paths),
    )


def take_up(target: Target, needed: Consequences) -> dict[str, Any]:
    """Have the master that runs there take the tree in use up.

    Returns
    -------
    dict
        `master`: `restarted`, `untouched`, `absent`, `busy` or `failed`; `reason`; `event`: whether it was told that a
        profile changed.
    """
    if not needed.restart and not needed.profile:
        return {"master": "untouched", "reason": "", "event": False}
    source = _MASTER_RELOAD.read_text(encoding="utf-8")
    tag = PROFILE_CHANGED if needed.profile else ""
    errors = bytearray()
    argv = [PYTHON, "-I", "-S", "-c", source, target.directory, "1" if needed.restart else "0", tag]
    running = Session(target, argv, on_stderr=errors.extend)
    output = running.stdout.read()
    if running.wait() != 0:
        lines = errors.decode("utf-8", "replace").strip().splitlines() or ["it gave no reason"]
        raise ControlError(f"{target.host}: the tree is in use; its master could not be asked: {lines[-1]}")
    found: dict[str, Any] = json.loads(output)
    return found
