"""The boot service without its wire: who gets a script, which reports count, who is admitted.

Everything that comes from outside passes through here on its way into the record
(`netboot.boot.state`). `netboot.boot.http` puts it on a socket.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from netboot.boot import command_queue, enrolment, images, progress_report, rendering, storage
from netboot.boot.architectures import unsupported
from netboot.boot.dhcp_log import Seen
from netboot.boot.events import (
    Armed,
    Blocked,
    Delivered,
    Deploying,
    DhcpAsked,
    Enrolled,
    Event,
    Refused,
    ScriptGiven,
    StageReached,
    Troubled,
    UnknownAsked,
)
from netboot.boot.liveness import Alive, Heart, Liveness
from netboot.boot.rate_limit import Budget
from netboot.boot.settings import BootNode, Settings, plain_mac
from netboot.boot.stages import STAGES, BootStage, nonce_lifetime_seconds
from netboot.boot.state import (
    ORDER,
    State,
    apply,
    begin,
    find,
)
from netboot.image.canary import BootRecord, settle
from netboot.image.store import Store

log = logging.getLogger(__name__)

# What a node may say of itself; the other stages are seen from here.
REPORTED: tuple[BootStage, ...] = tuple(stage for stage, rules in STAGES.items() if rules.reported)
DETAIL_CHARACTERS = 200
WAIT_SECONDS = 10
UNKNOWN_WAIT_SECONDS = 30
# Between two words about a disk that takes nothing.
COMPLAIN_SECONDS = 60.0


class Keys(Protocol):
    """The master's keys."""

    def admit(self, minion_id: str, pub: str) -> None:
        """Make `pub` the one key that `minion_id` is accepted with."""

    def master_finger(self) -> str:
        """Return the fingerprint of the master's public key as a minion's `master_finger` wants it."""


Announce = Callable[[str, dict[str, Any]], None]


def clean(text: str) -> str:
    """Return what a machine said, short and printable: it is shown on a terminal."""
    kept = "".join(character if " " <= character <= "~" else "?" for character in text[:DETAIL_CHARACTERS])
    return kept.strip()


