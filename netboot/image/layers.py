"""Engine and driver content as squashfs files of their own, which a node fetches only when they change.

A layer is mounted over the base image, below the writable one, by `init`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from netboot.image.archive import unpack_packages
from netboot.image.commands import BuildError, Progress, clean_environment, run
from netboot.image.manifest import Layer, file_of
from netboot.image.recipe import LayerSource, Recipe
from netboot.image.squash import make_squashfs


def make_layer(
    source: LayerSource, recipe: Recipe, root: Path, workspace: Path, temporary: Path, progress: Progress
) -> tuple[Layer, Path, dict[str, str]]:
    """Make one layer; return its description, its file, and the versions of packages in it.

    Parameters
    ----------
    root
        The base image's root filesystem, whose apt is asked for packages.
    """
    progress({"stage": "layer", "detail": source.name})
    content = temporary / f"layer-{source.name}"
    content.mkdir()
    versions: dict[str, str] = {}
    if source.packages:
        versions = unpack_packages(source.packages, root, content, temporary, recipe)
    if source.directory:
        _take_folder(Path(source.directory), content / source.prefix.lstrip("/"))
        _compile(content / source.prefix.lstrip("/"), source.prefix, root, recipe, progress)
    if not any(content.iterdir()):
        raise BuildError(f"layer {source.name} is empty; expected packages or a directory")
    path = workspace / f"layer-{source.name}.squashfs"
    make_squashfs(content, path, recipe.compression_level, clean_environment(recipe.source_date_epoch, temporary))
    shutil.rmtree(content)
    file = file_of(path)
    return Layer(name=source.name, sha256=file.sha256, bytes=file.bytes), path, versions


def _take_folder(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise BuildError(f"{source} is not a folder; expected what a layer consists of")
    target.parent.mkdir(parents=True, exist_ok=True)
    # cp keeps owners, links and attributes, and copies no data where the filesystem can share it.
    run(["cp", "-a", "--reflink=auto", f"{source}/.", target], clean_environment(None))


def _compile(folder: Path, prefix: str, root: Path, recipe: Recipe, progress: Progress) -> None:
    """Compile a Python environment anew, so that no node does at every start.

    The bytecode that came with it is bound to the dates of its sources, which the squashfs does not keep.
    """
    for cached in folder.rglob("__pycache__"):
        shutil.rmtree(cached)
    environments = [path for path in folder.glob("lib/python3*") if path.is_dir()]
    for environment in environments:
        if environment.name != f"python{recipe.salt.python}":
            detail = f"{prefix} is for {environment.name}, which the image has not: it goes without bytecode"
            progress({"stage": "layer", "detail": detail})
            continue
        # Seen from the image, whose interpreter it is for; the mount ends with this build.
        inside = root / "mnt"
        clean = clean_environment(recipe.source_date_epoch)
        run(["mount", "--bind", folder, inside], clean)
        try:
            where = ["-s", "/mnt", "-p", prefix, f"/mnt/lib/{environment.name}"]
            options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
            run(["chroot", root, "python3", "-m", "compileall", *options, *where], clean)
        except BuildError as error:
            # A template among the sources that is no Python stops nothing: all the others are compiled.
            progress({"stage": "layer", "detail": f"not all of {prefix} could be compiled: {error}"[:200]})
        finally:
            run(["umount", inside], clean)
