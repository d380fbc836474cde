"""Keeps the synced trees on the control node: sent over ssh as text, needs only Debian's python3.

    python3 -I -S -c RELEASES ACTION DIRECTORY [NAME]

    DIRECTORY/src             link to the tree in use, relative
    DIRECTORY/loaded          link to the tree that the running master began with; its unit moves it at each start
    DIRECTORY/releases/NAME   trees, named by their content

Every action prints one JSON document. Nothing outside `releases` is ever removed, and the
tree in use is never written to: a sync fills a new one and then moves the link, in one step.
"""

import hashlib
import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

KEPT = 3
MARKER = ".cluster-releases"


def inventory(root: Path) -> dict[str, str]:
    """Return what a tree holds, in the form of the laptop's manifest (see tree.py)."""
    found = {}
    for folder, folders, files in os.walk(root):
        # What Python leaves beside the sources is nobody's.
        folders[:] = [name for name in folders if name != "__pycache__"]
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in files + links:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                entry = f"link {path.readlink()}"
            elif stat.S_ISREG(mode):
                kind = "program" if mode & stat.S_IXUSR else "file"
                entry = f"{kind} {hashlib.sha256(path.read_bytes()).hexdigest()}"
            else:
                entry = "special"
            found[path.relative_to(root).as_posix()] = entry
    return found


def releases_folder(directory: Path) -> Path:
    """Return the folder of the trees, made and marked as ours; refuse one that is not."""
    folder = directory / "releases"
    marker = folder / MARKER
    if not marker.exists():
        if folder.is_dir() and any(folder.iterdir()):
            sys.exit(f"{folder} holds something that is not ours; expected no such folder, or an empty one")
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text("Trees of `cluster sync`; removed when they are old.\n")
    return folder


def current(directory: Path, name: str = "src") -> Path | None:
    """Return the folder that one of the links leads to, None when there is none."""
    link = directory / name
    if not link.is_symlink():
        if link.exists():
            sys.exit(f"{link} is not a link of ours; move it away")
        return None
    tree = link.resolve()
    if tree.parent != (directory / "releases").resolve():
        sys.exit(f"{link} leads to {tree}; expected a folder in {directory}/releases")
    return tree if tree.is_dir() else None


def partial_folder(directory: Path, name: str) -> Path:
    """Return the folder that is filled before it is taken into use."""
    return directory / "releases" / f".partial-{name}"


def show(directory: Path, _: str) -> dict[str, Any]:
    """Return the tree in use, and the one that the running master began with where that is known to be another."""
    tree, loaded = current(directory), current(directory, "loaded")
    return {
        "release": tree.name if tree else None,
        "tree": inventory(tree) if tree else {},
        "loaded": inventory(loaded) if loaded and loaded != tree else None,
    }


def begin(directory: Path, name: str) -> dict[str, Any]:
    """Make the folder that is filled next, with what the tree in use holds."""
    releases_folder(directory)
    partial = partial_folder(directory, name)
    shutil.rmtree(partial, ignore_errors=True)
    tree = current(directory)
    if tree:
        # Copies, not links: what is written to one tree must not show in another.
        shutil.copytree(tree, partial, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        partial.mkdir()
    return {"partial": str(partial)}


def check(directory: Path, name: str) -> dict[str, Any]:
    """Return what has arrived."""
    return {"tree": inventory(partial_folder(directory, name))}


def finish(directory: Path, name: str) -> dict[str, Any]:
    """Give the new tree its name and move the link to it; then drop the oldest."""
    folder = releases_folder(directory)
    before, loaded = current(directory), current(directory, "loaded")
    tree = folder / name
    if tree.is_dir():
        # One of that name whose content somebody changed, or an older one: the fresh copy takes its place.
        aside = folder / f".partial-old-{name}"
        shutil.rmtree(aside, ignore_errors=True)
        tree.rename(aside)
    partial_folder(directory, name).rename(tree)
    os.utime(tree)
    link, new_link = directory / "src", directory / "src.new"
    new_link.unlink(missing_ok=True)
    new_link.symlink_to(Path("releases") / name)
    new_link.replace(link)
    drop_old(folder, {name, *(each.name for each in (before, loaded) if each)})
    return {"release": name, "previous": before.name if before else None}


def drop_old(folder: Path, kept: set[str]) -> None:
    """Remove unfinished trees, and all but the newest finished ones."""
    finished = []
    for path in folder.iterdir():
        if path.name.startswith(".partial-"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != MARKER and path.name not in kept:
            finished.append(path)
    finished.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in finished[max(0, KEPT - len(kept)) :]:
        shutil.rmtree(path, ignore_errors=True)


def abandon(directory: Path, name: str) -> dict[str, Any]:
    """Remove what a sync that failed left."""
    shutil.rmtree(partial_folder(directory, name), ignore_errors=True)
    return {}


ACTIONS = {"show": show, "begin": begin, "check": check, "finish": finish, "abandon": abandon}

if __name__ == "__main__":
    action, place, *words = sys.argv[1:]
    json.dump(ACTIONS[action](Path(place), *(words or [""])), sys.stdout)
