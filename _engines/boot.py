"""
Boot the nodes: scripts, images, the record of every boot, and enrolment.

Configured on the master with ``engines: [{boot: {}}]``. What is known of the boots is a value
(``netboot.boot.state``) and who may enrol is judged by ``netboot.boot.enrolment``; this module
gives the service what only Salt has: the master's keys, and whether a minion answers.

No key is touched because of an event: any accepted minion can send any event under any name.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
import os
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import salt.cache
import salt.client
import salt.utils.crypt
import salt.utils.event

from bottleneck.profile import load_profile
from bottleneck.telemetry.database import StoreError
from bottleneck.telemetry.store import Store
from control import node_keys, records, sealed_answers

try:
    from netboot.boot import http, kernel_tables
    from netboot.boot.events import Deploying, Troubled
    from netboot.boot.service import BootService
    from netboot.boot.settings import Settings

    HAS_SERVICE = True
except ImportError as error:
    HAS_SERVICE = False
    REASON = str(error)

if TYPE_CHECKING:
    from loader_dunders import __opts__

    from netboot.boot.settings import BootNode
    from netboot.boot.stages import BootStage

log = logging.getLogger(__name__)

PING_SECONDS = 3
PINGS = 3
# A minion whose master comes back is connected again within seconds; this is some of them.
GRACE_SECONDS = 45.0
APPLIED_FUNCTIONS = ("state.apply", "state.highstate")
STORE_TRIES = 3
# How long what was read of the telemetry's store is good for: a flood of requests reads it no more often.
HEARTS_SECONDS = 2.0
# Moment in the deployment's record -> the stage of a boot that it is.
DEPLOYMENT_STAGES: dict[str, "BootStage"] = {"ready": "engine_ready", "first_token": "first_token"}


def __virtual__() -> str | tuple[bool, str]:
    return "boot" if HAS_SERVICE else (False, f"the boot engine needs the control extra: {REASON}")


def start(
    images: str | None = None,
    models: str | None = None,
    dhcp_log: str = "/var/log/cluster/dnsmasq.log",
    address: str | None = None,
    port: int | None = None,
) -> None:
    """
    Run the boot service until the master ends.

    images
        the image store; the master's option ``cluster_images`` when left out
    models
        models that nodes fetch; the master's option ``cluster_models`` when left out
    dhcp_log
        dnsmasq's log file
    address, port
        where to listen; the profile's when left out
    """
    profile = load_profile(__opts__["cluster_profile"])
    settings = Settings.of(profile)
    if address or port:
        settings = dataclasses.replace(settings, address=address or settings.address, port=port or settings.port)
    store = images or __opts__.get("cluster_images", "/var/lib/cluster/images")
    kept = models or __opts__.get("cluster_models", "/var/lib/cluster/models")
    asyncio.run(_run(settings, pathlib.Path(store), pathlib.Path(kept), pathlib.Path(dhcp_log)))


async def _run(settings: "Settings", images: pathlib.Path, models: pathlib.Path, dhcp_log: pathlib.Path) -> None:
    master = Master(__opts__, settings)
    service = BootService(
        settings,
        images_directory=images,
        models_directory=models,
        record_directory=records.path_of(__opts__, records.BOOT),
        keys=SaltKeys(__opts__),
        connection=master.connection,
        alive=master.alive,
        mac_of=kernel_tables.mac_of,
        announce=master.announce,
        grace_seconds=GRACE_SECONDS,
        heart=master.heart,
    )
    master.service = service
    master.listen(asyncio.get_running_loop())
    await http.run(service, dhcp_log, [master.see_deployment, master.see_minions])


class SaltKeys:
    """The master's key store, by Salt's own cache of keys."""

    def __init__(self, opts: Mapping[str, Any]) -> None:
        self._opts = opts
        self._cache = salt.cache.Cache(opts, driver=opts["keys.cache_driver"])

    def admit(self, minion_id: str, pub: str) -> None:
        """Make ``pub`` the one key of ``minion_id``: accepted, nothing pending or denied beside it."""
        wanted = {"state": "accepted", "pub": pub}
        # What the node seals from here on, it seals with a key that whoever had the id before does not have.
        node_keys.renew(self._opts, minion_id, keep_former=False)
        for _ in range(STORE_TRIES):
            self._cache.store("keys", minion_id, wanted)
            # While the driver replaces the file, anyone's key can become the pending one: look again.
            found = self._cache.fetch("keys", minion_id)
            if found and found.get("state") == "accepted" and found.get("pub") == pub:
                break
        else:
            raise OSError(f"the key of {minion_id} did not stay in the store")
        if self._cache.fetch("denied_keys", minion_id):
            self._cache.flush("denied_keys", minion_id)
        # Whoever had the old key has the old session with it: the next message makes a new one.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._opts["cachedir"], "sessions", minion_id))

    def master_finger(self) -> str:
        """Return the fingerprint that a minion's ``master_finger`` is compared with."""
        path = os.path.join(self._opts["pki_dir"], "master.pub")
        finger = salt.utils.crypt.pem_finger(path, sum_type=self._opts["hash_type"])
        if not finger:
            raise OSError(f"the master has no public key at {path}")
        return str(finger)


