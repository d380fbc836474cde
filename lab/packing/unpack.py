#!/usr/bin/env python3
"""Put a pack up on a bare machine and run its program there. Needs Python alone; travels in every piece.

usage, as root:
  unpack.py add PIECE ...          take pieces, in any order; what is whole is unpacked at once
  unpack.py finish [--all-tools]   make the environments, or say which piece is missing
  unpack.py run -- COMMAND ...     run a command with the pack's programs, such as: run -- cluster gpu-lab --output OUT
  unpack.py remove                 take everything away again

With --prefix FOLDER before the verb, it is put up there instead of /opt/gpu-lab; nothing outside of it is changed.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PREFIX = "/opt/gpu-lab"
MANIFEST, SUMS = "pack.json", "SHA256SUMS"
# Not by its link in lib64, which is absolute: that is the machine's own loader, for another C library than the pack's.
LOADER = "control/tools/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
LIBRARIES = ("control/tools/lib/x86_64-linux-gnu", "control/tools/usr/lib/x86_64-linux-gnu")
NODE_ENGINES = Path("/var/cache/cluster/engines")
BLOCK_BYTES = 1 << 20
MOST_THREADS = 16


def fail(text: str) -> NoReturn:
    """End with what is wrong."""
    sys.exit(f"unpack.py: {text}")


class Pack:
    """A pack below a prefix, as much of it as has come."""

    def __init__(self, prefix: str) -> None:
        self.prefix = Path(prefix).absolute()
        self.pieces, self.project, self.control = (self.prefix / name for name in ("pieces", "project", "control"))

    def manifest(self) -> dict[str, Any]:
        """Return what the pack has."""
        try:
            found: dict[str, Any] = json.loads((self.pieces / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            fail(f"no piece has come to {self.prefix}; next: unpack.py add PIECE")
        return found

    def engine(self) -> Path:
        """Return where the engine's environment is."""
        return self.prefix / str(self.manifest()["engine"]["directory"])

    # Pieces ------------------------------------------------------------------------------

    def add(self, folder: Path) -> None:
        """Take a piece, if it is whole and of this pack."""
        try:
            lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            fail(f"{folder} is no piece: it has no {SUMS}")
        sums = {name: digest for digest, name in (line.split() for line in lines if line.strip())}
        for name, digest in sums.items():
            path = folder / name
            if not path.exists() or digest_of(path) != digest:
                fail(f"{path} is not what {SUMS} says: fetch the piece again")
        self.pieces.mkdir(parents=True, exist_ok=True)
        theirs = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (self.pieces / MANIFEST).exists() and self.manifest()["pack"] != theirs["pack"]:
            fail(f"{folder} is of another pack than what is in {self.prefix}; next: unpack.py remove")
        for name in sums:
            if name != MANIFEST and not (self.pieces / name).exists():
                copy(folder / name, self.pieces / name)
        # Last: whoever sees it may ask for what it lists.
        copy(folder / MANIFEST, self.pieces / MANIFEST)
        print(f"taken: {folder}", flush=True)

    def unpack(self) -> None:
        """Unpack every archive of which all parts are here, side by side."""
        waiting = [each for each in self.manifest()["archives"] if not self.is_done(each) and not self.absent(each)]
        # Threads: xz works without the interpreter's lock.
        with concurrent.futures.ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)))) as pool:
            for name in pool.map(self.unpack_one, waiting):
                print(f"unpacked: {name}", flush=True)

    def absent(self, archive: dict[str, Any]) -> list[str]:
        """Return the parts of an archive that have not come."""
        return [part["name"] for part in archive["parts"] if not (self.pieces / part["name"]).exists()]

    def is_done(self, archive: dict[str, Any]) -> bool:
        """Tell whether an archive is unpacked."""
        return self.mark(archive).exists()

    def mark(self, archive: dict[str, Any]) -> Path:
        """Return the file that says so."""
        return self.pieces / f"{archive['name']}.done"

    def unpack_one(self, archive: dict[str, Any]) -> str:
        """Unpack an archive; return its name."""
        target = self.prefix / archive["target"]
        target.mkdir(parents=True, exist_ok=True)
        paths = [self.pieces / part["name"] for part in archive["parts"]]
        joined = cast(IO[bytes], io.BufferedReader(Joined(paths)))
        with joined, lzma.open(joined) as stream, tarfile.open(fileobj=stream, mode="r|") as entries:
            for entry in entries:
                if entry.name.startswith("/") or ".." in entry.name.split("/"):
                    fail(f"{archive['name']}: {entry.name}: expected a path below {target}")
                # tarfile makes it without a thought for the other threads, and fails where one was quicker.
                (target / entry.name).parent.mkdir(parents=True, exist_ok=True)
                entries.extract(entry, target)
        self.mark(archive).touch()
        for path in paths:
            # Its room is wanted; that the archive is unpacked is marked.
            os.truncate(path, 0)
        return str(archive["name"])

    # Putting it up -----------------------------------------------------------------------

    def finish(self, all_tools: bool) -> None:
        """Make the environments around what was unpacked."""
        manifest = self.manifest()
        left = [name for each in manifest["archives"] if not self.is_done(each) for name in self.absent(each)]
        if left:
            fail(f"{len(left)} files are missing, of pieces that have not come: {', '.join(sorted(left)[:3])} ...")
        self.unpack()
        python = self.interpreter(manifest)
        make_environment(python, self.control, self.control)
        # Nodes see the cache there, and its programs run in nodes alone.
        make_environment(python, self.engine(), NODE_ENGINES / self.engine().name)
        if manifest["engine"]["shares_packages"]:
            share_packages(python, self.engine())
        (site_packages(self.control) / "project.pth").write_text(f"{self.project}\n", encoding="utf-8")
        # Programs that their packages made elsewhere.
        script(self.control / "bin/cluster", f"#!{self.control}/bin/python", "from cli.main import app\n\napp()")
        self.wrap_tools(manifest, all_tools)
        byte_compile(python, [self.control, self.engine(), self.project])
        (self.engine() / ".complete").write_text("\n", encoding="utf-8")
        argv = [str(self.control / "bin/cluster"), "--help"]
        finished = subprocess.run(
            argv, env=self.environment(), cwd=self.project, capture_output=True, text=True, check=False
        )
        if finished.returncode:
            fail(f"{shlex.join(argv)} failed: {finished.stderr.strip()[-400:]}")
        print(f"ready in {self.prefix}, with {python}; next: unpack.py run -- cluster gpu-lab --output OUT")

    def interpreter(self, manifest: dict[str, Any]) -> str:
        """Return the machine's Python that the pack is for: of its version, with the torch that the engine wants."""
        version, torch = manifest["python"], manifest["torch"]
        seen = []
        names = [sys.executable, "python3", f"python{version}"]
        for name in dict.fromkeys(path for path in map(shutil.which, names) if path):
            found = output([name, "-c", "import sys; print(*sys.version_info[:2], sep='.')"])
            theirs = None
            if found == version and torch is not None:
                theirs = output([name, "-c", "import torch; print(torch.__version__)"])
            seen.append(f"{name}: {found or 'does not run'}" + (f", torch {theirs}" if theirs else ""))
            if found == version and (torch is None or (theirs or "").split("+")[0] == torch):
                return name
        wanted = f"Python {version}" + (f" with torch {torch}" if torch else "")
        fail(f"no {wanted} here; seen: {'; '.join(seen) or 'no Python on the PATH'}")

    def wrap_tools(self, manifest: dict[str, Any], all_tools: bool) -> None:
        """Have the pack's programs started with the pack's own libraries: those that the machine lacks, or all."""
        libraries = ":".join(str(self.prefix / name) for name in LIBRARIES)
        own = str(self.control / "bin")
        path = os.pathsep.join(
            folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder != own
        )
        taken = []
        for tool, place in sorted(manifest["tools"].items()):
            if not all_tools and shutil.which(tool, path=path):
                continue
            words = [str(self.prefix / place)]
            if is_dynamic(self.prefix / place):
                words = [str(self.prefix / LOADER), "--library-path", libraries, *words]
            script(self.control / "bin" / tool, "#!/bin/sh", f'exec {shlex.join(words)} "$@"')
            taken.append(tool)
        print(f"programs of the pack: {', '.join(taken) or 'none, the machine has them all'}")

    # Running -----------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Return the environment of the pack's commands."""
        found = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        found["PATH"] = os.pathsep.join([str(self.control / "bin"), found.get("PATH", os.defpath)])
        found["CLUSTER_CACHE"] = str(self.prefix / "cache")
        found["CLUSTER_LAB_DIRECTORY"] = str(self.prefix / "labs")
        return found

    def run(self, argv: Sequence[str]) -> NoReturn:
        """Become a command of the pack."""
        if not (self.control / "bin/cluster").exists():
            fail("not put up yet; next: unpack.py finish")
        os.execvpe(argv[0], list(argv), self.environment())


