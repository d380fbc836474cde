"""One folder as a squashfs with the same bytes every time, and the list of what is in it."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from netboot.image.commands import run
from netboot.image.manifest import Contents


def make_squashfs(root: Path, into: Path, level: int, environment: dict[str, str]) -> None:
    """Pack a folder with zstd."""
    plain = dict(environment)
    # mksquashfs takes the date from one place alone.
    epoch = plain.pop("SOURCE_DATE_EPOCH")
    pack = ["-comp", "zstd", "-Xcompression-level", level, "-b", "256K", "-reproducible"]
    dates = ["-mkfs-time", epoch, "-all-time", epoch]
    run(["mksquashfs", root, into, "-noappend", "-no-progress", "-quiet", *pack, *dates], plain)


def list_contents(root: Path) -> Contents:
    """Return what stands at each path: kind, mode, owner, and digest or target."""
    found: Contents = {}
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(folder, name)
            status = path.lstat()
            where = "/" + str(path.relative_to(root))
            owner = f"{stat.S_IMODE(status.st_mode):04o} {status.st_uid}:{status.st_gid}"
            if stat.S_ISLNK(status.st_mode):
                found[where] = f"link {path.readlink()}"
            elif stat.S_ISREG(status.st_mode):
                with path.open("rb") as stream:
                    found[where] = f"file {owner} {hashlib.file_digest(stream, 'sha256').hexdigest()[:32]}"
            elif stat.S_ISDIR(status.st_mode):
                found[where] = f"folder {owner}"
            else:
                found[where] = f"special {owner}"
    return dict(sorted(found.items()))
