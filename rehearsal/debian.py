"""A plain Debian machine's disk, and the Python packages that a control node will ask for, both kept.

The disk has what an installation of Debian with an ssh server has, and nothing of ours. The
packages are built in the same Debian, at this machine's own speed: under emulation pip would
compile for a quarter of an hour.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bottleneck import atomic_files
from bottleneck.profile.paths import CACHE_DIRECTORY
from netboot.image.archive import machine_sources
from netboot.image.commands import clean_environment, run
from netboot.image.recipe import load_recipe

REPOSITORY = Path(__file__).parents[1]
CACHE = Path(CACHE_DIRECTORY) / "rehearsal"
SUITE = "trixie"
PACKAGES = (
    "ca-certificates",
    "dbus",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "openssh-server",
    "procps",
    "python3",
    "rsync",
    "systemd-sysv",
    "udev",
)
# What pip needs to make wheels of the packages that are published as source alone.
BUILDERS = ("g++", "python3-dev", "python3-venv")
# The machine's network cards, as systemd names them after their slots.
OUTSIDE, OFFICE, CLUSTER = "enp0s16", "enp0s17", "enp0s18"
LAPTOP_ADDRESS, CONTROL_ADDRESS = "10.98.0.1", "10.98.0.2"
OUTSIDE_RESOLVER = "10.0.2.3"
DISK_BYTES = 12 << 30
DISK, KERNEL, INITRD, WHEELS = "disk.raw", "vmlinuz", "initrd.img", "wheels.squashfs"
# What setup/control-node asks pip for.
LOCKS = ("build.lock", "control-node.lock", "source.lock")
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
Say = Callable[[str], None]


def plain_machine(say: Say) -> Path:
    """Return the folder with the disk, its kernel and the wheels; made once for each state of what goes in."""
    sources = machine_sources(load_recipe())
    locks = [(REPOSITORY / "setup" / name).read_text() for name in LOCKS]
    # What makes it counts as well.
    makers = [inspect.getsource(each) for each in (build, _installation, _wheels)]
    inputs = [sources, locks, PACKAGES, BUILDERS, DISK_BYTES, makers]
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    folder = CACHE / f"debian-{key}"
    if folder.is_dir():
        return folder
    with atomic_files.new_folder(folder) as partial:
        # Mounts and processes are in namespaces of their own, and end with them, whatever ends us.
        with _builder(partial, sources) as builder:
            assert builder.stdout
            for line in builder.stdout:
                say(line.strip())
        if builder.returncode:
            raise RuntimeError("the plain Debian machine could not be made; its last line says why")
    return folder


def _builder(folder: Path, sources: list[str]) -> subprocess.Popen[str]:
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
    return subprocess.Popen(
        [*argv, "-m", "rehearsal.debian", str(folder), json.dumps(sources)],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def build(folder: Path, sources: list[str]) -> None:
    """Make disk, kernel and wheels in `folder`; called inside the namespaces."""
    scratch = folder / "scratch"
    scratch.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6g,mode=0755", "tmpfs", scratch], check=True)
    root, temporary = scratch / "root", scratch / "tmp"
    temporary.mkdir(mode=0o1777)
    environment = clean_environment(None, temporary)
    print("installing Debian", flush=True)
    included = f"--include={','.join(PACKAGES)}"
    options = ["--mode=root", "--variant=minbase", "--format=directory", "--aptopt=APT::Install-Recommends false"]
    run(["mmdebstrap", *options, "--aptopt=Acquire::Retries 5", included, SUITE, root, *sources], environment)
    for name, pattern in ((KERNEL, "boot/vmlinuz-*"), (INITRD, "boot/initrd.img-*")):
        (found,) = root.glob(pattern)
        shutil.copyfile(found, folder / name)
    _installation(root)
    for key in root.glob("etc/ssh/ssh_host_*"):
        key.unlink()
    print("its disk", flush=True)
    with (folder / DISK).open("wb") as disk:
        disk.truncate(DISK_BYTES)
    run(["mke2fs", "-q", "-t", "ext4", "-F", "-d", root, folder / DISK], environment)
    print("wheels of what a control node asks pip for", flush=True)
    wheels = _wheels(root, scratch)
    run(["mksquashfs", wheels, folder / WHEELS, "-quiet", "-no-progress", "-comp", "zstd"], environment)
    subprocess.run(["umount", "--lazy", scratch], check=True)
    scratch.rmdir()


def _installation(root: Path) -> None:
    """Answer what Debian's installer asks: name, network, archive; the wheels stand in for PyPI."""
    (root / "etc/hostname").write_text("debian\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 debian\n")
    (root / "etc/machine-id").write_text("")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n/dev/vdb /srv/wheels squashfs ro,nofail 0 0\n")
    (root / "etc/resolv.conf").write_text(f"nameserver {OUTSIDE_RESOLVER}\n")
    (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /srv/wheels\n")
    (root / "etc/apt/apt.conf.d/90machine").write_text(_apt_options())
    (root / "srv/wheels").mkdir(parents=True)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    networks = root / "etc/systemd/network"
    (networks / "10-outside.network").write_text(f"[Match]\nName={OUTSIDE}\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\n")
    office = f"[Match]\nName={OFFICE}\n[Network]\nAddress={CONTROL_ADDRESS}/24\nIPv6AcceptRA=no\n"
    (networks / "10-office.network").write_text(office)
    subprocess.run(["chroot", root, "systemctl", "enable", "systemd-networkd", "ssh"], check=True, capture_output=True)


def _apt_options() -> str:
    """Return how this machine's own apt reaches the archive, where that is not apt's default."""
    asked = ("Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date")
    dump = subprocess.run(["apt-config", "dump", *asked], capture_output=True, text=True, check=False).stdout
    return "".join(f"{line}\n" for line in dump.splitlines() if not line.endswith('"";'))


def _wheels(root: Path, scratch: Path) -> Path:
    """Build them in the same Debian, over a layer that is thrown away."""
    upper, work, merged = (scratch / name for name in ("upper", "work", "merged"))
    for each in (upper, work, merged):
        each.mkdir()
    layers = f"lowerdir={root},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", merged], check=True)
    for name in ("dev", "proc"):
        subprocess.run(["mount", "--rbind", f"/{name}", merged / name], check=True)
    # The disk's own pip.conf names the wheels that are to be made.
    own = {"PIP_CERT": f"/{CERTIFICATES}", "PIP_CONFIG_FILE": os.devnull}
    environment = {**clean_environment(None), **own}
    # Folders of this machine mean nothing in there.
    for name in ("PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        environment.pop(name, None)
    index = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    if index.returncode == 0 and index.stdout.strip():
        environment.setdefault("PIP_INDEX_URL", index.stdout.strip())
    # This machine's name servers, and the authorities that it trusts.
    for name in ("etc/resolv.conf", CERTIFICATES):
        shutil.copyfile(f"/{name}", merged / name)
    chroot = ["chroot", merged]
    (merged / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (merged / "usr/sbin/policy-rc.d").chmod(0o755)
    run([*chroot, "apt-get", "update", "-q"], environment)
    run([*chroot, "apt-get", "install", "-y", "-q", "--no-install-recommends", *BUILDERS], environment)
    shutil.copyfile(f"/{CERTIFICATES}", merged / CERTIFICATES)
    build = merged / "wheels"
    build.mkdir()
    for name in LOCKS:
        shutil.copyfile(REPOSITORY / "setup" / name, build / name)
    run([*chroot, "python3", "-m", "venv", "/srv/venv"], environment)
    for name in LOCKS:
        asked = ["--no-deps", "--require-hashes", "-r", f"/wheels/{name}"]
        run([*chroot, "/srv/venv/bin/pip", "wheel", "-q", "--wheel-dir", "/wheels", *asked], environment)
    for name in LOCKS:
        (build / name).unlink()
    return build


def main() -> int:
    """Build what the command line says."""
    folder, sources = sys.argv[1:]
    try:
        build(Path(folder), json.loads(sources))
    except Exception as error:
        print(f"failed: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
