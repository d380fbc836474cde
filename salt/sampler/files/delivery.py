"""Send batches to the control node over the minion's own event bus, and learn what it has stored."""

import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import node_files
from spool import FRESH_AT_ONCE, Batch, Spool

TAG = "cluster/telemetry/batch/"
ASK_TIMEOUT_SECONDS = 2.0
RETRY_SECONDS = 1.0
# Salt trims an event's data above 1 MiB without a word; ten samples of 256 cores are 200 kB.
BATCHES_PER_EVENT = 5


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


class Acknowledgements:
    """Where the control node publishes what it has stored.

    It is asked over HTTP, which costs this node next to nothing; a job costs the minion a process. Where the port
    cannot be reached, the control node sends that job, and ``telemetry.acknowledge`` leaves the answer in a file.
    """

    def __init__(self, node: str, boot: str, control: Mapping[str, Any] | None, path: str) -> None:
        self._control = control
        self._request = f"/acknowledged/{node}/{boot}"
        self._path = path
        self._changed: int | None = None

    def ask(self) -> Any:
        """Ask the control node; None when it does not answer."""
        if not self._control:
            return None
        connection = http.client.HTTPConnection(
            self._control["address"], self._control["port"], timeout=ASK_TIMEOUT_SECONDS
        )
        try:
            connection.request("GET", self._request)
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
            if changed == self._changed:
                return None
            with open(self._path, encoding="utf-8") as file:
                stored = json.load(file)
        except (OSError, ValueError):
            return None
        self._changed = changed
        return stored


class Sender(threading.Thread):
    """Sends what is due. It may wait for the minion or the control node; sampling goes on meanwhile."""

    def __init__(
        self,
        spool: Spool,
        bus: Wire,
        acknowledgements: Acknowledgements,
        node: str,
        send_seconds: float,
        ask_seconds: float,
        status_path: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self.lock = threading.Lock()
        self.wake = threading.Event()
        self.ending = False
        self._spool = spool
        self._bus = bus
        self._acknowledgements = acknowledgements
        self._tag = TAG + node
        self._send_seconds = send_seconds
        self._ask_seconds = ask_seconds
        self._status_path = status_path
        self._clock = clock
        self._asked = clock()

    def add(self, batch: Batch, send: bool) -> None:
        """Take a batch from the sampling thread; with ``send`` it and those before it go out now."""
        with self.lock:
            self._spool.add(batch)
        if send:
            self.wake.set()

    def run(self) -> None:
        """Send until asked to end."""
        done = True
        while not self.ending:
            # Twice: a batch wakes this thread at its time, and is not to be run ahead of.
            self.wake.wait(2 * self._send_seconds if done else RETRY_SECONDS)
            self.wake.clear()
            done = self.step(self._clock())
        self.step(self._clock())
        self._bus.close()

    def step(self, now: float) -> bool:
        """Take in acknowledgements, then send what is due; return False when something is left that was due."""
        stored = self._acknowledgements.look()
        asks = now - self._asked >= self._ask_seconds
        if asks:
            self._asked = now
            stored = self._acknowledgements.ask() or stored
        with self.lock:
            if stored:
                self._spool.acknowledge(stored)
            due = self._spool.due(now)
        done = True
        for start in range(0, len(due), BATCHES_PER_EVENT):
            batches = due[start : start + BATCHES_PER_EVENT]
            done = self._bus.fire({"batches": batches}, self._tag)
            if not done:
                break
            with self.lock:
                for batch in batches:
                    self._spool.sent(batch["sequence"], now)
        if asks:
            self._write_status(now)
        return done and len(due) < FRESH_AT_ONCE

    def _write_status(self, now: float) -> None:
        with self.lock:
            status = {
                "time": now,
                "boot": self._spool.boot,
                "sequence": self._spool.last,
                "acknowledged": self._spool.acknowledged,
                "waiting": len(self._spool),
                "dropped": self._spool.dropped,
                "resent": self._spool.resent,
                "cpu_s": time.process_time(),
            }
        node_files.write_json(self._status_path, status)
