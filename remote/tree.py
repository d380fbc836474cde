"""The tree that goes to the control node: what belongs to it, and how two of them differ."""

import fnmatch
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# A pattern with a slash in front counts from the top; one with a slash at its end is a folder's.
EXCLUDES: tuple[str, ...] = (
    # history, environments, what programs leave
    ".git",
    ".venv*",
    "__pycache__/",
    "*.pyc",
    "*.egg-info/",
    ".*_cache/",
    ".hypothesis/",
    "/build/",
    # of this laptop
    "/cluster.toml",
    "/runs/",
    "/tests/",
    ".DS_Store",
    "._*",
    "*.swp",
    "*~",
    # secrets are made on the control node and stay there
    "*.pem",
    "*.key",
    "id_rsa*",
    "id_ed25519*",
    ".env",
    "/pillar/secrets*",
)
# Without these it is not our tree, whatever folder somebody is in.
LANDMARKS = ("pyproject.toml", "salt/top.sls", "pillar/top.sls", "profiles", "cli/main.py")
Manifest = dict[str, str]


class TreeError(Exception):
    """A tree that cannot be sent; the text is a sentence for the person."""


@dataclass(frozen=True)
class Difference:
    """Differences of one tree from another, each a sorted list of paths."""

    added: list[str]
    changed: list[str]
    deleted: list[str]

    @property
    def paths(self) -> list[str]:
        """Every path that differs."""
        return [*self.added, *self.changed, *self.deleted]

    @property
    def count(self) -> int:
        """The number of paths that differ."""
        return len(self.paths)


def check_tree(root: Path) -> None:
    """Raise TreeError unless `root` is a checkout of ours."""
    missing = [name for name in LANDMARKS if not (root / name).exists()]
    if missing:
        raise TreeError(f"{root} is not the cluster's tree: it has no {', '.join(missing)}")


def is_excluded(path: str, is_folder: bool, patterns: Iterable[str]) -> bool:
    """Tell whether a path, relative to the top, is left out."""
    name = path.rpartition("/")[2]
    for pattern in patterns:
        if pattern.endswith("/") and not is_folder:
            continue
        bare = pattern.rstrip("/")
        if bare.startswith("/"):
            if fnmatch.fnmatchcase(path, bare[1:]):
                return True
        elif fnmatch.fnmatchcase(name, bare):
            return True
    return False


def manifest(root: Path, patterns: Sequence[str] = EXCLUDES) -> Manifest:
    """Return what a tree holds: path -> kind and content.

    Raises
    ------
    TreeError
        For a link that leads out of the tree, or something that is no file, folder or link.
    """
    found: Manifest = {}
    for path in _walk(root, root, patterns):
        relative = path.relative_to(root).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = path.readlink()
            inside = Path(os.path.normpath(path.parent / target))
            if target.is_absolute() or not inside.is_relative_to(root):
                raise TreeError(f"{relative} is a link to {target}; expected one to a place inside the tree")
            found[relative] = f"link {target.as_posix()}"
        elif stat.S_ISREG(mode):
            kind = "program" if mode & stat.S_IXUSR else "file"
            found[relative] = f"{kind} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        else:
            raise TreeError(f"{relative} is neither a file nor a link; leave it out with sync.exclude")
    return found


def digest(tree: Manifest) -> str:
    """Return a short name for a tree's content."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def compare(new: Manifest, old: Manifest) -> Difference:
    """Return what has to happen to `old` so that it is `new`."""
    return Difference(
        added=sorted(new.keys() - old.keys()),
        changed=sorted(path for path in new.keys() & old.keys() if new[path] != old[path]),
        deleted=sorted(old.keys() - new.keys()),
    )


def stage(root: Path, tree: Manifest, folder: Path) -> None:
    """Copy what the manifest names to `folder`: what is sent does not change while it is sent.

    Modes are set here, so that the umask of this laptop makes no difference there.
    """
    for relative in tree:
        source, copy = root / relative, folder / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        else:
            shutil.copy2(source, copy)
            copy.chmod(0o755 if tree[relative].startswith("program ") else 0o644)
    for path in (folder, *(each for each in folder.rglob("*") if each.is_dir() and not each.is_symlink())):
        path.chmod(0o755)


def _walk(root: Path, folder: Path, patterns: Sequence[str]) -> Iterable[Path]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = Path(entry.path)
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_excluded(path.relative_to(root).as_posix(), is_folder, patterns):
            continue
        if is_folder:
            yield from _walk(root, path, patterns)
        else:
            yield path