# Variables of whoever called this, which would mislead another Python.
FOREIGN = frozenset({"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"})


class Joined(io.RawIOBase):
    """Several files, read as if they were one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer as far as the file at hand goes; 0 at the end of all."""
        room = memoryview(buffer)
        while self._at < len(self._files):
            block = self._files[self._at].read(len(room))
            if block:
                room[: len(block)] = block
                return len(block)
            self._at += 1
        return 0

    def close(self) -> None:
        """Close all of them."""
        for file in self._files:
            file.close()
        super().close()


def make_environment(python: str, folder: Path, shown: Path) -> None:
    """Make the virtual environment around packages that are there already.

    Its programs are of its Python, by the path at which it is shown where they run.
    """
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    for path in sorted((folder / "bin").iterdir()):
        if path.is_symlink() or not path.is_file():
            continue
        first, _, rest = path.read_bytes().partition(b"\n")
        if first.startswith(b"#!") and b"python" in first:
            path.write_bytes(f"#!{shown}/bin/python\n".encode() + rest)


def share_packages(python: str, folder: Path) -> None:
    """Let an environment see the packages of the Python it was made with, after its own."""
    code = "import sysconfig; print(*dict.fromkeys(sysconfig.get_paths()[name] for name in ('purelib', 'platlib')))"
    text = "\n".join((output([python, "-c", code]) or "").split())
    (site_packages(folder) / "machine.pth").write_text(f"{text}\n", encoding="utf-8")


