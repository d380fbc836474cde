"""Keep batches until they are acknowledged. Pure: time is handed in, nothing is read or sent here.

The bus loses what it has reported as sent (a restart of the master, a cut). So a batch stays here until the control
node has acknowledged it. What a former life of the sampler left (see `journal`) is kept here as well, under its own
boot.
"""

import json
from collections import OrderedDict
from typing import Any

Batch = dict[str, Any]
Key = tuple[str, int]

# After an outage the backlog must not crowd out the node's work: this many at a time.
FRESH_AT_ONCE = 20
MISSING_AT_ONCE = 20
OVERDUE_AT_ONCE = 5
MOST_BYTES = 256 * 2**20
# Each further sending of one batch waits twice as long, up to so many times: where the control node is only slow, what
# is sent again before it was looked at makes it slower still.
MOST_PATIENCE = 16


class _Entry:
    __slots__ = ("batch", "packed", "sent", "times", "wanted")

    def __init__(self, batch: Batch | None, packed: bytes) -> None:
        self.batch = batch
        self.packed = packed
        self.sent: float | None = None
        self.times = 0
        self.wanted = False


def pack(batch: Batch) -> bytes:
    """Return a batch as text; it takes a fifth of the memory, and is what the journal keeps."""
    return json.dumps(batch, separators=(",", ":")).encode()


class Spool:
    """Numbered batches, oldest first.

    ``capacity`` batches of ``capacity_bytes`` together are kept; when more come, the oldest are dropped and counted.
    """

    def __init__(self, boot: str, capacity: int, resend_seconds: float, capacity_bytes: int = MOST_BYTES) -> None:
        self.boot = boot
        self.dropped = 0
        self.acknowledged = 0
        self.resent = 0
        self.bytes = 0
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._resend_seconds = resend_seconds
        self._next = 1
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def oldest(self) -> int:
        """Lowest number of this life that can still be sent; what is below and not stored is lost."""
        return self.oldest_of(self.boot)

    def oldest_of(self, boot: str) -> int:
        """Return the lowest number of a life that can still be sent."""
        return next((number for each, number in self._entries if each == boot), self._next)

    @property
    def last(self) -> int:
        """Highest number given so far."""
        return self._next - 1

    @property
    def boots(self) -> list[str]:
        """Lives of which something waits, this one first."""
        return [self.boot, *dict.fromkeys(boot for boot, _ in self._entries if boot != self.boot)]

    def size_of(self, batch: Batch) -> int:
        """Return how many bytes a batch that is kept here takes."""
        entry = self._entries.get((batch["boot"], batch["sequence"]))
        return len(entry.packed) if entry else len(pack(batch))

    def inherit(self, boot: str, sequence: int, packed: bytes) -> None:
        """Keep what a former life left; it goes before all that is new."""
        self._keep((boot, sequence), _Entry(None, packed))

    def add(self, batch: Batch) -> bytes:
        """Number a batch, keep it, and return it packed."""
        batch["boot"], batch["sequence"] = self.boot, self._next
        while len(self._entries) >= self._capacity:
            self._drop_oldest()
        batch.setdefault("sampler", {}).update(dropped=self.dropped, waiting=len(self._entries))
        packed = pack(batch)
        self._keep((self.boot, self._next), _Entry(batch, packed))
        self._next += 1
        return packed

    def _keep(self, key: Key, entry: _Entry) -> None:
        self._entries[key] = entry
        self.bytes += len(entry.packed)
        while len(self._entries) > self._capacity or (self.bytes > self._capacity_bytes and len(self._entries) > 1):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._forget(next(iter(self._entries)))
        self.dropped += 1

    def _forget(self, key: Key) -> None:
        self.bytes -= len(self._entries.pop(key).packed)

    def due(self, now: float) -> list[Batch]:
        """Return the batches to send now: new ones, those the control node lacks, those that got no answer."""
        fresh: list[Key] = []
        wanted: list[Key] = []
        overdue: list[Key] = []
        for key, entry in self._entries.items():
            if entry.sent is None:
                if len(fresh) < FRESH_AT_ONCE:
                    fresh.append(key)
            elif entry.wanted:
                # The first time at once: what came after it has arrived. Then it may be on its way.
                if len(wanted) < MISSING_AT_ONCE and now - entry.sent >= self._patience(entry.times - 1):
                    wanted.append(key)
            elif now - entry.sent >= self._patience(entry.times) and len(overdue) < OVERDUE_AT_ONCE:
                overdue.append(key)
        return [self._to_send(key) for key in (*fresh, *wanted, *overdue)]

    def _patience(self, times: int) -> float:
        """Return how long a batch that was sent so many times is waited for before it is sent again, seconds."""
        return self._resend_seconds * min(2 ** (times - 1), MOST_PATIENCE) if times else 0.0

    def _to_send(self, key: Key) -> Batch:
        boot, _ = key
        entry = self._entries[key]
        batch: Batch = entry.batch if entry.batch is not None else json.loads(entry.packed)
        # The oldest may have gone since the batch was made; the control node stops waiting for what is gone.
        batch["sampler"]["oldest"] = self.oldest_of(boot)
        if boot != self.boot:
            batch["sampler"]["former"] = 1
        return batch

    def sent(self, batch: Batch, now: float) -> None:
        """Note that the bus took a batch."""
        entry = self._entries.get((batch["boot"], batch["sequence"]))
        if entry is not None:
            if entry.sent is not None:
                self.resent += 1
            entry.sent, entry.wanted = now, False
            entry.times += 1
            entry.batch = None  # hardly any batch is sent twice: the text is enough

    def acknowledge(self, stored: Any) -> bool:
        """Take an acknowledgement: all up to ``sequence`` is stored, ``missing`` are not, ``refused`` never will be.

        One for another boot, or for numbers that were never given, is not ours; one in another form is not believed.
        """
        if not isinstance(stored, dict):
            return False
        boot, sequence, missing = stored.get("boot"), stored.get("sequence"), stored.get("missing") or []
        refused = stored.get("refused") or []
        if boot not in self.boots or not isinstance(missing, list) or not isinstance(refused, list):
            return False
        if not isinstance(sequence, int) or isinstance(sequence, bool):
            return False
        if boot == self.boot:
            if sequence > self.last:
                return False
            self.acknowledged = max(self.acknowledged, sequence)
        for key in [key for key in self._entries if key[0] == boot and key[1] <= sequence]:
            self._forget(key)
        for number in refused:
            entry = self._entries.get((boot, number)) if isinstance(number, int) else None
            if entry is not None and entry.sent is not None:
                self._forget((boot, number))
                self.dropped += 1
        for number in missing:
            entry = self._entries.get((boot, number)) if isinstance(number, int) else None
            if entry is not None and entry.sent is not None:
                entry.wanted = True
        return True