class Master:
    """Ask the master about the nodes: who is connected, who answers, whose states are applied."""

    def __init__(self, opts: Mapping[str, Any], settings: "Settings") -> None:
        self._opts = opts
        self._settings = settings
        # The record that was seen last, or why it could not be read.
        self._seen: dict[str, Any] | str | None = None
        # When the store was read last, and what it had then.
        self._hearts: tuple[float, dict[str, float]] = (-math.inf, {})
        self._service: BootService | None = None

    @property
    def service(self) -> "BootService":
        """The boot service, which is made with this master's functions."""
        if self._service is None:
            raise RuntimeError("the master has no boot service yet")
        return self._service

    @service.setter
    def service(self, service: "BootService") -> None:
        self._service = service

    def connection(self, node: "BootNode") -> int | None:
        """Return which connection a node's minion has to the master, or None: then there is nobody to ask."""
        # A proxied network gives addresses that we do not know.
        if self._settings.dhcp != "serve":
            return 0
        return kernel_tables.connection(node.address, int(self._opts["publish_port"]))

    def heart(self, node: "BootNode") -> float | None:
        """Return when the newest samples of a node were taken, of those that the telemetry engine stored."""
        now = time.monotonic()
        if now - self._hearts[0] >= HEARTS_SECONDS:
            # A store that cannot be read says nothing of anyone.
            found: dict[str, float] = {}
            with contextlib.suppress(StoreError, OSError, KeyError), Store(self._opts["cluster_store"], 1.0) as store:
                found = store.last_seen()
            self._hearts = (now, found)
        return self._hearts[1].get(node.name)

    async def alive(self, node: "BootNode") -> bool:
        """Return whether a node's minion answers."""
        # A board whose power was cut leaves its connection behind, so a connection alone is no sign of life. A busy
        # minion may miss one question; taken for dead, it would be replaced by whoever asks in its name.
        for _ in range(PINGS):
            if await asyncio.to_thread(self._ping, node.minion_id):
                return True
        return False

    def _ping(self, minion_id: str) -> bool:
        with salt.client.LocalClient(mopts=self._opts) as client:
            return sealed_answers.may_be_up(self._opts, client, minion_id, PING_SECONDS)

    def announce(self, tag: str, data: dict[str, Any]) -> None:
        """Fire an event on the master's bus without delaying the boots: a busy master lets its senders wait."""
        fired = asyncio.get_running_loop().run_in_executor(None, self._fire, tag, data)
        fired.add_done_callback(functools.partial(_log_failure, tag))

    def _fire(self, tag: str, data: dict[str, Any]) -> None:
        with salt.utils.event.get_master_event(self._opts, self._opts["sock_dir"], listen=False) as bus:
            bus.fire_event(data, tag)

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Follow the jobs of the nodes, to see when their states are applied."""
        threading.Thread(target=self._follow, args=(loop,), daemon=True).start()

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        nodes = {node.minion_id: node.name for node in self._settings.nodes.values()}
        with salt.utils.event.get_master_event(self._opts, self._opts["sock_dir"], listen=True) as bus:
            while True:
                event = bus.get_event(wait=5, tag="salt/job/", full=True, auto_reconnect=True)
                if not event or "/ret/" not in event["tag"]:
                    continue
                data, minion = event["data"], event["tag"].rpartition("/")[2]
                if minion not in nodes or not isinstance(data, dict) or data.get("fun") not in APPLIED_FUNCTIONS:
                    continue
                loop.call_soon_threadsafe(self._applied, nodes[minion], self._readable(minion, data))

    def _readable(self, minion: str, data: Mapping[str, Any]) -> object:
        """Return what an apply returned; one that a person gave with Salt's own command is not sealed."""
        returned = data.get("return")
        try:
            return sealed_answers.opened(self._opts, minion, returned).get("content")
        except sealed_answers.AnswerError:
            return returned

    def _applied(self, node: str, returned: object) -> None:
        # This is for the eye: a minion can make it up, and nothing depends on it.
        failed = (
            [str(state.get("__id__", "")) for state in returned.values() if state.get("result") is False]
            if isinstance(returned, dict) and all(isinstance(state, dict) for state in returned.values())
            else [str(returned)[:100]]
        )
        if failed:
            text = f"{len(failed)} states failed: {', '.join(failed[:3])}"
            self.service.tell(Troubled(self.service.clock(), node, "applied", text))
        else:
            self.service.reached(node, "applied", self.service.clock())

    async def see_minions(self) -> None:
        """Report nodes that are enrolled and not configured when their minion is not connected."""
        for node in self._settings.nodes.values():
            boot = self.service.state.nodes[node.name].boot
            last = boot.last if boot else None
            if last is None or last.stage != "enrolled":
                continue
            if self.connection(node) is None:
                text = "its minion is not connected to the master (port 4505): is it running, is its clock right?"
                self.service.tell(Troubled(self.service.clock(), node.name, "applied", text))

    async def see_deployment(self) -> None:
        """Take from the deployment's record when a node's engine was ready and made its first token."""
        try:
            record = records.read(self._opts, records.DEPLOYMENT)
        except records.RecordError as error:
            if str(error) != self._seen:
                log.error("The deployment is not known: %s", error)
            self._seen = str(error)
            return
        if record == self._seen:
            return
        self._seen = record
        workers = {spec["node"] for spec in record.get("workers", []) if isinstance(spec, dict)}
        for name in self._settings.nodes:
            since = float(record.get("began") or time.time()) if name in workers else None
            self.service.tell(Deploying(self.service.clock(), name, since))
            for key, stage in DEPLOYMENT_STAGES.items():
                if name in workers and record.get(key):
                    self.service.reached(name, stage, float(record[key]))


def _log_failure(tag: str, fired: "asyncio.Future[None]") -> None:
    if not fired.cancelled() and fired.exception():
        log.error("The event %s could not be sent: %s", tag, fired.exception())
