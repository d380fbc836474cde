"""Turn Debian's root filesystem into a node's: Salt, units, programs, and nothing that differs from build to build."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import sys
from pathlib import Path

from bottleneck import atomic_files
from netboot.image.archive import LEFT_OUT
from netboot.image.bytecode import compile_trees
from netboot.image.commands import BuildError, Step, clean_environment, run
from netboot.image.recipe import FILES, Kernel, Recipe, SaltEnvironment

SALT = Path("opt/cluster/salt")
_CONSOLE_SCRIPTS = {
    "salt-call": "salt_call",
    "salt-minion": "salt_minion",
    "salt-pip": "salt_pip",
}
# File of ours -> where it goes and with which mode.
_PROGRAMS = {
    "stage": ("usr/lib/cluster/stage", 0o755),
    "cluster-enrol": ("usr/lib/cluster/cluster-enrol", 0o755),
    "minion": ("etc/salt/minion", 0o600),
    "journald.conf": ("etc/systemd/journald.conf.d/cluster.conf", 0o644),
}
# What a run leaves that says when and where it was.
_LEFT_BEHIND = (
    "boot/*",
    "etc/*-",
    "etc/.pwd.lock",
    "etc/nvme/host*",
    "etc/ssl/certs/java",
    "initrd.img*",
    "run/*",
    "tmp/*",
    "usr/share/initramfs-tools/*.old",
    "var/backups/*",
    "var/cache/apt/*",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/lib/systemd/catalog/database",
    "var/lib/systemd/random-seed",
    "var/lib/ucf/*.[0-9]",
    "var/log/*",
    "var/tmp/*",
    "vmlinuz*",
)
# glibc that a wheel may ask for at most, by suite's Python: trixie has 2.41.
_GLIBC_MINOR = {"3.13": 41}


def take_kernel(root: Path, kernel: Kernel, into: Path, environment: dict[str, str], on_step: Step) -> str:
    """Move the kernel out, take out the modules that no node needs; return the kernel's version."""
    versions = sorted(path.name for path in (root / "usr/lib/modules").iterdir())
    if len(versions) != 1:
        raise BuildError(f"{kernel.package} brought the kernels {versions}; expected one")
    version = versions[0]
    shutil.copyfile(root / f"boot/vmlinuz-{version}", into)
    modules = root / "usr/lib/modules" / version
    for pattern in kernel.prune:
        if not any((modules / "kernel").glob(pattern)):
            on_step(f"kernel.prune: {pattern} matches nothing in {version}")
    for name in prunable(modules_of(modules / "modules.dep"), kernel.prune):
        (modules / name).unlink()
    run(["chroot", root, "depmod", version], environment)
    return version


def modules_of(index: Path) -> dict[str, list[str]]:
    """Return, of every module in a modules.dep, the modules that it needs; both as the index writes them."""
    found = {}
    for line in index.read_text(encoding="utf-8").splitlines():
        name, _, needed = line.partition(":")
        found[name] = needed.split()
    return found


def prunable(modules: dict[str, list[str]], patterns: list[str]) -> list[str]:
    """Return the modules that lie below a pattern and that no other module needs."""
    below = [f"kernel/{pattern}" for pattern in patterns]

    def matched(name: str) -> bool:
        parts = Path(name).parts
        ancestors = ("/".join(parts[:length]) for length in range(2, len(parts) + 1))
        return any(fnmatch.fnmatchcase(each, pattern) for each in ancestors for pattern in below)

    going = {name for name in modules if matched(name)}
    # modules.dep lists what a module needs in full, at second hand as well.
    needed = {each for name in modules.keys() - going for each in modules[name]}
    return sorted(going - needed)


def fetch_wheels(salt: SaltEnvironment, cache: Path, on_step: Step) -> Path:
    """Return a folder with the wheels of Salt's environment, fetched once for each state of the pins."""
    pins = Path(salt.pins)
    names = [line for line in pins.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]
    key = hashlib.sha256("\n".join([salt.python, *names]).encode()).hexdigest()[:16]
    folder = cache / f"wheels-{key}"
    if folder.is_dir():
        return folder
    on_step("fetching Salt's packages")
    environment = clean_environment(None)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    with atomic_files.new_folder(folder) as partial:
        # Salt itself is published as source alone; it is pure Python, so this machine can make its wheel.
        source = [name for name in names if name.startswith("salt==")]
        binary = [name for name in names if not name.startswith("salt==")]
        run([*pip, "wheel", "--no-deps", "--wheel-dir", partial, *source], environment)
        run([*pip, "download", "--no-deps", "--dest", partial, *_wheel_options(salt.python), *binary], environment)
    return folder


