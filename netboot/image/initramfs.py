"""The initramfs: the image's own busybox, the drivers that lead to the image, and `init`."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from netboot.image.commands import BuildError, run
from netboot.image.recipe import FILES

_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x")

# Modules of older kernels whose work a later one does itself, under no name (trixie's 6.12 has the module, forky's 7.2
# has not).
PART_OF_THE_KERNEL = frozenset({"crc32c_generic"})


def make_initramfs(
    root: Path, version: str, modules: Iterable[str], staging: Path, into: Path, environment: dict[str, str]
) -> list[str]:
    """Write a compressed cpio archive; return the modules in it.

    Parameters
    ----------
    root
        The image's root filesystem, with its kernel modules in place.
    modules
        Names of modules; what they depend on is added. A name that is built into the kernel counts as there.
    """
    for folder in ("bin", "dev", "etc", "lib64", "proc", "run", "sys"):
        (staging / folder).mkdir(parents=True)
    _take_busybox(root, staging, environment)
    for name, target in (("init", "init"), ("udhcpc", "bin/udhcpc-script")):
        shutil.copyfile(FILES / name, staging / target)
        (staging / target).chmod(0o755)
    taken = _take_modules(root, version, modules, staging)
    run(["depmod", "-b", staging, version], environment)
    for index in (staging / "lib/modules" / version).glob("modules.*"):
        # busybox's modprobe reads these two alone.
        if index.name not in ("modules.dep", "modules.alias", "modules.softdep"):
            index.unlink()
    _archive(staging, into, environment)
    return taken


def module_closure(dependencies: dict[str, list[str]], soft: dict[str, list[str]], wanted: Iterable[str]) -> list[str]:
    """Return modules with all that they need, in the order of their names.

    Parameters
    ----------
    dependencies, soft : dict
        Module name -> names that it needs, from modules.dep and modules.softdep. A soft one need not exist.
    """
    found: set[str] = set()
    waiting = [_plain(name) for name in wanted]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += dependencies.get(name, [])
        waiting += [each for each in soft.get(name, []) if each in dependencies]
    return sorted(found)


def _take_busybox(root: Path, staging: Path, environment: dict[str, str]) -> None:
    shutil.copyfile(root / "usr/bin/busybox", staging / "bin/busybox")
    (staging / "bin/busybox").chmod(0o755)
    for line in run(["chroot", root, "ldd", "/usr/bin/busybox"], environment):
        found = _LIBRARY.search(line)
        if found:
            source = root / found[1].lstrip("/")
            target = staging / found[1].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.resolve() if not source.is_symlink() else _within(root, source), target)
            target.chmod(0o755)
    for applet in run(["chroot", root, "busybox", "--list"], environment):
        link = staging / "bin" / applet
        if applet and not link.exists():
            link.symlink_to("busybox")


def _within(root: Path, link: Path) -> Path:
    """Follow a link as the image would, where / is `root`."""
    for _ in range(10):
        if not link.is_symlink():
            return link
        target = link.readlink()
        link = root / str(target).lstrip("/") if target.is_absolute() else link.parent / target
    raise BuildError(f"{link}: too many links")


def _take_modules(root: Path, version: str, wanted: Iterable[str], staging: Path) -> list[str]:
    source = root / "usr/lib/modules" / version
    files: dict[str, str] = {}
    dependencies: dict[str, list[str]] = {}
    for line in (source / "modules.dep").read_text().splitlines():
        file, _, needed = line.partition(":")
        files[_module_name(file)] = file
        dependencies[_module_name(file)] = [_module_name(each) for each in needed.split()]
    built_in = {_module_name(line) for line in (source / "modules.builtin").read_text().split()}
    wanted = [_plain(name) for name in wanted]
    unknown = [name for name in wanted if name not in files and name not in built_in and name not in PART_OF_THE_KERNEL]
    if unknown:
        raise BuildError(f"initramfs.modules: kernel {version} has no module {', '.join(unknown)}")
    names = module_closure(dependencies, _soft(source / "modules.softdep"), wanted)
    target = staging / "lib/modules" / version
    taken = []
    for name in names:
        if name not in files:
            continue
        packed = source / files[name]
        # busybox reads plain modules, and all of them compress better together.
        content = lzma.decompress(packed.read_bytes()) if packed.suffix == ".xz" else packed.read_bytes()
        plain = target / files[name].removesuffix(".xz")
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.write_bytes(content)
        taken.append(name)
    for index in ("modules.order", "modules.builtin"):
        shutil.copyfile(source / index, target / index)
    if (source / "modules.softdep").exists():
        shutil.copyfile(source / "modules.softdep", target / "modules.softdep")
    return taken


def _soft(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) > 2 and words[0] == "softdep":
                found[_plain(words[1])] = [_plain(word) for word in words[2:] if word not in ("pre:", "post:")]
    return found


def _module_name(file: str) -> str:
    return _plain(Path(file).name.partition(".ko")[0])


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _archive(staging: Path, into: Path, environment: dict[str, str]) -> None:
    epoch = int(environment["SOURCE_DATE_EPOCH"])
    names = sorted(str(path.relative_to(staging)) for path in staging.rglob("*"))
    for name in [".", *names]:
        os.utime(staging / name, (epoch, epoch), follow_symlinks=False)
    cpio = subprocess.Popen(
        ["cpio", "--quiet", "--create", "--format=newc", "--reproducible", "--owner=0:0"],
        cwd=staging,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    # One thread: with more, zstd cuts the input by the number of processors.
    pack = subprocess.Popen(["zstd", "-q", "-19", "-T1", "--no-check", "-o", into], env=environment, stdin=cpio.stdout)
    assert cpio.stdin and cpio.stdout
    cpio.stdout.close()
    cpio.stdin.write("\n".join([".", *names, ""]).encode())
    cpio.stdin.close()
    if cpio.wait() != 0 or pack.wait() != 0:
        raise BuildError("the initramfs could not be packed")