class BootService:
    """The record of one cluster's boots, and what may change it."""

    def __init__(
        self,
        settings: Settings,
        *,
        images_directory: Path,
        models_directory: Path,
        record_directory: Path,
        keys: Keys,
        connection: Callable[[BootNode], int | None],
        alive: Alive,
        mac_of: Callable[[str], str | None],
        announce: Announce = lambda _tag, _data: None,
        clock: Callable[[], float] = time.time,
        grace_seconds: float = 0.0,
        heart: Heart = lambda _node: None,
    ) -> None:
        self.settings = settings
        self._began, self._grace = clock(), grace_seconds
        self.images_directory = images_directory
        self.models_directory = models_directory
        self._directory = record_directory
        self._keys = keys
        self._liveness = Liveness(connection, alive, clock, heart)
        self._mac_of = mac_of
        self._announce = announce
        self.clock = clock
        self.state: State = begin(list(settings.nodes), clock(), storage.read(record_directory))
        self._dirty = True
        self._complained: float | None = None
        self.unwritten = 0
        self._budget = Budget()
        self._admitting = asyncio.Lock()
        self._stuck: dict[str, tuple[str, float]] = {}

    def tell(self, event: Event, durable: bool = False) -> None:
        """Take an event into the record; `durable` when it must outlive a crash from here on."""
        self.state = apply(event, self.state)
        self._dirty = True
        if durable:
            self.save(durable=True)

    def save(self, durable: bool = False) -> None:
        """Write the record, if it has changed; `durable` waits until the storage has it.

        A disk that takes nothing ends nothing: nodes go on booting by what is in memory, and the record is written as
        soon as it can be. Until then an end of this process would forget the boots that are under way; a node whose
        boot is not known boots again.
        """
        if not self._dirty:
            return
        try:
            storage.write(self._directory, self.state, durable)
        except OSError as error:
            self.unwritten += 1
            if self._complained is None or time.monotonic() - self._complained >= COMPLAIN_SECONDS:
                self._complained = time.monotonic()
                log.error("The boot record cannot be written, boots go on without it: %s", error)
            return
        self._dirty = False
        if self._complained is not None:
            log.warning("The boot record is written again")
            self._complained = None

    # -- scripts

    async def script(self, mac_text: str, source: str, platform: str) -> str:
        """Return the iPXE script for the machine that asks from `source`."""
        now = self.clock()
        mac = plain_mac(mac_text)
        if mac is None:
            self._refuse("script", "", source, "no MAC address")
            return rendering.wait_script("This machine gave no MAC address.", UNKNOWN_WAIT_SECONDS)
        node = self.settings.by_mac(mac)
        if node is None:
            self.tell(UnknownAsked(now, mac, source, clean(platform)))
            text = "This machine is not in the profile: cluster node discover lists it."
            return rendering.wait_script(text, UNKNOWN_WAIT_SECONDS)
        reason = await self._why_not(node, source)
        if reason:
            self._refuse("script", node.name, source, reason)
            return rendering.wait_script("This machine is not expected to boot now.", WAIT_SECONDS)
        try:
            image = images.active(self.images_directory, self.settings.profile, node.name)
        except images.NoImageError as error:
            self.tell(Troubled(now, node.name, "script", str(error)))
            return rendering.wait_script("There is no image to boot.", WAIT_SECONDS)
        given = ScriptGiven(
            now=self.clock(),
            node=node.name,
            boot=enrolment.new_boot_id(),
            nonce=enrolment.new_nonce(),
            expires=self.clock() + nonce_lifetime_seconds(self.settings.deadlines_seconds),
            image=image.digest,
            mac=node.mac,
            minion_id=node.minion_id,
        )
        self.tell(given, durable=True)
        log.info("Boot %s of %s begins, image %s", given.boot[:8], node.name, image.digest)
        return rendering.boot_script(self.settings, node, given.boot, given.nonce, image)

    async def _why_not(self, node: BootNode, source: str) -> str:
        """Return why a node gets no script, or an empty text."""
        if self.settings.dhcp == "serve" and source != node.address:
            return "asked from another address"
        if self._mac_of(source) not in (None, node.mac):
            return "asked with another MAC address"
        if self.state.nodes[node.name].blocked:
            return "the node is blocked"
        if self._may_be_on_its_way_back(node):
            return "the master has just begun, the node's minion may be on its way back"
        if self._liveness.sends_samples(node):
            return "the node is alive: it sends samples"
        if await self.is_alive(node):
            return "the node is alive"
        now = self.clock()
        open_boots = [boot for boot in self.state.nodes[node.name].boots if boot.nonce and boot.expires > now]
        if len([boot for boot in open_boots if not boot.enrolled_key]) >= enrolment.OPEN_BOOTS:
            return "too many boots that have not enrolled"
        return ""

    def _may_be_on_its_way_back(self, node: BootNode) -> bool:
        """Return whether a node that was up when the master ended has not had the time to connect to it again.

        Without this anyone could have its script after each restart of the master, by asking first.
        """
        known = self.state.nodes[node.name]
        enrolled = [boot.at("enrolled") for boot in known.boots]
        was_up = any(at is not None and at < self._began for at in enrolled)
        return was_up and not known.armed and 0 <= self.clock() - self._began < self._grace

    async def is_alive(self, node: BootNode) -> bool:
        """Return whether the node's minion is connected and answers."""
        try:
            question = self._liveness.question(node)
            return question is not None and await asyncio.shield(question)
        except Exception as error:
            # Whoever cannot be asked is not replaced.
            log.error("Whether %s is alive is not known: %s", node.name, error)
            self.tell(
                Troubled(self.clock(), node.name, "script", f"the master cannot be asked whether it is up: {error}")
            )
            return True

    # -- reports

    def dhcp(self, seen: Seen) -> None:
        """Take what dnsmasq's log says."""
        now = self.clock()
        mac = seen.mac or seen.machine
        node = self.settings.by_mac(mac) if mac else self._by_address(seen.address)
        if node is None:
            if seen.mac and (seen.asked or seen.kind in ("ignored", "asked")):
                self.tell(UnknownAsked(now, seen.mac, seen.address, seen.text))
            elif seen.kind == "trouble":
                protocol, _, text = seen.text.partition(": ")
                self._refuse(f"{protocol} request", "", seen.address or seen.mac, text)
            return
        if seen.kind in ("asked", "given") or seen.asked:
            detail = "" if seen.kind == "trouble" else seen.text
            self.tell(DhcpAsked(now, node.name, detail, seen.kind == "given"))
            if text := unsupported(detail):
                self.tell(Troubled(now, node.name, "script", text))
        if seen.kind == "asked":
            # By the time it asks for its script, it is known whether it is a machine that is up already.
            self._liveness.question(node)
        elif seen.kind == "trouble":
            holder = self.settings.by_mac(seen.holder) if seen.holder else None
            text = f"{seen.text} ({holder.name})" if holder else seen.text
            self.tell(Troubled(now, node.name, "script", text))
        elif seen.kind == "sent":
            self.tell(Delivered(now, node.name, "script", f"TFTP: {seen.file} "))

    def _by_address(self, address: str) -> BootNode | None:
        return next((node for node in self.settings.nodes.values() if node.address == address), None)

    def report(self, boot: str, stage: str, detail: str, failed: bool, source: str) -> bool:
        """Take a node's report about its own boot; return whether it counts."""
        found = find(self.state, boot)
        known = next((name for name in REPORTED if name == stage), None)
        if found is None or known is None:
            self._refuse("stage", found[0] if found else "", source, "unknown stage" if found else "unknown boot")
            return False
        if failed:
            self.tell(Troubled(self.clock(), found[0], known, clean(detail), boot))
        else:
            self.tell(StageReached(self.clock(), found[0], boot, known, clean(detail)))
        return True

    def reached(self, node: str, stage: BootStage, at: float, detail: str = "") -> None:
        """Take a stage that the control node sees by itself, for the node's newest boot."""
        boot = self.state.nodes[node].boot
        if boot is None or at < boot.began:
            return
        before = boot.last
        if before is None or ORDER[stage] > ORDER[before.stage]:
            self.tell(StageReached(at, node, boot.id, stage, detail))

    def fetched(self, boot: str, name: str, trouble: str = "") -> None:
        """Take that a boot fetched a file, or could not."""
        found = find(self.state, boot)
        if found is None:
            return
        stage: BootStage = "image" if name.endswith(".squashfs") else "kernel"
        if trouble:
            self.tell(Troubled(self.clock(), found[0], stage, f"{name}: {trouble}", boot))
        elif name == "initrd.img":
            self.tell(StageReached(self.clock(), found[0], boot, "kernel"))

    # -- enrolment

    async def claim(self, body: bytes, source: str) -> dict[str, str] | None:
        """Return the answer to a claim that holds; None when it is refused.

        Raises
        ------
        OSError
            When the claim holds and the key could not be stored: it may be sent again.
        """
        node = ""
        try:
            claim = enrolment.parse(body)
            found = find(self.state, claim.boot)
            node = found[0] if found else ""
            # Wrong claims are sorted out before anyone waits for anyone.
            admission = enrolment.judge(claim, self.state, self.clock())
            self._check_sender(admission, source)
            async with self._admitting:
                admission = enrolment.judge(claim, self.state, self.clock())
                if not admission.repeated:
                    await self._admit(admission)
        except enrolment.ClaimError as error:
            self._refuse("claim", node, source, str(error))
            return None
        boot = admission.boot
        finger = self._keys.master_finger()
        return {
            "master_finger": finger,
            "proof": enrolment.master_proof(boot.nonce, boot.id, boot.minion_id, finger),
        }

    async def _admit(self, admission: enrolment.Admission) -> None:
        boot = admission.boot
        try:
            await asyncio.to_thread(self._keys.admit, boot.minion_id, admission.pub)
        except Exception as error:
            self.tell(
                Troubled(self.clock(), admission.node, "enrolled", f"the key could not be stored: {error}", boot.id)
            )
            raise OSError(str(error)) from error
        self.tell(Enrolled(self.clock(), admission.node, boot.id, admission.key), durable=True)
        log.info("Boot %s of %s enrolled as %s", boot.id[:8], admission.node, boot.minion_id)
        self._announce("cluster/boot/enrolled", {"node": admission.node, "id": boot.minion_id, "image": boot.image})

    def _check_sender(self, admission: enrolment.Admission, source: str) -> None:
        if self._mac_of(source) not in (None, admission.boot.mac):
            raise enrolment.ClaimError("sent with another MAC address")
        node = self.settings.nodes[admission.node]
        if not admission.repeated and self._liveness.has_sent_samples_since(node, admission.boot.began):
            raise enrolment.ClaimError("the node is alive: it sends samples")

    def _refuse(self, what: str, node: str, source: str, reason: str) -> None:
        now = self.clock()
        if not self._budget.spend(source, now):
            # A flood is refused like everything else; it is not written down line by line.
            return
        self.tell(Refused(now, what, node, source, reason))
        log.warning("Refused: a %s from %s%s: %s", what, source, f" for {node}" if node else "", reason)
        if reason.startswith("the node is alive") and what == "script":
            self._announce("cluster/boot/duplicate", {"node": node, "source": source})

    # -- commands and time

    def obey(self) -> None:
        """Take the commands that were left."""
        now = self.clock()
        for command in command_queue.take(self._directory):
            if command.what == "block":
                self.tell(Blocked(now, command.node), durable=True)
            elif command.what in ("deploy", "undeploy"):
                self.tell(Deploying(now, command.node, now if command.what == "deploy" else None))
            else:
                self.tell(Armed(now, command.node, "reprovision", command.powered_on), durable=True)
            log.info("%s: %s", command.what, command.node)

    def tick(self) -> None:
        """Say what has become stuck, once, and store what has changed."""
        now = self.clock()
        for name, node in self.state.nodes.items():
            late = progress_report.stuck(name, node, now, self.settings.deadlines_seconds)
            key = (late.stage, late.since) if late else None
            if key and self._stuck.get(name) != key and late:
                log.warning("%s is stuck at %s: %s", name, late.stage, late.cause)
                self._announce("cluster/boot/stuck", {"node": name, "stage": late.stage, "cause": late.cause})
            if key:
                self._stuck[name] = key
            else:
                self._stuck.pop(name, None)
        try:
            self._settle_trial(now)
        except OSError as error:
            log.error("Whether the image on trial holds cannot be recorded, it is looked at again: %s", error)
        storage.keep_reserve(self._directory)
        self.save()

    def _settle_trial(self, now: float) -> None:
        """Promote the image that is on trial when its node came back with it; roll it back when it did not."""
        decision = settle(Store(self.images_directory), self.settings.profile, self._newest_boot, now)
        if decision and decision.action != "wait":
            log.warning("Image on trial: %s, because %s", decision.action, decision.reason)
            self._announce("cluster/image/trial", {"action": decision.action, "reason": decision.reason})

    def _newest_boot(self, name: str) -> BootRecord | None:
        node = self.state.nodes.get(name)
        boot = node.boot if node else None
        return BootRecord(boot.image, boot.began, boot.at("enrolled")) if boot else None
