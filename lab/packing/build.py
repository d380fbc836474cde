"""Make a pack: each part once, kept by what is in it, so that a call that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.profile import Profile
from bottleneck.profile.engine_types import EngineSpec
from bottleneck.profile.paths import lock_file
from lab.layout import REPOSITORY, LabError, cache_directory
from lab.packing import archives, contents
from lab.packing.pieces import Piece, divide
from lab.packing.tools import unpack_tools

Progress = Callable[[str], None]
MANIFEST, UNPACK = "pack.json", "unpack.py"
# Below a lending machine's limit of 64 MiB a call, with room for what travels beside a piece.
PIECE_BYTES = 60_000_000
PRESET = 6
_INSTALL_SECONDS = 3600.0
# In the order of setup/control-node: what builds the packages that are published as source comes first.
_CONTROL_LOCKS = ("build", "control-node", "source")


class PackError(LabError):
    """A pack could not be made; the text says what is missing and the command that mends it."""


@dataclass(frozen=True)
class _Part:
    """One tree of files: where it lies here, where it goes there, and what is left out of it."""

    name: str
    folder: Path
    target: str
    left_out: tuple[str, ...] = ()
    files: tuple[str, ...] | None = None


def pack(
    profile: Profile,
    output: Path,
    build: Path,
    piece_bytes: int = PIECE_BYTES,
    preset: int = PRESET,
    progress: Progress = print,
) -> list[Piece]:
    """Pack what a lab of `profile` needs on a machine with nothing but Linux, a Python and (for cards) their torch.

    Parameters
    ----------
    output
        Gets folders `piece1`, `piece2`, ..., each with its `SHA256SUMS`, the manifest and the program that unpacks.
    build
        Scratch folder: what is made already is not made again.
    piece_bytes
        The most that a piece may have.
    preset
        How hard xz tries, 0 to 9.

    Raises
    ------
    PackError
        Naming what is missing on this machine.
    """
    engines = list(dict.fromkeys(profile.engine_of(node).kind for node in profile.nodes))
    if len(engines) > 1:
        raise PackError(f"nodes with engines {', '.join(engines)}; a pack is made for one kind", code=2)
    engine = profile.engines[engines[0]]
    python = _interpreter(engine)
    build.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)

    progress("tools: Debian packages")
    tools = unpack_tools(build, contents.TOOLS)
    progress(f"Salt and this project's needs, for {engine.python}")
    control = _control(build, python)
    progress(f"the engine {engine.kind}")
    environment = _engine(build, python, engine, progress)
    parts = (
        _Part("tools", tools, "control/tools"),
        _Part("control", control, "control", (*contents.LEFT_OUT, *contents.CONTROL_LEFT_OUT)),
        _Part(
            "engine",
            environment,
            f"cache/engines/{Path(engine.directory()).name}",
            (*contents.LEFT_OUT, *contents.ENGINE_LEFT_OUT.get(engine.kind, ())),
        ),
        _Part("project", REPOSITORY, "project", files=tuple(_project_files())),
    )
    before, made = _checkout(), list[dict[str, Any]]()
    for part in parts:
        progress(f"compressing {part.name}")
        names = archives.relative_files(part.folder, part.left_out) if part.files is None else list(part.files)
        found = archives.make(part.name, part.folder, names, build / "archives", preset)
        made += [{"name": path.name, "target": part.target, "path": path} for path in found]

    if _checkout() != before:
        raise PackError("the checkout changed while it was packed: its files may not fit each other", "pack it again")
    torch = _wanted_torch(environment) if engine.shares_packages else None
    manifest = {
        "schema": 1,
        "profile": profile.name,
        "python": engine.python.removeprefix("python"),
        "torch": torch,
        "tools": {tool: f"control/tools/{_place(tools, tool)}" for tool in contents.TOOLS},
        "engine": {
            "kind": engine.kind,
            "directory": f"cache/engines/{Path(engine.directory()).name}",
            "shares_packages": bool(engine.shares_packages),
        },
        "archives": [{key: each[key] for key in ("name", "target")} for each in made],
    }
    progress("dividing into pieces")
    extra = {UNPACK: Path(__file__).with_name(UNPACK).read_bytes()}
    return divide([each["path"] for each in made], manifest, extra, output, piece_bytes)


def _interpreter(engine: EngineSpec) -> str:
    """Return the Python that the target machine is to have: packages are built for its minor version."""
    found = shutil.which(engine.python)
    works = found is not None and not _run_quietly([found, "-c", "import venv, ensurepip"])
    if found is None or not works:
        raise PackError(
            f"no working {engine.python} here, for which the packages are fetched",
            f"sudo apt-get install {engine.python}-venv",
        )
    return found


def _run_quietly(argv: Sequence[str]) -> int:
    return subprocess.run(argv, capture_output=True, check=False).returncode


def _install(python: str, environment: Path, *steps: Sequence[str]) -> None:
    """Make an environment and have pip install into it, a step after the other; whole or not at all."""
    partial = environment.with_name(environment.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _run([python, "-m", "venv", str(partial)])
    pip = [str(partial / "bin/python"), "-m", "pip", "-qq", "--disable-pip-version-check", "install", "--no-compile"]
    for arguments in steps:
        _run([*pip, *arguments])
    partial.rename(environment)


def _run(argv: Sequence[str]) -> None:
    finished = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
    if finished.returncode != 0:
        errors = [line for line in finished.stderr.splitlines() if not line.startswith("WARNING")]
        # Not the whole command: an index's address may hold a password.
        raise PackError(f"{Path(argv[0]).name} {argv[1]} failed: {' | '.join(errors[-3:]) or 'it says nothing'}")


def _control(build: Path, python: str) -> Path:
    locks = [REPOSITORY / "setup" / f"{name}.lock" for name in _CONTROL_LOCKS]
    environment = build / f"control-{_digest(python, *(lock.read_text(encoding='utf-8') for lock in locks))}"
    if not environment.exists():
        checked = ["--no-deps", "--no-build-isolation", "--require-hashes"]
        _install(python, environment, *([*checked, "-r", str(lock)] for lock in locks))
    return environment


def _engine(build: Path, python: str, engine: EngineSpec, progress: Progress) -> Path:
    """Return the engine's environment: what `cluster apply` installed here, or one that is made for the pack."""
    name = Path(engine.directory()).name
    there = cache_directory() / "engines" / name
    if (there / ".complete").exists():
        progress(f"the engine {engine.kind}: as installed in {there}")
        return there
    if engine.lock is None or engine.fallback_index or engine.indexes or engine.source_build:
        raise PackError(
            f"the engine {engine.kind} is not installed here, and no lock file alone makes it", "cluster apply"
        )
    environment = build / name
    if not environment.exists():
        lock = str(lock_file(engine.lock))
        _install(python, environment, ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", lock])
    return environment


def _wanted_torch(environment: Path) -> str | None:
    """Return the version of torch that the engine was built for, as its own metadata says."""
    for path in environment.glob("lib/python3*/site-packages/vllm-*.dist-info"):
        for line in importlib.metadata.PathDistribution(path).requires or []:
            name, _, version = line.partition("==")
            if name.strip() == "torch":
                return version.split(";")[0].strip()
    return None


def _project_files() -> Iterable[str]:
    """Return the checkout's files: those that git would carry."""
    listed = subprocess.run(
        [
            "git",
            "-c",
            f"safe.directory={REPOSITORY}",
            "-C",
            str(REPOSITORY),
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        raise PackError(f"{REPOSITORY} is no git checkout: {listed.stderr.strip()}", "git clone, and pack from there")
    names = [name for name in listed.stdout.split("\0") if name and os.path.lexists(REPOSITORY / name)]
    return sorted(name for name in names if not name.startswith(contents.PROJECT_LEFT_OUT))


def _checkout() -> tuple[str, ...]:
    """Return what tells two states of the checkout apart: its files, with the time of their last change."""
    return tuple(f"{name} {(REPOSITORY / name).lstat().st_mtime_ns}" for name in _project_files())


def _place(tools: Path, tool: str) -> str:
    """Return where a tool is below the folder of tools."""
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin"):
        if (tools / folder / tool).exists():
            return f"{folder}/{tool}"
    raise PackError(f"the package {contents.TOOLS[tool]} has no program {tool}")


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
