"""Give an engine's lock file the digests of the wheels that fit; `setup/lock FILE` runs it.

    python setup/engine_lock.py UV FILE

The versions in the file stay. Which Pythons it is for stands in its first lines: "for Python 3.11 and 3.13 on x86-64".
A version with a local part (torch 2.13.0+cpu) is on an index of its own; its digests stay as they are in the file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

# glibc's, to that of Debian 13; uv knows none above 2.40.
NEWEST_GLIBC = 40
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s\\;]+)", re.MULTILINE)
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def pythons(head: str) -> list[str]:
    """Return the versions of Python that the file says it is for."""
    found = re.search(r"for Python ((?:3\.\d+(?:, | and )?)+) on x86-64", head.replace("\n# ", " "))
    if found is None:
        raise SystemExit('no "for Python 3.11 on x86-64" in the lines at its beginning; expected it there')
    return re.findall(r"3\.\d+", found[1])


def pinned(body: str) -> dict[str, tuple[str, set[str]]]:
    """Return name -> version and the digests that are there."""
    starts = [*PIN.finditer(body)]
    ends = [*(each.start() for each in starts[1:]), len(body)]
    return {
        canonicalize_name(each[1]): (each[2], set(DIGEST.findall(body[each.end() : end])))
        for each, end in zip(starts, ends, strict=True)
    }


def tags_of(python: str) -> frozenset[Tag]:
    """Return what a wheel may be built for."""
    version = tuple(map(int, python.split(".")))
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(NEWEST_GLIBC, 4, -1)]
    platforms += [f"{old}_x86_64" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    own = cpython_tags(version, platforms=platforms)
    return frozenset([*own, *compatible_tags(version, f"cp{version[0]}{version[1]}", platforms)])


def fitting(uv: str, pins: Iterable[str], python: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the digest of each wheel that fits a Python, as the index has them."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, locked = Path(folder, "wanted.txt"), Path(folder, "pylock.toml")
        wanted.write_text("\n".join(pins), encoding="utf-8")
        target = ["--python-version", python, "--python-platform", f"x86_64-manylinux_2_{NEWEST_GLIBC}"]
        form = ["--no-deps", "--only-binary", ":all:", "--format", "pylock.toml", "--output-file", str(locked)]
        subprocess.run(
            [uv, "pip", "compile", "--quiet", *target, *form, str(wanted)], check=True, stdout=subprocess.DEVNULL
        )
        packages = tomllib.loads(locked.read_text(encoding="utf-8"))["packages"]
    tags = tags_of(python)
    for package in packages:
        for wheel in package["wheels"]:
            if parse_wheel_filename(wheel["url"].rpartition("/")[2].partition("#")[0].replace("%2B", "+"))[3] & tags:
                yield canonicalize_name(package["name"]), wheel["hashes"]["sha256"]


def locked(pins: Mapping[str, tuple[str, set[str]]], digests: Mapping[str, set[str]]) -> str:
    """Return the lines of a lock file; a version without a digest ends the program."""
    missing = [f"{name}=={version}" for name, (version, _) in pins.items() if not digests[name]]
    if missing:
        raise SystemExit(f"{', '.join(missing)}: no wheel on the index fits, and no digest is in the file")
    return "".join(
        " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{each}" for each in sorted(digests[name]))]) + "\n"
        for name, (version, _) in sorted(pins.items())
    )


def main() -> None:
    """Write the file anew."""
    uv, file = sys.argv[1], Path(sys.argv[2])
    text = file.read_text(encoding="utf-8")
    head = "".join(re.match(r"(?:#.*\n)*", text)[0])  # type: ignore[index]
    pins = pinned(text[len(head) :])
    digests = {name: there if "+" in version else set() for name, (version, there) in pins.items()}
    asked = [f"{name}=={version}" for name, (version, _) in pins.items() if "+" not in version]
    for python in pythons(head):
        for name, digest in fitting(uv, asked, python):
            digests[name].add(digest)
    file.write_text(head + locked(pins, digests), encoding="utf-8")


if __name__ == "__main__":
    main()
