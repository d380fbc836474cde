"""Bytecode, made once in the image instead of at every start of every node, with the same bytes every time.

What Python writes for a module depends on what the same process compiled before (whether a
string is held elsewhere decides if it is written as a reference). So each part of a tree is
compiled by a process of its own, in the order of its names; only whole parts run side by side.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from netboot.image.commands import BuildError, run


def parts_of(folder: Path) -> list[str]:
    """Return the folders directly below `folder` that have Python in them, by name."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and next(path.rglob("*.py"), None))


def compile_trees(
    root: Path,
    trees: Iterable[str],
    environment: dict[str, str],
    options: tuple[str, ...] = (),
    python: str = "python3",
) -> list[str]:
    """Compile trees with an interpreter of the image; return what could not be compiled.

    Such files are used without a look at their source: the image's dates are all the same.

    Parameters
    ----------
    trees
        Absolute paths as seen from the image.
    options
        Further options of compileall.
    python
        The interpreter, by its name: what it writes is read by its own version alone.
    """
    jobs: list[list[str]] = []
    for tree in trees:
        folder = root / tree.lstrip("/")
        for cached in folder.rglob("__pycache__"):
            shutil.rmtree(cached)
        jobs.append(["-l", tree])
        jobs += [[f"{tree}/{part}"] for part in parts_of(folder)]
    common = ["chroot", root, python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", *options]

    def compile_one(job: list[str]) -> str:
        try:
            run([*common, *job], environment)
        except BuildError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return [problem for problem in pool.map(compile_one, jobs) if problem]
