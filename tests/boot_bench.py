"""The boot service on loopback, with a clock that tests turn, for as long as a block runs.

Real HTTP, real record, real image store; the master's keys are a dict.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from bottleneck.profile import load_profile
from netboot.boot import http, progress_report
from netboot.boot.dhcp_log import Reader
from netboot.boot.service import BootService
from netboot.boot.settings import BootNode, Settings
from tests import boot_profile, fake_image, hostile

Result = TypeVar("Result")
FINGER = ":".join(["ab"] * 32)
MACS = {"node0": "02:77:00:00:00:10", "node1": "02:77:00:00:00:11"}
ADDRESSES = {"node0": "127.0.0.10", "node1": "127.0.0.11"}


@dataclass
class FakeKeys:
    """A master's keys."""

    accepted: dict[str, str] = field(default_factory=dict)
    broken: str = ""

    def admit(self, minion_id: str, pub: str) -> None:
        if self.broken:
            raise OSError(self.broken)
        self.accepted[minion_id] = pub

    def master_finger(self) -> str:
        return FINGER


class Bench:
    """A boot service in a thread of its own."""

    def __init__(self, folder: Path, images: bool = True, **boot: object) -> None:
        self.folder = folder
        self.keys = FakeKeys()
        self.macs_seen: dict[str, str] = {}
        self.connections: dict[str, int] = {}
        self.alive: set[str] = set()
        self.hearts: dict[str, float] = {}
        self.master_down = False
        self.now = 1_000_000.0
        self.announced: list[tuple[str, dict[str, Any]]] = []
        links = {name: {"interface": "eth0", "mac": mac, "address": ADDRESSES[name]} for name, mac in MACS.items()}
        control = {"address": "127.0.0.1", "interface": "lo"}
        described = boot_profile.described("bench", control, "127.0.0.0/24", links, boot)
        self.settings = Settings.of(load_profile(boot_profile.write(folder / "bench.yaml", described)))
        self.images = folder / "images"
        self.image = fake_image.publish(self.images, "bench") if images else None
        self.grace_seconds = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self._reader = Reader()

    def _connection(self, node: BootNode) -> int | None:
        return self.connections.get(node.name)

    async def _is_alive(self, node: BootNode) -> bool:
        if self.master_down:
            raise OSError("the master does not answer")
        return node.name in self.alive

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the service's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a method of the service in its own thread."""

        async def work() -> Result:
            return function(*arguments)

        return self.do(work())

    def start(self) -> None:
        """Start the service, or start it again where its record left off."""
        if not self._thread.is_alive():
            self._thread.start()

        async def serve() -> None:
            self.service = BootService(
                self.settings,
                images_directory=self.images,
                models_directory=self.images.with_name("models"),
                record_directory=self.folder / "boot",
                keys=self.keys,
                connection=self._connection,
                alive=self._is_alive,
                mac_of=self.macs_seen.get,
                announce=lambda tag, data: self.announced.append((tag, data)),
                clock=lambda: self.now,
                grace_seconds=self.grace_seconds,
                heart=lambda node: self.hearts.get(node.name),
            )
            self._runner = http.runner_of(self.service)
            await self._runner.setup()
            # The first time any port will do; after that it is the one that the nodes know.
            port = getattr(self, "port", 0)
            site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
            await site.start()
            assert self._runner.addresses
            self.port = int(self._runner.addresses[0][1])

        self.do(serve())
        self.settings = dataclasses.replace(self.settings, port=self.port)
        self.service.settings = self.settings

    def kill(self) -> None:
        """End the service as a crash does: nothing is saved on the way out."""

        async def stop() -> None:
            if self._runner:
                await self._runner.cleanup()

        self.do(stop())

    def stop(self) -> None:
        """End everything."""
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def close_excess(self) -> None:
        """Do what the service does by itself, twice a second."""
        assert self._runner
        self.call(http.close_excess, self._runner)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def node(self, name: str) -> hostile.Node:
        """Return a node that boots."""
        return hostile.Node(self.url, ADDRESSES[name], MACS[name])

    def log(self, *lines: str) -> None:
        """Have dnsmasq say something."""
        for line in lines:
            seen = self._reader.read(line)
            if seen:
                self.call(self.service.dhcp, seen)

    def asks(self, name: str = "node0", vendor: str = "PXEClient:Arch:00000:UNDI:002001", rest: str = "") -> None:
        """Have a node's firmware ask for an address."""
        prefix = "Nov 24 09:00:00 dnsmasq-dhcp[1]: 7"
        self.log(f"{prefix} vendor class: {vendor}", f"{prefix} DHCPDISCOVER(lo) {MACS[name]}{rest}")

    def stuck(self, name: str = "node0", after: float = 0.0) -> tuple[str, str]:
        """Let time pass; return the stage that a node is stuck at, and why."""
        self.now += after
        self.call(self.service.tick)
        view = self.call(progress_report.view, self.service.state, self.now, self.settings.deadlines_seconds)
        late = view["nodes"][name]["stuck"]
        return (late["stage"], late["cause"]) if late else ("", "")

    def reached(self, name: str = "node0") -> list[str]:
        """Return the stages that a node's newest boot has reached."""
        boot = self.service.state.nodes[name].boot
        return [entry.stage for entry in boot.reached] if boot else []


@contextlib.contextmanager
def bench(folder: Path, **options: Any) -> Iterator[Bench]:
    """Give a running boot service."""
    found = Bench(folder, **options)
    try:
        found.start()
        yield found
    finally:
        found.stop()
