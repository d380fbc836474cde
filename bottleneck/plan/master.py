"""Settings of the Salt master, be it a lab's or a control node's: each adds where it keeps its own files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from bottleneck.profile import Profile

STATE_DIRECTORY = "/var/lib/cluster"
# The key of the engines' API, below that directory.
ENGINE_KEY_FILE = "secrets/engine-api.key"


def master_settings(profile: Profile, profile_path: str, tree: Path) -> dict[str, Any]:
    """Return the settings that every master has.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    profile_path : str
        Where the profile is on the master's machine.
    tree : Path
        Where the project's files are there.
    """
    return {
        "user": "root",
        "interface": str(profile.control.address),
        # A key is placed or accepted by the node's identity, and never because it was offered.
        "auto_accept": False,
        "open_mode": False,
        "enable_fqdns_grains": False,
        "timeout": 10,
        "log_level": "warning",
        "log_level_logfile": "info",
        "file_roots": {"base": [f"{tree}/salt"]},
        "pillar_roots": {"base": [f"{tree}/pillar"]},
        "module_dirs": [str(tree)],
        "cluster_profile": profile_path,
        "cluster_directory": STATE_DIRECTORY,
        "cluster_store": f"{STATE_DIRECTORY}/store.db",
        "reactor": reactor_entries(tree),
        # Every refresh loads the runners again, about a second of CPU; 60 s is Salt's default.
        "reactor_refresh_interval": 86400,
        # The runner that the reactor starts for each window is on record in the store; another record in the job
        # cache would cost 30 ms of CPU a window, and 5760 folders a day. `salt-run`'s own jobs are kept.
        "runnerclient_returns": False,
        "engines": [{"telemetry": {}}],
    }


def reactor_entries(tree: Path) -> list[dict[str, list[str]]]:
    """Return the reactors of reactor/reactor.conf, their file names made whole.

    Parameters
    ----------
    tree : Path
        Folder of the repository on the control node.

    Returns
    -------
    list[dict[str, list[str]]]
        One mapping for each entry, event tag -> absolute paths of SLS files, in the order of the file.

    Raises
    ------
    OSError
        When the file cannot be read.
    """
    folder = tree / "reactor"
    entries = yaml.safe_load((folder / "reactor.conf").read_text(encoding="utf-8"))["reactor"]
    return [{tag: [str(folder / name) for name in names] for tag, names in entry.items()} for entry in entries]
