"""The build itself, in namespaces of its own: run as ``python -m netboot.image.worker`` by `build`, never by hand.

Mounts and processes that it makes end with it, whatever ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netboot.image import initramfs, layers, manifest, squash
from netboot.image import root as image_root
from netboot.image.archive import make_root
from netboot.image.commands import BuildError, clean_environment
from netboot.image.recipe import Recipe

_TMPFS_BYTES = 3 << 30


def main() -> int:
    """Build what standard input says; print progress and the result as lines of JSON."""
    # Folders that a build makes have the modes that are meant, whoever started it.
    os.umask(0o022)
    request = json.load(sys.stdin)
    started = time.monotonic()

    def progress(report: dict[str, object]) -> None:
        _say({"progress": {**report, "seconds": round(time.monotonic() - started, 1)}})

    try:
        recipe = Recipe.model_validate(request["recipe"])
        result = build(recipe, Path(request["workspace"]), Path(request["cache"]), progress)
    except BuildError as error:
        _say({"error": str(error)})
        return 1
    except OSError as error:
        _say({"error": f"{error.strerror}: {error.filename}" if error.filename else str(error)})
        return 1
    _say({"result": result})
    return 0


def build(
    recipe: Recipe, workspace: Path, cache: Path, progress: Callable[[dict[str, object]], None]
) -> dict[str, Any]:
    """Build into `workspace`; return what the manifest says of it."""
    temporary = workspace / "scratch"
    temporary.mkdir()
    if _free_memory_bytes() > _TMPFS_BYTES + (1 << 30):
        # A root filesystem is thirty thousand small files: memory is three times as fast as a disk.
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES},mode=0700", "tmpfs", temporary], check=True
            )
    root = temporary / "root"
    scratch = temporary / "tmp"
    scratch.mkdir()
    environment = clean_environment(recipe.source_date_epoch, None)

    def step(detail: str) -> None:
        progress({"stage": "system", "detail": detail})

    packages, sources = make_root(recipe, root, scratch, step)
    progress({"stage": "salt", "detail": "installing Salt's environment"})
    wheels = image_root.fetch_wheels(recipe.salt, cache, step)
    python = image_root.install_salt(root, recipe.salt, wheels, clean_environment(recipe.source_date_epoch, scratch))
    progress({"stage": "configure", "detail": "kernel, units, bytecode"})
    kernel = image_root.take_kernel(root, recipe.kernel, workspace / manifest.KERNEL, environment, step)
    image_root.configure(root, recipe, environment)
    image_root.compile_python(root, recipe.salt, environment)
    image_root.normalise(root)
    made: list[layers.Made] = []
    for source in recipe.layers:
        below = [root, *(each.content for each in made)]
        made.append(layers.make_layer(source, recipe, below, workspace, scratch, progress))
        packages.update(made[-1].packages)
    progress({"stage": "initramfs", "detail": kernel})
    initramfs.make_initramfs(
        root, kernel, recipe.initramfs.modules, temporary / "initramfs", workspace / manifest.INITRD, environment
    )
    progress({"stage": "squashfs", "detail": f"zstd level {recipe.compression_level}"})
    contents = squash.list_contents(root)
    (workspace / manifest.CONTENTS).write_text(json.dumps(contents, indent=0), encoding="utf-8")
    squash.make_squashfs(root, workspace / manifest.ROOT, recipe.compression_level, environment)
    files = {name: manifest.file_of(workspace / name).model_dump() for name in manifest.FILES}
    return {
        "kernel": kernel,
        "packages": dict(sorted(packages.items())),
        "python": python,
        "sources": sources,
        "files": files,
        "layers": [{"layer": each.layer.model_dump(by_alias=True), "path": str(each.path)} for each in made],
    }


def _free_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    sys.exit(main())
