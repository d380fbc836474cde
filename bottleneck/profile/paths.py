"""Find things: profiles and lock files in the repository, engines and models on the nodes.

A directory on a node carries the digest of what determines its content, so that it is
made once, never changed, and a node that is behind is seen to be.
"""

import difflib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from bottleneck.profile.yaml_lines import Problem, ProfileError

CACHE_DIRECTORY = "/var/cache/cluster"
ENGINE_MAP = "engines.yaml"
ENGINE_INTERFACES = "engine_interfaces.yaml"
_NO_PROFILES = (ENGINE_MAP, ENGINE_INTERFACES)
_DIGEST_CHARACTERS = 12


def repository_directory() -> Path:
    """Return the folder that holds `profiles/` and `salt/`."""
    return Path(__file__).resolve().parents[2]


def commit() -> str | None:
    """Return the repository's commit, `-dirty` when files differ from it; None when it is no git repository."""
    repository = repository_directory()
    # The owner of the files may be another user than the one who asks.
    git = ["git", "-c", f"safe.directory={repository}", "-C", str(repository)]

    def ask(*arguments: str) -> str:
        finished = subprocess.run([*git, *arguments], capture_output=True, text=True, timeout=10, check=True)
        return finished.stdout.strip()

    try:
        return ask("rev-parse", "HEAD") + ("-dirty" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def profiles_directory() -> Path:
    """Return the folder of profiles: CLUSTER_PROFILES_DIR, or the repository's."""
    configured = os.environ.get("CLUSTER_PROFILES_DIR")
    return Path(configured) if configured else repository_directory() / "profiles"


def list_profiles() -> list[Path]:
    """Return every profile in the folder of profiles, in the order of their names."""
    folder = profiles_directory()
    return sorted(
        path
        for path in folder.rglob("*.yaml")
        # What ends in .local.yaml is laid over a profile and is none (`overlay`).
        if path.name not in _NO_PROFILES and not path.name.endswith(".local.yaml") and path.is_file()
    )


def profile_name(path: Path) -> str:
    """Return the name by which `find_profile` finds a file: its path without folder and ending.

    Parameters
    ----------
    path : Path
        File of a profile; outside the folder of profiles its name is the path itself.
    """
    try:
        return path.relative_to(profiles_directory()).with_suffix("").as_posix()
    except ValueError:
        return str(path)


def find_profile(name_or_path: str) -> Path:
    """Return the file of a profile.

    Parameters
    ----------
    name_or_path
        A file; a name such as ``embedded`` or ``arc-a770/v0.1``; or a folder of versions
        such as ``arc-a770``, which means its latest.

    Raises
    ------
    ProfileError
        When there is none, with the names there are.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    folder = profiles_directory()
    # Not with_suffix: it would take the ".1" of "v0.1" for one.
    named = folder / f"{name_or_path}.yaml"
    if name_or_path and named.is_file() and named.name not in _NO_PROFILES:
        return named
    versions = [file for file in list_profiles() if name_or_path and file.parent == folder / name_or_path]
    if versions:
        return max(versions, key=_version_order)
    known = [profile_name(file) for file in list_profiles()]
    near = difflib.get_close_matches(name_or_path, known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    names = ", ".join(known) or "nothing there"
    raise ProfileError(
        name_or_path, [Problem((), f"no such profile{hint}; expected a file or one of {folder}: {names}")]
    )


def _version_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem) if part]


def find_engine_map(profile: Path) -> Path:
    """Return the engine map beside a profile, above it, or in the folder of profiles.

    A profile that was copied into a run's folder has none beside it.

    Parameters
    ----------
    profile : Path
        File of the profile.

    Raises
    ------
    ProfileError
        When there is none in any of these places.
    """
    folder = profile.resolve().parent
    for candidate in (folder, folder.parent, profiles_directory(), repository_directory() / "profiles"):
        if (candidate / ENGINE_MAP).is_file():
            return candidate / ENGINE_MAP
    raise ProfileError(folder / ENGINE_MAP, [Problem((), "no such file; expected the engine map beside the profile")])


def find_engine_interfaces(engine_map: Path) -> Path:
    """Return the engines' interfaces beside an engine map, or the repository's.

    Parameters
    ----------
    engine_map : Path
        File of the engine map.
    """
    beside = engine_map.with_name(ENGINE_INTERFACES)
    return beside if beside.is_file() else repository_directory() / "profiles" / ENGINE_INTERFACES


def lock_file(name: str) -> Path:
    """Return where the lock file of an engine is in the repository.

    Parameters
    ----------
    name : str
        Name of the file, without a folder.
    """
    return repository_directory() / "salt" / "engine" / "files" / name


def content_directory(collection: str, name: str, content: Mapping[str, object]) -> str:
    """Return the directory of an engine's environment or a model's checkpoint on every node.

    Parameters
    ----------
    collection : str
        The folder of its kind: ``engines`` or ``models``.
    name : str
        Name for people, which the digest of the content follows.
    content : Mapping[str, Any]
        What determines what is in it; JSON-able.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{CACHE_DIRECTORY}/{collection}/{name}-{digest}"
