"""Unpack Debian packages with all they need into a folder, as programs that hang on nothing of a machine's."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from bottleneck import atomic_files
from lab.layout import LabError

LOADER = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
# What a library's package needs to be configured, and a folder of files does not.
_NOT_FOR_RUNNING = re.compile(r"(?:debconf|cdebconf|dpkg|tar|perl-base|gcc-\d+-base|libc-bin|init-system-helpers)\b.*")
# Read at run time: options of `nft`, and nothing else.
_KEPT = ("bin", "sbin", "lib", "lib64", "usr/bin", "usr/sbin", "usr/lib", "etc/iproute2", "usr/share/iproute2")


def unpack_tools(build: Path, tools: Mapping[str, str]) -> Path:
    """Return a folder with the programs of some Debian packages and all their libraries.

    Parameters
    ----------
    build
        Scratch folder; what is there already is not made again.
    tools
        Program -> package.

    Raises
    ------
    LabError
        When a package cannot be fetched, or a program lacks a library.
    """
    wanted = needed_packages(sorted(set(tools.values())))
    digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
    folder = build / f"tools-{digest}"
    if folder.exists():
        return folder
    fetched = build / f"debs-{digest}"
    fetched.mkdir(parents=True, exist_ok=True)
    # apt gives up its rights to fetch, where it can.
    fetched.chmod(0o755)
    _run(["apt-get", "download", "-q", *wanted], fetched)
    with atomic_files.new_folder(folder) as partial:
        for package in sorted(fetched.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(partial)], fetched)
        _keep(partial)
        for tool in tools:
            _check(partial, tool)
    return folder


def needed_packages(names: Iterable[str]) -> list[str]:
    """Return packages with all that they need to run."""
    options = ["--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces"]
    listed = _run(["apt-cache", "depends", *options, "--no-enhances", *names], Path("/"))
    found = {line.strip() for line in listed.splitlines() if re.match(r"[a-z0-9]", line)}
    return sorted(name for name in found if not _NOT_FOR_RUNNING.fullmatch(name))


def _keep(folder: Path) -> None:
    """Take out what is no program, no library and none of their data."""
    kept = [folder / name for name in _KEPT]
    for path in sorted(folder.rglob("*"), key=lambda each: -len(each.parts)):
        inside = any(path.is_relative_to(each) or each.is_relative_to(path) for each in kept)
        if not inside and (path.is_symlink() or not path.is_dir()):
            path.unlink()
        elif not inside and not any(path.iterdir()):
            path.rmdir()
    for name in ("usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl-base", "usr/lib/locale"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _check(folder: Path, tool: str) -> None:
    """Make sure that a program finds every library in the folder."""
    places = [folder / name / tool for name in ("bin", "sbin", "usr/bin", "usr/sbin")]
    program = next((place for place in places if place.exists()), None)
    if program is None:
        raise LabError(f"no package has the program {tool}")
    libraries = ":".join(str(folder / name) for name in LIBRARIES)
    # The loader alone, asked what it would load.
    argv = [str(folder / LOADER), "--library-path", libraries, "--list", str(program)]
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    absent = [line.split()[0] for line in finished.stdout.splitlines() if "not found" in line]
    static = "statically linked" in finished.stdout + finished.stderr
    if absent or (finished.returncode != 0 and not static):
        raise LabError(f"{tool} lacks {', '.join(absent) or finished.stderr.strip()} among the packages")


def _run(argv: list[str], folder: Path) -> str:
    try:
        finished = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=folder)
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not here: tools are packed on Debian") from error
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise LabError(f"{argv[0]} {argv[1]} failed: {last}", "sudo apt-get update")
    return finished.stdout