def byte_compile(python: str, folders: Sequence[Path]) -> None:
    """Compile all modules, on all cores: what runs in nodes may write none, and would compile them at every start."""
    # A package's templates for code are no modules; what cannot be compiled is left as it is.
    subprocess.run([python, "-m", "compileall", "-qq", "-j", "0", *map(str, folders)], check=False)


def site_packages(folder: Path) -> Path:
    """Return the folder of an environment's packages."""
    (found,) = folder.glob("lib/python3*/site-packages")
    return found


def script(path: Path, first: str, text: str) -> None:
    """Write a program, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(f"{first}\n{text}\n", encoding="utf-8")
    partial.chmod(0o755)
    partial.replace(path)


def is_dynamic(program: Path) -> bool:
    """Tell whether a program is loaded by a loader: it names one near its beginning."""
    with program.open("rb") as file:
        return b"ld-linux" in file.read(4096)


def output(argv: Sequence[str]) -> str | None:
    """Return what a command prints; None when it fails."""
    try:
        finished = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def digest_of(path: Path) -> str:
    """Return a file's SHA-256."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    prefix = PREFIX
    if arguments[:1] == ["--prefix"] and len(arguments) > 2:
        prefix, arguments = arguments[1], arguments[2:]
    pack, verb, rest = Pack(prefix), (arguments or [""])[0], arguments[1:]
    if verb == "add" and rest:
        for folder in rest:
            pack.add(Path(folder))
        pack.unpack()
    elif verb == "finish" and rest in ([], ["--all-tools"]):
        pack.finish(bool(rest))
    elif verb == "run" and rest[:1] == ["--"] and rest[1:]:
        pack.run(rest[1:])
    elif verb == "remove" and not rest:
        shutil.rmtree(pack.prefix, ignore_errors=True)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