def install_salt(root: Path, salt: SaltEnvironment, wheels: Path, environment: dict[str, str]) -> dict[str, str]:
    """Install Salt's environment from wheels; return its packages' versions.

    pip runs on this machine, so that the image needs neither pip nor a network while it is made.
    """
    home = root / SALT
    packages = home / f"lib/python{salt.python}/site-packages"
    packages.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    offline = {name: value for name, value in environment.items() if not name.startswith("PIP_")}
    offline["PIP_CONFIG_FILE"] = os.devnull
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", *_wheel_options(salt.python)]
    run([*pip, "install", *options, "--target", packages, *sorted(wheels.glob("*.whl"))], offline)
    # pip's scripts would start this machine's interpreter, and their digests stand in RECORD.
    for leftover in ("bin", "share"):
        shutil.rmtree(packages / leftover, ignore_errors=True)
    for record in packages.glob("*.dist-info/RECORD"):
        record.unlink()
    for direct in packages.glob("*.dist-info/direct_url.json"):
        direct.unlink()
    (home / "bin").mkdir()
    # By its version: a suite may have a later one as its python3.
    (home / "bin/python").symlink_to(f"/usr/bin/python{salt.python}")
    (home / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {salt.python}\n"
    )
    for script, function in _CONSOLE_SCRIPTS.items():
        path = home / "bin" / script
        path.write_text(
            f"#!/{SALT}/bin/python\nimport sys\n\nfrom salt.scripts import {function}\n\nsys.exit({function}())\n"
        )
        path.chmod(0o755)
        (root / "usr/local/bin" / script).symlink_to(f"/{SALT}/bin/{script}")
    found = {}
    for information in sorted(packages.glob("*.dist-info")):
        name, _, version = information.name.removesuffix(".dist-info").rpartition("-")
        found[name] = version
    return found


def configure(root: Path, recipe: Recipe, environment: dict[str, str], files: Path = FILES) -> None:
    """Put our programs and units in place, and say which units start."""
    for name, (target, mode) in _PROGRAMS.items():
        _install(files / name, root / target, mode)
    for unit in sorted(files.glob("*.service")):
        _install(unit, root / "etc/systemd/system" / unit.name, 0o644)
    (root / "etc/salt/minion.d").mkdir(parents=True, exist_ok=True)
    pki = root / "etc/salt/pki/minion"
    pki.mkdir(parents=True, exist_ok=True)
    pki.chmod(0o700)
    for generator in recipe.units.mask_generators:
        folder = root / "etc/systemd/system-generators"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / generator).symlink_to(os.devnull)
    systemctl = ["chroot", root, "systemctl"]
    if recipe.units.mask:
        run([*systemctl, "mask", *recipe.units.mask], environment)
    if recipe.units.enable:
        run([*systemctl, "enable", *recipe.units.enable], environment)
    # For what is installed later, in a layer or on the node, as well.
    (root / "etc/dpkg/dpkg.cfg.d/cluster").write_text("\n".join([*LEFT_OUT, ""]))
    if recipe.load_modules:
        (root / "etc/modules-load.d/cluster.conf").write_text("\n".join([*recipe.load_modules, ""]))
    # systemd asks these whether /usr changed since the last start: it has not, and what it would do takes seconds.
    for top in ("etc", "var"):
        (root / top / ".updated").touch()


def compile_python(root: Path, salt: SaltEnvironment, environment: dict[str, str]) -> None:
    """Compile every module of the image's Python and of Salt's environment.

    Raises
    ------
    BuildError
        When one cannot be compiled.
    """
    for cached in root.rglob("__pycache__"):
        shutil.rmtree(cached)
    library = f"/usr/lib/python{salt.python}"
    trees = [library, "/usr/lib/python3/dist-packages", f"/{SALT}/lib/python{salt.python}/site-packages"]
    present = [tree for tree in trees if (root / tree[1:]).is_dir()]
    problems = compile_trees(root, present, environment, python=f"python{salt.python}")
    if problems:
        raise BuildError(problems[0])


def clean(root: Path) -> None:
    """Take out what a build leaves that says when and where it was."""
    for pattern in _LEFT_BEHIND:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def normalise(root: Path) -> None:
    """Leave the root filesystem as a node is to find it, the same for two builds of the same recipe."""
    clean(root)
    # Programs expect these to be there.
    for folder, mode in (
        ("var/log/salt", 0o750),
        ("var/cache/apt/archives/partial", 0o755),
        ("var/lib/apt/lists", 0o755),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder).chmod(mode)
    # Empty, not missing: a missing one means a first start, at which every preset would be applied.
    (root / "etc/machine-id").write_text("")
    for name in ("etc/hostname", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)
        (root / name).write_text("")


def _wheel_options(python: str) -> list[str]:
    newest = _GLIBC_MINOR.get(python, 36)
    options = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for minor in range(newest, 4, -1):
        options += ["--platform", f"manylinux_2_{minor}_x86_64"]
    return [*options, "--platform", "manylinux2014_x86_64", "--platform", "manylinux2010_x86_64"]


def _install(source: Path, target: Path, mode: int) -> None:
    if not source.is_file():
        raise BuildError(f"{source} is not there; the tree is incomplete")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)
