"""Debian's archive as this machine reaches it, and the root filesystem that is made from it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from netboot.image.commands import BuildError, Step, clean_environment, run
from netboot.image.recipe import Package, Recipe, RootSource, read_lock

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Documentation, and every language but English, is of no use on a node. Copyright files stay.
LEFT_OUT = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/bug/*",
    "path-exclude=/usr/share/zoneinfo/right/*",
)
# In a root folder documentation stays: what comes with a package as documentation may be what somebody runs.
LEFT_OUT_OF_FOLDERS = tuple(option for option in LEFT_OUT if "/usr/share/doc/" not in option)
_STEP = re.compile(r"^I: (?P<what>[a-z].*?)(\.\.\.)?$")


def machine_sources(recipe: Recipe) -> list[str]:
    """Return one-line apt sources for the recipe's suite, at the addresses that this machine's own apt uses.

    Nothing when its apt knows none of Debian: then mmdebstrap's default holds.
    """
    form = "$(LABEL) $(REPO_URI)"
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, str] = {}
    for line in asked.stdout.splitlines():
        label, _, address = line.rpartition(" ")
        found.setdefault(label, address)
    if "Debian" not in found:
        return []
    lines = [_line(recipe, found["Debian"], recipe.suite), _line(recipe, found["Debian"], f"{recipe.suite}-updates")]
    if "Debian-Security" in found:
        lines.append(_line(recipe, found["Debian-Security"], f"{recipe.suite}-security"))
    return lines


def make_root(recipe: Recipe, root: Path, temporary: Path, on_step: Step) -> tuple[dict[str, str], list[str]]:
    """Make the root filesystem; return its packages' versions and the sources they came from.

    Raises
    ------
    BuildError
        When a package is not to be had, or the versions are not those of the lock.
    """
    lock = read_lock(Path(recipe.lock)) if recipe.lock else {}
    sources = recipe.sources or machine_sources(recipe)
    argv: list[str | Path] = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--architectures={recipe.architecture}",
        f"--components={','.join(recipe.components)}",
        "--aptopt=APT::Install-Recommends false",
        "--aptopt=Acquire::Retries 5",
        "--aptopt=Acquire::Languages none",
        *(f"--dpkgopt={option}" for option in LEFT_OUT),
        *_past_their_date(recipe.accept_expired),
        f"--include={','.join([recipe.kernel.package, *recipe.packages])}",
    ]
    if lock:
        # Above 1000 apt goes back to an older version, too.
        pins = "".join(
            f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n" for name, version in lock.items()
        )
        preferences = temporary / "pins"
        preferences.write_text(pins, encoding="utf-8")
        argv.append(f"--setup-hook=copy-in {preferences} /etc/apt/preferences.d/")
        argv.append('--customize-hook=rm -f "$1/etc/apt/preferences.d/pins"')
    environment = clean_environment(recipe.source_date_epoch, temporary)
    # The image's initramfs is our own; without this the kernel's package makes another.
    environment["INITRD"] = "No"

    def on_line(text: str) -> None:
        step = _STEP.match(text)
        if step:
            on_step(step["what"])

    _bootstrap([*argv, recipe.suite, root, *sources], environment, on_line)
    packages = installed(root, environment)
    if lock:
        _check_lock(lock, packages, recipe.lock or "")
    return packages, sources


def make_root_folder(source: RootSource, recipe: Recipe, folder: Path, temporary: Path) -> None:
    """Make a root folder of Debian packages of any suite, from the archive that this machine's own apt uses.

    Raises
    ------
    BuildError
        When a package is not to be had.
    """
    other = recipe.model_copy(update={"suite": source.suite, "components": ["main"]})
    sources = recipe.sources if recipe.suite == source.suite and recipe.sources else machine_sources(other)
    argv: list[str | Path] = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--architectures={recipe.architecture}",
        *_past_their_date(source.accept_expired or recipe.accept_expired),
        "--aptopt=APT::Install-Recommends false",
        "--aptopt=Acquire::Retries 5",
        "--aptopt=Acquire::Languages none",
        *(f"--dpkgopt={option}" for option in LEFT_OUT_OF_FOLDERS),
        f"--include={','.join(source.packages)}",
    ]
    _bootstrap([*argv, source.suite, folder, *sources], clean_environment(recipe.source_date_epoch, temporary))


def _past_their_date(accepted: bool) -> list[str]:
    """Return the option by which mmdebstrap's apt takes lists of packages that have run out, as a snapshot's have."""
    return ['--aptopt=Acquire::Check-Valid-Until "false"'] if accepted else []


def _bootstrap(argv: list[str | Path], environment: dict[str, str], on_line: Step | None = None) -> None:
    try:
        run(argv, environment, on_line)
    except BuildError as error:
        if " is expired" in str(error):
            raise BuildError(f"{error} When the mirror is a snapshot: --accept-expired") from error
        raise


def installed(root: Path, environment: dict[str, str]) -> dict[str, str]:
    """Return package -> version."""
    form = "${db:Status-Abbrev} ${Package} ${Version}\n"
    lines = run(["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", f"--showformat={form}"], environment)
    return {name: version for state, name, version in (line.split() for line in lines if line.strip()) if state == "ii"}


def install_packages(packages: list[Package], root: Path, recipe: Recipe) -> dict[str, str]:
    """Install packages, with what they depend on, into a root filesystem; return all versions that it has then.

    This machine's apt fetches, with its network and its certificates; the root's own installs.
    """
    environment = clean_environment(recipe.source_date_epoch) | {"INITRD": "No"}
    outside = [
        "apt-get",
        "-q",
        *("-o", f"Dir={root}", "-o", f"Dir::State::status={root}/var/lib/dpkg/status"),
        *("-o", f"APT::Architecture={recipe.architecture}"),
        *("-o", "Acquire::Languages=none", "-o", "Acquire::Retries=5"),
        *(["-o", "Acquire::Check-Valid-Until=false"] if recipe.accept_expired else []),
    ]
    install = ["install", "--yes", "--no-install-recommends", "-o", "Debug::NoLocking=true"]
    run([*outside, "update"], environment)
    run([*outside, *install, "--download-only", *packages], environment)
    # Nothing that is installed starts: there is no system here to start it in.
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        run(["chroot", root, "apt-get", "-q", *install, "--no-download", *packages], environment)
    finally:
        policy.unlink()
    return installed(root, environment)


def _line(recipe: Recipe, address: str, suite: str) -> str:
    return f"deb [signed-by={KEYRING}] {address.rstrip('/')} {suite} {' '.join(recipe.components)}"


def _check_lock(lock: dict[str, str], packages: dict[str, str], name: str) -> None:
    wrong = [
        f"{each} {packages[each]}, locked {lock[each]}"
        for each in sorted(packages)
        if each in lock and packages[each] != lock[each]
    ]
    wrong += [f"{each} is not locked" for each in sorted(packages) if each not in lock]
    wrong += [f"{each} is locked and was not installed" for each in sorted(lock) if each not in packages]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise BuildError(f"the packages are not those of {name}: {'; '.join(wrong[:5])}{more}")
