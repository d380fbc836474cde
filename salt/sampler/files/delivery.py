"""Send batches to the control node over the minion's own event bus, and learn what it has stored."""

import http.client
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import node_files
import node_seal
from spool import FRESH_AT_ONCE, Batch, Spool, pack

TAG = "cluster/telemetry/batch/"
ASK_TIMEOUT_SECONDS = 2.0
RETRY_SECONDS = 1.0
BATCHES_PER_EVENT = 5
# Salt trims an event's data above 1 MiB (`max_event_size`) without a word; what is more goes in further events. As
# text a batch takes more than as the bytes that Salt makes of it.
EVENT_BYTES = 768 * 1024
COMPLAIN_SECONDS = 60.0


class Wire(Protocol):
    """Takes events to the control node."""

    def fire(self, data: Mapping[str, Any], tag: str) -> bool:
        """Hand one event over; return False when it was not taken."""

    def close(self) -> None:
        """Let go of the connection."""


class Bus:
    """The minion's event bus; the minion is authenticated already and forwards what is fired here."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._event: Any = None

    def fire(self, data: Mapping[str, Any], tag: str) -> bool:
        """Hand one event to the minion; return False when it did not take it."""
        import salt.utils.event

        try:
            if self._event is None:
                self._event = salt.utils.event.MinionEvent(self._options, listen=False)
            if self._event.fire_master(data, tag):
                return True
        except Exception as error:  # Salt's transports raise what their libraries raise
            print(f"sampler: the minion took no event: {error!r}", file=sys.stderr)
        self.close()
        return False

    def close(self) -> None:
        """Let go of the bus."""
        if self._event is not None:
            self._event.destroy()
            self._event = None


class Disk(Protocol):
    """Keeps batches on disk as well."""

    @property
    def failures(self) -> int:
        """Count of the times that the disk took nothing."""

    def append(self, boot: str, sequence: int, packed: bytes) -> None:
        """Have a batch written."""

    def synchronise(self) -> None:
        """Have the storage keep what was written."""

    def forget(self, oldest: dict[str, int]) -> None:
        """Have removed what is not kept any more."""


class Acknowledgements:
    """The place where the control node publishes what it has stored.

    It is asked over HTTP, which costs this node next to nothing; a job costs the minion a process. Where the port
    cannot be reached, the control node sends that job, and ``telemetry.acknowledge`` leaves the answer in a file.
    """

    def __init__(self, node: str, control: Mapping[str, Any] | None, path: str) -> None:
        self._control = control
        self._node = node
        self._path = path
        self._changed: int | None = None

    def ask(self, boot: str) -> Any:
        """Ask the control node about a life of this sampler; None when it does not answer."""
        if not self._control:
            return None
        connection = http.client.HTTPConnection(
            self._control["address"], self._control["port"], timeout=ASK_TIMEOUT_SECONDS
        )
        try:
            connection.request("GET", f"/acknowledged/{self._node}/{boot}")
            answer = connection.getresponse()
            body = answer.read()
            return json.loads(body) if answer.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def look(self) -> Any:
        """Return the file's content if it has changed, else None."""
        try:
            changed = os.stat(self._path).st_mtime_ns
        except OSError:
            return None
        stored = None if changed == self._changed else node_files.read_json(self._path)
        if stored is not None:
            self._changed = changed
        return stored


class Sealing:
    """Seals what goes into an event with this node's own key, as that is at the time."""

    def __init__(self, minion: str, key_file: str) -> None:
        self._minion = minion
        self._key = node_seal.KeyFile(key_file)

    def sealed(self, batches: list[Batch]) -> dict[str, str]:
        """Return an event's data; raise NodeKeyError where this node has no key."""
        text = json.dumps(batches, separators=(",", ":"))
        return {"text": text, "seal": node_seal.seal(self._key.read(), node_seal.BATCHES, self._minion, text)}


