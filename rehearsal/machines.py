"""Networks in namespaces of their own, and virtual machines on them, for the netboot tests and the rehearsal.

Nothing reaches the host's own network: bridges, taps, and the programs and machines on them
live in the namespaces, and end with them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE.fd")
FIRMWARE_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS.fd")
MEMORY_MIB = 1024
# Names of namespaces: what they are for, then the process that made them.
_OURS = re.compile(r"(?:netboot|rehearsal)(\d+)(?:-[a-z]+)?")


def wait_for(condition: Callable[[], Any], seconds: float, what: str, interval: float = 0.5) -> Any:
    """Wait until `condition` holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(interval)
    return found


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
        if not self.bridge:
            return
        self.run("ip", "link", "add", self.bridge, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        for address in addresses:
            self.run("ip", "addr", "add", address, "dev", self.bridge, *(["nodad"] if ":" in address else []))
        self.run("ip", "link", "set", self.bridge, "up")

    def further_wire(self, bridge: str) -> Network:
        """Return one more wire in the same namespace; it is gone with it."""
        self.run("ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        self.run("ip", "link", "set", bridge, "up")
        return Network(self.name, bridge)

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
class Machine:
    """A virtual machine without a disk."""

    network: Network
    folder: Path
    name: str
    mac: str
    uefi: bool = False
    extra: tuple[str, ...] = ()
    memory_mib: int = MEMORY_MIB
    # The oldest processor that an image has to run on, unless said otherwise.
    processor: str = "qemu64"
    # A second card: the wire that it is on, and its MAC.
    second: tuple[Network, str] | None = None

    def __post_init__(self) -> None:
        self.console = self.folder / f"{self.name}.console"
        self._process: subprocess.Popen[bytes] | None = None
        self.network.tap(self.name)
        if self.second:
            self.second[0].tap(self._second_tap)

    @property
    def _second_tap(self) -> str:
        return f"{self.name}-2"

    def _second_card(self) -> list[str]:
        if self.second is None:
            return []
        netdev = f"tap,id=second,ifname={self._second_tap},script=no,downscript=no"
        # Nothing boots from it.
        return ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=second,mac={self.second[1]},romfile="]

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
            *("-machine", "q35,graphics=off", "-accel", "tcg,thread=multi", "-cpu", self.processor, "-smp", "2"),
            *("-m", str(self.memory_mib), "-nodefaults", "-display", "none", "-vga", "none"),
            *("-serial", f"file:{self.console}", "-device", "virtio-rng-pci", "-boot", "n,reboot-timeout=5000"),
            *("-netdev", netdev, "-device", card, "-uuid", f"00000000-0000-4000-8000-{self.mac.replace(':', '')}"),
            *self._second_card(),
            *firmware,
            *self.extra,
        )

    def gave_up(self) -> bool:
        """Return whether its firmware has tried everything and waits for somebody to press a key."""
        return self.uefi and "Shell>" in self.output_text()

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

    def output_text(self) -> str:
        """Return what it wrote to its serial line."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""


def sweep() -> None:
    """Take away the networks of runs that were killed."""
    for line in _run("ip", "netns", "list").stdout.splitlines():
        name = line.split()[0]
        found = _OURS.fullmatch(name)
        if found and not Path(f"/proc/{found[1]}").exists():
            Network(name, "").down()


@contextlib.contextmanager
def namespace(bridge: str, addresses: Sequence[str], name: str | None = None) -> Iterator[Network]:
    """Give a network that is gone afterwards; `bridge` may be empty for one without."""
    sweep()
    network = Network(name or f"netboot{os.getpid()}", bridge)
    try:
        network.up(addresses)
        yield network
    finally:
        network.down()
