"""Keep what is known of the machines at hand only: a file beside a profile that is laid over it.

``arc-a770/v0.1.local.yaml`` holds what ``arc-a770/v0.1.yaml`` leaves open, such as MAC
addresses. The versioned file stays as it is, and the local one stays out of git.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from bottleneck import atomic_files
from bottleneck.profile.value_types import MacAddress
from bottleneck.profile.yaml_lines import Document, Location, Problem, ProfileError, read

ENDING = ".local.yaml"
_HEADER = "# Laid over {name}: what is known of these machines only. Kept out of git.\n"


def overlay_path(profile: Path) -> Path:
    """Return where the overlay of a profile's file is, whether or not it is there.

    Parameters
    ----------
    profile : Path
        File of the profile.
    """
    return profile.with_name(profile.name.removesuffix(".yaml") + ENDING)


def is_overlay(path: Path) -> bool:
    """Return whether a file is an overlay, and no profile of its own.

    Parameters
    ----------
    path : Path
        Any file; its name alone counts.
    """
    return path.name.endswith(ENDING)


def with_overlay(document: Document) -> Document:
    """Return a profile's document with its overlay laid over it; itself when there is none.

    Mappings are merged key by key, everything else is replaced. Each location keeps the
    file and the line it is from, so that a mistake in the overlay is named there.

    Parameters
    ----------
    document : Document
        Document of the profile's own file.

    Raises
    ------
    ProfileError
        When the overlay is there and cannot be read as a mapping.
    """
    path = overlay_path(document.path)
    if not path.is_file():
        return document
    overlay = read(path)
    merged = Document(document.path, _merged(document.data, overlay.data))
    merged.lines = {**document.lines, **{where: line for where, line in overlay.lines.items() if where}}
    merged.files = {where: path for where in overlay.lines if where and not _is_mapping(document.data, where)}
    merged.problems = [*document.problems, *(_from(problem, path) for problem in overlay.problems)]
    return merged


def copy_profile(profile: Path, target: Path) -> None:
    """Copy a profile's file with its overlay, so that the copy means the same.

    Parameters
    ----------
    profile : Path
        File of the profile.
    target : Path
        File to write; its folder must be there, what is there already is replaced.

    Raises
    ------
    OSError
        When one of the two cannot be copied.
    """
    shutil.copy(profile, target)
    if overlay_path(profile).is_file():
        shutil.copy(overlay_path(profile), overlay_path(target))


def set_mac(profile: Path, node: str, network: str, mac: str) -> Path:
    """Write a node's MAC address into the overlay of a profile's file; return the overlay.

    Whether the profile is sound with it is for the caller to check, by loading it.

    Parameters
    ----------
    profile
        The profile's file.
    node
        Name of the node.
    network
        Name of the network that the interface is on.
    mac
        Six bytes in hexadecimal, with colons.

    Raises
    ------
    ProfileError
        When the address is none, or the overlay cannot be read or written.
    """
    path = overlay_path(profile)
    try:
        address = TypeAdapter(MacAddress).validate_python(mac)
    except ValidationError as error:
        text = str(error.errors()[0].get("ctx", {}).get("error", error))
        raise ProfileError(path, [Problem(("nodes", node, "links", network, "mac"), text)]) from None
    data = read(path).data if path.is_file() and path.stat().st_size else {}
    update = {"nodes": {node: {"links": {network: {"mac": address}}}}}
    text = yaml.safe_dump(_merged(data, update), sort_keys=False, default_flow_style=False)
    try:
        atomic_files.replace(path, _HEADER.format(name=profile.name) + text)
    except OSError as error:
        raise ProfileError(path, [Problem((), f"{error.strerror}; expected a folder that can be written")]) from None
    return path


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = [key for key in above if isinstance(below.get(key), dict) and isinstance(above[key], dict)]
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in both}}


def _is_mapping(data: object, location: Location) -> bool:
    for part in location:
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return isinstance(data, dict)


def _from(problem: Problem, path: Path) -> Problem:
    return Problem(problem.location, problem.text, problem.line, str(path))
