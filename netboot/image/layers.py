"""Engine and driver content as squashfs files of their own, which a node fetches only when they change.

A layer is mounted over the base image, below the writable one, by `init`.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from netboot.image.archive import install_packages, make_root_folder
from netboot.image.bytecode import compile_trees
from netboot.image.commands import BuildError, Progress, clean_environment, run
from netboot.image.manifest import Layer, file_of
from netboot.image.recipe import LayerSource, Recipe, RootSource
from netboot.image.root import clean
from netboot.image.squash import make_squashfs


@dataclass(frozen=True)
class Made:
    """A layer that was made.

    Parameters
    ----------
    content : Path
        Its files, which the next layer is made over.
    packages : dict
        Name -> version of every package in base and layers so far; empty when the layer has none of its own.
    """

    layer: Layer
    path: Path
    content: Path
    packages: dict[str, str]


def make_layer(
    source: LayerSource,
    recipe: Recipe,
    below: list[Path],
    workspace: Path,
    temporary: Path,
    progress: Progress,
) -> Made:
    """Make one layer.

    Parameters
    ----------
    below
        The base's root filesystem and the content of the layers under this one, lowest first.
    """
    progress({"stage": "layer", "detail": source.name})
    content = temporary / f"layer-{source.name}"
    content.mkdir()
    versions: dict[str, str] = {}
    if source.packages:
        versions = _install(source.packages, recipe, below, content, temporary)
    if source.directory:
        inside = content / source.prefix.lstrip("/")
        _take_folder(Path(source.directory), inside, temporary / f"changes-{source.name}")
        _compile(inside, source.prefix, below[0], recipe, progress)
    if source.root_folder:
        # Its packages are no packages of the image: another release's C library may be among them.
        _make_root_folder(source.root_folder, recipe, content / source.prefix.lstrip("/"), temporary)
    if not any(content.iterdir()):
        raise BuildError(f"layer {source.name} is empty; expected packages or a directory")
    path = workspace / f"layer-{source.name}.squashfs"
    make_squashfs(content, path, recipe.compression_level, clean_environment(recipe.source_date_epoch, temporary))
    file = file_of(path)
    return Made(Layer(name=source.name, sha256=file.sha256, bytes=file.bytes), path, content, versions)


def _install(packages: list[str], recipe: Recipe, below: list[Path], content: Path, temporary: Path) -> dict[str, str]:
    """Install packages over what is below; what that changed is the layer, as the node's overlay sees it too."""
    merged, work = temporary / "merged", temporary / "overlay-work"
    merged.mkdir()
    work.mkdir()
    environment = clean_environment(None)
    lower = ":".join(str(folder) for folder in reversed(below))
    mounts: list[Path] = []
    try:
        overlay = f"lowerdir={lower},upperdir={content},workdir={work}"
        for arguments, place in (
            (["-t", "overlay", "-o", overlay, "overlay"], merged),
            (["-t", "proc", "proc"], merged / "proc"),
            (["--bind", "/dev"], merged / "dev"),
        ):
            run(["mount", *arguments, place], environment)
            mounts.append(place)
        versions = install_packages(packages, merged, recipe)
    finally:
        for place in reversed(mounts):
            run(["umount", "--lazy", place], environment)
    merged.rmdir()
    shutil.rmtree(work)
    clean(content)
    _forget_overlay(content)
    return versions


def _make_root_folder(source: RootSource, recipe: Recipe, folder: Path, temporary: Path) -> None:
    """Make a root folder of Debian packages; what a build leaves that says when it was is taken out."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    make_root_folder(source, recipe, folder, temporary)
    clean(folder)
    if source.marker:
        (folder / source.marker).touch()


def _forget_overlay(content: Path) -> None:
    """Take out what the overlay noted about files of below: inode numbers, other ones each time."""
    for folder, names, files in os.walk(content):
        for path in (folder, *(str(Path(folder, name)) for name in [*names, *files])):
            for name in os.listxattr(path, follow_symlinks=False):
                # That a folder hides what lies below it is content, and stays.
                if name.startswith("trusted.overlay.") and name != "trusted.overlay.opaque":
                    os.removexattr(path, name, follow_symlinks=False)


def _take_folder(source: Path, target: Path, changes: Path) -> None:
    """Show a folder where its layer has it; what is changed there is changed in memory, and the folder stays as it is.

    Nothing is copied: an engine's environment is larger than the memory that a build is given.
    """
    if not source.is_dir():
        raise BuildError(f"{source} is not a folder; expected what a layer consists of")
    upper, work = changes / "upper", changes / "work"
    for folder in (target, upper, work):
        folder.mkdir(parents=True, exist_ok=True)
    status = source.stat()
    os.chown(upper, status.st_uid, status.st_gid)
    upper.chmod(stat.S_IMODE(status.st_mode))
    overlay = f"lowerdir={source},upperdir={upper},workdir={work}"
    # It ends with the build's namespace.
    run(["mount", "-t", "overlay", "-o", overlay, "overlay", target], clean_environment(None))


def _compile(folder: Path, prefix: str, root: Path, recipe: Recipe, progress: Progress) -> None:
    """Compile a Python environment anew, so that no node does at every start.

    The bytecode that came with it is bound to the dates of its sources, which the squashfs does not keep.
    """
    for cached in folder.rglob("__pycache__"):
        shutil.rmtree(cached)
    for environment in (path for path in folder.glob("lib/python3*") if path.is_dir()):
        if environment.name != f"python{recipe.salt.python}":
            detail = f"{prefix} is for {environment.name}, which the image has not: it goes without bytecode"
            progress({"stage": "layer", "detail": detail})
            continue
        # Seen from the image, whose interpreter it is for; the mount ends with this build.
        inside = root / "mnt"
        clean_one = clean_environment(recipe.source_date_epoch)
        run(["mount", "--bind", folder, inside], clean_one)
        try:
            tree = f"/mnt/lib/{environment.name}/site-packages"
            problems = compile_trees(root, [tree], clean_one, ("-s", "/mnt", "-p", prefix))
        finally:
            run(["umount", inside], clean_one)
        # A template among the sources that is no Python stops nothing: all the others are compiled.
        for text in problems:
            progress({"stage": "layer", "detail": text[:200]})
