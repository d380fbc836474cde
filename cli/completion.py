"""Names for the shell's completion, from this laptop alone: completing never asks another machine.

Node names are noted whenever a command loads a profile; runs are the folders that are here.
"""

import json
from contextlib import suppress
from pathlib import Path

from bottleneck import atomic_files
from bottleneck.profile.types import Profile
from cli import config

_FILE = "nodes.json"


def remember_nodes(profile: Profile) -> None:
    """Note the profile's nodes; what cannot be written is no failure of the command."""
    known = _read()
    names = list(profile.nodes)
    if known.get(profile.name) == names:
        return
    with suppress(OSError):
        folder = config.cache_directory()
        folder.mkdir(parents=True, exist_ok=True)
        atomic_files.replace_json(folder / _FILE, {**known, profile.name: names}, mode=0o600)


def node_names(incomplete: str) -> list[str]:
    """Return the nodes that begin so: those of the profiles that were used from here."""
    names = {name for names in _read().values() for name in names}
    return sorted(name for name in names if name.startswith(incomplete))


def run_names(incomplete: str) -> list[str]:
    """Return the recorded runs that begin so, the newest first."""
    try:
        folder = Path(str(config.get("runs")))
        names = [path.name for path in folder.iterdir() if path.is_dir() and path.suffix != ".partial"]
    except (OSError, config.ConfigError):
        return []
    return sorted((name for name in names if name.startswith(incomplete)), reverse=True)


def _read() -> dict[str, list[str]]:
    try:
        found = json.loads((config.cache_directory() / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(key): [str(name) for name in names] for key, names in found.items() if isinstance(names, list)}
