"""Build an image: start the builder, wait for it, put what it made into the store.

Examples
--------
>>> from netboot.image.build import build
>>> from netboot.image.recipe import load_recipe
>>> from netboot.image.store import Store
>>> manifest = build(load_recipe(), Store("/var/lib/cluster/images"))  # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netboot.image.commands import BuildError, Progress
from netboot.image.manifest import File, Layer, Manifest, image_digest, write_manifest
from netboot.image.recipe import Recipe, recipe_digest
from netboot.image.store import Store, cache_directory

PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "zstd": "zstd",
    "cpio": "cpio",
    "depmod": "kmod",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}
# Its death ends everything in its namespaces, mounts as well: nothing has to be cleaned up by us.
_NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
)


def no_progress(report: dict[str, object]) -> None:
    """Say nothing."""
    del report


def build(
    recipe: Recipe,
    store: Store,
    progress: Progress = no_progress,
    *,
    profile: str | None = None,
    cache: Path | None = None,
) -> Manifest:
    """Build an image and keep it in the store; return its manifest.

    The same recipe and the same package versions give the same digest, and then the store has it once.

    Parameters
    ----------
    progress
        Called with ``stage``, ``detail`` and ``seconds``.
    profile
        The profile it is for; written into the manifest.

    Raises
    ------
    BuildError
        When a program is missing, a package is not to be had, or this is not root. Nothing is left behind.
    StoreError
        When another build is under way.
    """
    check_programs()
    started = time.monotonic()
    with store.lock("build", wait=False):
        store.sweep()
        workspace = store.workspace("build")
        try:
            result = _in_namespaces(recipe, workspace, cache or cache_directory(), progress)
            manifest = _manifest(recipe, result, profile, time.monotonic() - started)
            layers = [(Layer.model_validate(each["layer"]), Path(each["path"])) for each in result["layers"]]
            shutil.rmtree(workspace / "scratch", ignore_errors=True)
            # A layer belongs to the store, not to one image.
            outside = store.workspace("layers")
            try:
                moved = [(layer, _move(path, outside)) for layer, path in layers]
                write_manifest(workspace, manifest)
                if not store.publish(workspace, manifest, moved):
                    progress({"stage": "kept", "detail": f"{manifest.digest} was there already, byte for byte"})
                    return store.manifest(manifest.digest)
            finally:
                shutil.rmtree(outside, ignore_errors=True)
            return manifest
        finally:
            shutil.rmtree(workspace, ignore_errors=True)


def check_programs() -> None:
    """Raise unless this machine can build.

    Raises
    ------
    BuildError
        Naming what to install.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)})
    if missing:
        raise BuildError(f"{', '.join(missing)} is missing: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise BuildError("an image's files belong to root, so it is built as root: sudo -E ...")


def _in_namespaces(recipe: Recipe, workspace: Path, cache: Path, progress: Progress) -> dict[str, Any]:
    cache.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    # Where this package came from, also when it is not installed.
    source = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
    environment["PATH"] = environment.get("PATH", "") + ":/usr/sbin:/sbin"
    request = {"recipe": recipe.model_dump(by_alias=True), "workspace": str(workspace), "cache": str(cache)}
    process = subprocess.Popen(
        [*_NAMESPACES, sys.executable, "-m", "netboot.image.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Ctrl-C is for us alone; we end it.
        start_new_session=True,
    )
    assert process.stdin and process.stdout and process.stderr
    stderr: list[str] = []
    complaints = threading.Thread(target=lambda stream: stderr.extend(stream), args=(process.stderr,), daemon=True)
    complaints.start()
    try:
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        answer: dict[str, Any] = {}
        for line in process.stdout:
            answer = json.loads(line)
            if "progress" in answer:
                progress(answer["progress"])
        process.wait()
    except BaseException:
        _end(process)
        raise
    complaints.join(timeout=5)
    if "result" in answer:
        result: dict[str, Any] = answer["result"]
        return result
    lines = [line.strip() for line in stderr if line.strip()]
    raise BuildError(answer.get("error") or _last(lines) or f"the builder ended with {process.returncode}")


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last(lines: Sequence[str]) -> str:
    return lines[-1] if lines else ""


def _move(path: Path, folder: Path) -> Path:
    return path.rename(folder / path.name)


def _manifest(recipe: Recipe, result: dict[str, Any], profile: str | None, seconds: float) -> Manifest:
    files = {name: File.model_validate(file) for name, file in result["files"].items()}
    layers = [Layer.model_validate(each["layer"]) for each in result["layers"]]
    inputs = recipe_digest(recipe)
    return Manifest(
        schema=1,
        digest=image_digest(inputs, files, layers),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        profile=profile,
        recipe=recipe.name,
        recipe_digest=inputs,
        kernel=result["kernel"],
        suite=recipe.suite,
        sources=result["sources"],
        packages=result["packages"],
        python=result["python"],
        files=files,
        layers=layers,
        build_seconds=round(seconds, 1),
    )
