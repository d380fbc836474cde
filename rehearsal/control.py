"""The control node's machine: a plain Debian with a disk, and three network cards.

One leads outside, through QEMU's own network: that is where Debian's archive is. One leads to
the laptop, one to the cluster; those two are in namespaces, and QEMU is given their open taps.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import threading
from pathlib import Path

from rehearsal.debian import DISK, INITRD, KERNEL, WHEELS
from rehearsal.machines import Network, end

MEMORY_MIB = 2560
_CLONE_NEWNET, _TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x40000000, 0x400454CA, 0x0002, 0x1000


def open_tap(namespace: str, name: str) -> int:
    """Return a descriptor of a tap in another network namespace; the tap is gone when it is closed."""
    found: list[int] = []
    failures: list[OSError] = []

    def work() -> None:
        try:
            # Of this thread alone, which ends with it.
            with Path("/run/netns", namespace).open() as handle:
                if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)
            tap = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
            found.append(tap)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return found[0]


class ControlMachine:
    """The virtual machine that becomes the control node.

    Parameters
    ----------
    debian
        Folder of `rehearsal.debian.plain_machine`.
    disk
        Its disk: a copy of the plain one, or one that was kept.
    """

    def __init__(self, debian: Path, disk: Path, folder: Path, office: Network, wire: Network) -> None:
        self.debian, self.disk = debian, disk
        self.console = folder / "control.console"
        self._log = folder / "control.qemu"
        self._office, self._wire = office, wire
        self._process: subprocess.Popen[bytes] | None = None

    def power_on(self) -> None:
        """Switch it on."""
        taps = [open_tap(self._office.name, "office"), open_tap(self._wire.name, "control")]
        self._wire.run("ip", "link", "set", "control", "master", self._wire.bridge, "up")
        self._office.run("ip", "link", "set", "office", "up")
        self._office.run("ip", "address", "replace", "10.98.0.1/24", "dev", "office")
        try:
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command(*taps),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=taps,
                    start_new_session=True,
                )
        finally:
            for tap in taps:
                os.close(tap)

    def _command(self, office: int, wire: int) -> list[str]:
        disks = []
        for name, path, options in (
            ("disk", self.disk, "cache=unsafe"),
            ("wheels", self.debian / WHEELS, "readonly=on"),
        ):
            disks += ["-drive", f"if=none,id={name},format=raw,file={path},{options}"]
            disks += ["-device", f"virtio-blk-pci,drive={name}"]
        cards = []
        for number, netdev in enumerate(("user", f"tap,fd={office}", f"tap,fd={wire}"), 0x10):
            kind, _, rest = netdev.partition(",")
            cards += ["-netdev", ",".join(filter(None, [kind, f"id=card{number}", rest]))]
            cards += [
                "-device",
                f"virtio-net-pci,netdev=card{number},addr={number:#x},mac=02:97:00:00:01:{number:02x},romfile=",
            ]
        return [
            "qemu-system-x86_64",
            *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2"),
            *("-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-vga", "none"),
            *("-serial", f"file:{self.console}", "-device", "virtio-rng-pci"),
            *("-kernel", str(self.debian / KERNEL), "-initrd", str(self.debian / INITRD)),
            # A machine that is given little time at its start takes its timer for broken, and panics.
            *("-append", "root=/dev/vda rw console=ttyS0 quiet no_timer_check panic=5"),
            *disks,
            *cards,
        ]

    def runs(self) -> bool:
        """Return whether it is switched on."""
        return self._process is not None and self._process.poll() is None

    def was_starved(self) -> bool:
        """Return whether its kernel says that it was given no time for many seconds."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "soft lockup" in text or "self-detected stall" in text

    def output_text(self) -> str:
        """Return the end of what it wrote to its console and what QEMU said."""
        texts = [path.read_text(errors="replace")[-1500:] for path in (self._log, self.console) if path.exists()]
        return "\n".join(texts)

    def wait_off(self, seconds: float) -> None:
        """Wait until it has switched itself off."""
        assert self._process
        self._process.wait(seconds)
        self._process = None

    def power_off(self) -> None:
        """Pull the plug."""
        if self._process:
            end(self._process, patience=5.0)
            self._process = None


def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk, its holes too."""
    target.unlink(missing_ok=True)
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)


def new_disk(debian: Path, disk: Path, authorized_keys: Path, host_key: Path) -> None:
    """Make the disk of a machine that was installed with an ssh key of its own and the laptop's public key."""
    copy_disk(debian / DISK, disk)
    # Written as root into the file system, without a mount.
    script = disk.with_suffix(".orders")
    files = {
        authorized_keys: "/root/.ssh/authorized_keys",
        host_key: "/etc/ssh/ssh_host_ed25519_key",
        host_key.with_suffix(".pub"): "/etc/ssh/ssh_host_ed25519_key.pub",
    }
    script.write_text("".join(f"write {path} {place}\n" for path, place in files.items()))
    try:
        done = subprocess.run(["debugfs", "-w", "-f", script, disk], capture_output=True, text=True, check=True)
    finally:
        script.unlink()
    failed = [line for line in done.stderr.splitlines() if "File not found" in line or "already exists" in line]
    if failed:
        raise RuntimeError(f"the disk could not be written: {failed[0]}")


def make_key(path: Path) -> None:
    """Make an ssh key without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "rehearsal", "-f", path], check=True)
