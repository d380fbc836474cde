"""A provisioning network in a namespace of its own, and virtual machines that boot from it.

Nothing reaches the host's own network: the bridge, the taps, dnsmasq, the master and the
machines all live in the namespace, and end with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bottleneck.profile import load_profile
from netboot.boot import rendering, storage
from netboot.boot.record import State
from netboot.boot.settings import Settings

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.prefix) / "bin"
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE.fd")
FIRMWARE_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS.fd")
EFI_ROM = Path("/usr/lib/ipxe/qemu/efi-virtio.rom")
MEMORY_MIB = 1024
PREFIX = "netboot"


@dataclass
class Network:
    """The namespace with the control node's bridge."""

    name: str
    bridge: str
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def up(self, addresses: Sequence[str]) -> None:
        """Make the namespace; one that a crash left under this name is taken away first."""
        self.down()
        etc = Path("/etc/netns") / self.name
        etc.mkdir(parents=True)
        # Without a resolver Salt's core grains wait 10 s, twice.
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
        _run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", self.bridge, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        for address in addresses:
            self.run("ip", "addr", "add", address, "dev", self.bridge, *(["nodad"] if ":" in address else []))
        self.run("ip", "link", "set", self.bridge, "up")

    def down(self) -> None:
        """End everything in the namespace, and the namespace."""
        for child in reversed(self._children):
            end(child)
        self._children.clear()
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)
        shutil.rmtree(Path("/etc/netns") / self.name, ignore_errors=True)

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` in the namespace."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace to its end."""
        return _run(*self.command(*argv), check=check, timeout=timeout)

    def start(self, log: Path, *argv: str) -> subprocess.Popen[bytes]:
        """Start a program in the namespace, in a session of its own."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                self.command(*argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._children.append(child)
        return child

    def tap(self, name: str) -> None:
        """Make a port of the bridge for a virtual machine."""
        self.run("ip", "tuntap", "add", "dev", name, "mode", "tap")
        self.run("ip", "link", "set", name, "master", self.bridge, "up")


def _run(*argv: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or finished.returncode == 0, f"{' '.join(argv)}: {finished.stderr.strip() or finished.stdout}"
    return finished


def end(child: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a program and everything in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
            return


@dataclass
class ControlNode:
    """Master with the boot engine, dnsmasq, and the profile they read."""

    network: Network
    folder: Path
    profile: Path
    images: Path

    def start(self) -> None:
        """Start dnsmasq and the master."""
        settings = Settings.of(load_profile(self.profile))
        boot = self.folder / "netboot"
        rendering.write_all(settings, boot, log_file=self.folder / "dnsmasq.log", user="root")
        self.network.start(
            self.folder / "dnsmasq.out", "dnsmasq", "--keep-in-foreground", f"--conf-file={boot / 'dnsmasq.conf'}"
        )
        configuration = self.folder / "salt"
        configuration.mkdir()
        (configuration / "master").write_text(yaml.safe_dump(self._master(settings)))
        self.network.start(self.folder / "master.out", str(BIN / "salt-master"), "-c", str(configuration))
        self.settings = settings

    def _master(self, settings: Settings) -> dict[str, Any]:
        return {
            "interface": settings.address,
            "user": "root",
            # Salt would put every path below it, whole ones too.
            "root_dir": "/",
            "pki_dir": str(self.folder / "pki"),
            "cachedir": str(self.folder / "cache"),
            "sock_dir": str(self.folder / "run"),
            "pidfile": str(self.folder / "master.pid"),
            "log_file": str(self.folder / "master.log"),
            "log_level_logfile": "info",
            "key_logfile": str(self.folder / "key.log"),
            "auto_accept": False,
            "worker_threads": 2,
            "timeout": 20,
            "file_roots": {"base": [str(REPOSITORY / "salt")]},
            "pillar_roots": {"base": [str(REPOSITORY / "pillar")]},
            "module_dirs": [str(REPOSITORY)],
            "cluster_profile": str(self.profile),
            "cluster_store": str(self.folder / "store.db"),
            "cluster_directory": str(self.folder / "cluster"),
            "cluster_images": str(self.images),
            "enable_fqdns_grains": False,
            "enable_gpu_grains": False,
            "engines": [{"boot": {"dhcp_log": str(self.folder / "dnsmasq.log")}}],
        }

    def listens(self) -> bool:
        """Return whether the boot service answers."""
        port = f":{self.settings.port}"
        return port in self.network.run("ss", "-Hltn").stdout

    def kill_boot_service(self) -> None:
        """Kill the process that serves HTTP; the master starts it again, as it would anywhere."""
        found = self.network.run("ss", "-Hltnp", "sport", "=", f":{self.settings.port}").stdout
        pid = int(found.partition("pid=")[2].partition(",")[0])
        os.kill(pid, signal.SIGKILL)

    def record(self) -> State:
        """Return the boot record."""
        return storage.read(self.folder / "cluster" / "boot") or State(nodes={})

    def salt(self, target: str, function: str, *arguments: str, timeout: float = 300) -> dict[str, Any]:
        """Run `salt` and return each minion's answer."""
        argv = ["-c", str(self.folder / "salt"), "--out=json", "--out-indent=-1", f"--timeout={timeout:.0f}"]
        finished = self.network.run(
            str(BIN / "salt"), *argv, target, function, *arguments, check=False, timeout=timeout + 60
        )
        answers: dict[str, Any] = {}
        for line in finished.stdout.splitlines():
            with contextlib.suppress(ValueError):
                parsed = json.loads(line)
                if isinstance(parsed, dict):
                    answers.update(parsed)
        return answers

    def runner(self, function: str, *arguments: str) -> Any:
        """Run a runner and return what it returned."""
        argv = ["-c", str(self.folder / "salt"), "--out=json", "--log-level=error", function, *arguments]
        return json.loads(self.network.run(str(BIN / "salt-run"), *argv).stdout)

    def accepted(self) -> dict[str, str]:
        """Return minion id -> public key, of every accepted key."""
        folder = self.folder / "pki" / "minions"
        return {path.name: path.read_text().strip() for path in folder.glob("*") if not path.name.startswith(".")}


@dataclass
class Machine:
    """A virtual machine without a disk."""

    network: Network
    folder: Path
    name: str
    mac: str
    uefi: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.console = self.folder / f"{self.name}.console"
        self._process: subprocess.Popen[bytes] | None = None
        self.network.tap(self.name)

    def power_on(self) -> None:
        """Switch it on."""
        netdev = f"tap,id=wire,ifname={self.name},script=no,downscript=no"
        card = f"virtio-net-pci,netdev=wire,mac={self.mac},bootindex=1"
        firmware: list[str] = []
        if self.uefi:
            variables = self.folder / f"{self.name}.vars"
            shutil.copyfile(FIRMWARE_VARIABLES, variables)
            firmware = ["-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}"]
            firmware += ["-drive", f"if=pflash,format=raw,file={variables}"]
            # The firmware's own driver and PXE: it loads iPXE by TFTP, as a board does.
            card += ",romfile="
        self._process = self.network.start(
            self.folder / f"{self.name}.qemu",
            "qemu-system-x86_64",
            *("-machine", "q35,graphics=off", "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "2"),
            *("-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-vga", "none"),
            *("-serial", f"file:{self.console}", "-device", "virtio-rng-pci", "-boot", "n,reboot-timeout=5000"),
            *("-netdev", netdev, "-device", card, "-uuid", f"00000000-0000-4000-8000-{self.mac.replace(':', '')}"),
            *firmware,
            *self.extra,
        )

    def gave_up(self) -> bool:
        """Return whether its firmware has tried everything and waits for somebody to press a key."""
        return self.uefi and "Shell>" in self.said()

    def power_cycle(self) -> None:
        """Switch it off and on, as whoever stands before it would."""
        self.power_off()
        self.console.rename(self.console.with_suffix(f".{time.time():.0f}"))
        self.power_on()

    def power_off(self) -> None:
        """Pull the plug."""
        if self._process:
            end(self._process, patience=5.0)
            self._process = None

    def said(self) -> str:
        """Return what it wrote to its serial line."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""


def sweep() -> None:
    """Take away the networks of runs that were killed."""
    for line in _run("ip", "netns", "list").stdout.splitlines():
        name = line.split()[0]
        pid = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            Network(name, "").down()


@contextlib.contextmanager
def namespace(bridge: str, addresses: Sequence[str]) -> Iterator[Network]:
    """Give a network that is gone afterwards."""
    sweep()
    network = Network(f"{PREFIX}{os.getpid()}", bridge)
    try:
        network.up(addresses)
        yield network
    finally:
        network.down()