class Sender(threading.Thread):
    """Sends what is due. It may wait for the minion or the control node; sampling goes on meanwhile.

    Time is the kernel's time since boot: a clock that is set stops nothing.
    """

    def __init__(
        self,
        spool: Spool,
        bus: Wire,
        acknowledgements: Acknowledgements,
        disk: Disk,
        node: str,
        send_seconds: float,
        ask_seconds: float,
        status_path: str,
        clock: Callable[[], float],
        sealing: "Sealing",
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self.lock = threading.Lock()
        self.wake = threading.Event()
        self.ending = False
        self._spool = spool
        self._bus = bus
        self._acknowledgements = acknowledgements
        self._disk = disk
        self._tag = TAG + node
        self._send_seconds = send_seconds
        self._ask_seconds = ask_seconds
        self._status_path = status_path
        self._clock = clock
        self._sealing = sealing
        self._asked = clock()
        self._complained: float | None = None
        self._failures = 0
        self._taken: float | None = None

    def add(self, batch: Batch, send: bool) -> None:
        """Take a batch from the sampling thread; with ``send`` it and those before it go out now."""
        batch.setdefault("sampler", {})["ended_s"] = self._clock()
        for part in parts(batch, EVENT_BYTES):
            with self.lock:
                packed = self._spool.add(part)
            self._disk.append(part["boot"], part["sequence"], packed)
        if send:
            self.wake.set()

    def run(self) -> None:
        """Send until asked to end; what goes wrong is said and tried again."""
        done = True
        while not self.ending:
            # Twice: a batch wakes this thread at its time, and is not to be run ahead of.
            self.wake.wait(2 * self._send_seconds if done else RETRY_SECONDS)
            self.wake.clear()
            done = self._attempt()
        self._attempt()
        self._bus.close()

    def _attempt(self) -> bool:
        try:
            return self.step(self._clock())
        except Exception:  # the only sender of this node: a fault of one round must not end all that come after
            self._failures += 1
            self._complain(traceback.format_exc())
            return False

    def _complain(self, text: str) -> None:
        now = self._clock()
        if self._complained is None or now - self._complained >= COMPLAIN_SECONDS:
            self._complained = now
            print(f"sampler: {text.rstrip()}", file=sys.stderr, flush=True)

    def step(self, now: float) -> bool:
        """Take in acknowledgements, then send what is due; return False when something is left that was due."""
        asks = now - self._asked >= self._ask_seconds
        stored = [self._acknowledgements.look()]
        if asks:
            self._asked = now
            with self.lock:
                boots = self._spool.boots
            stored += [self._acknowledgements.ask(boot) for boot in boots]
        with self.lock:
            for one in stored:
                self._acknowledge(one)
            due = self._spool.due(now)
            oldest = {boot: self._spool.oldest_of(boot) for boot in self._spool.boots}
        self._disk.synchronise()
        self._disk.forget(oldest)
        done = self._send(due, now)
        if asks:
            self._write_status(now)
        return done and len(due) < FRESH_AT_ONCE

    def _acknowledge(self, stored: Any) -> None:
        self._spool.acknowledge(stored)
        former = stored.get("former") if isinstance(stored, dict) else None
        for one in former if isinstance(former, list) else ():
            self._spool.acknowledge(one)

    def _send(self, due: list[Batch], now: float) -> bool:
        for batch in due:
            self._tell_age(batch, now)
        for batches in self._events(due):
            try:
                sealed = self._sealing.sealed(batches)
            except node_seal.NodeKeyError as error:
                # Unsealed it would be refused, and count as another's.
                self._complain(f"nothing is sent: {error}")
                return False
            if not self._bus.fire(sealed, self._tag):
                return False
            self._taken = self._clock()
            with self.lock:
                for batch in batches:
                    self._spool.sent(batch, now)
        return True

    def _tell_age(self, batch: Batch, now: float) -> None:
        """Say how long ago a batch ended, by a clock that nobody sets; so a wrong clock shows."""
        own = batch["sampler"]
        own.pop("age_s", None)
        if kernel_boot(batch["boot"]) == kernel_boot(self._spool.boot) and "ended_s" in own:
            own["age_s"] = round(now - own["ended_s"], 3)

    def _events(self, due: list[Batch]) -> Iterator[list[Batch]]:
        """Yield what goes into one event each: a few batches, and no more bytes than Salt takes."""
        together: list[Batch] = []
        room = EVENT_BYTES
        for batch in due:
            with self.lock:
                size = self._spool.size_of(batch)
            if together and (size > room or len(together) == BATCHES_PER_EVENT):
                yield together
                together, room = [], EVENT_BYTES
            together.append(batch)
            room -= size
        if together:
            yield together

    def _write_status(self, now: float) -> None:
        with self.lock:
            status = {
                "time": time.time(),
                "uptime": now,
                "sent_uptime": self._taken,
                "boot": self._spool.boot,
                "sequence": self._spool.last,
                "acknowledged": self._spool.acknowledged,
                "waiting": len(self._spool),
                "waiting_bytes": self._spool.bytes,
                "dropped": self._spool.dropped,
                "resent": self._spool.resent,
                "failures": self._failures,
                "disk_failures": self._disk.failures,
                "cpu_s": time.process_time(),
            }
        try:
            node_files.write_json(self._status_path, status)
        except OSError as error:
            self._complain(f"the status cannot be written, sending goes on: {error}")


def kernel_boot(boot: str) -> str:
    """Return the kernel's part of a life's name."""
    return boot.rpartition("-")[0]


def parts(batch: Batch, most_bytes: int) -> list[Batch]:
    """Split a batch that one event could not take; a hundred samples a second of many cores are more than that.

    A single sample is never split: it is sent as it is. The first sample of a batch is its largest: it is complete.
    """
    samples, engine = batch.get("samples") or [], batch.get("engine")
    if len(samples) < 2 or len(samples) * len(pack(samples[0])) + len(pack(engine or {})) <= most_bytes:
        return [batch]
    half = len(samples) // 2
    first = {**batch, "samples": samples[:half], "t1": samples[half - 1]["t"], "sampler": {**batch["sampler"]}}
    second = {**batch, "samples": samples[half:], "t0": samples[half]["t"], "sampler": {**batch["sampler"]}}
    return parts(first, most_bytes) + parts({**second, "engine": None}, most_bytes)
