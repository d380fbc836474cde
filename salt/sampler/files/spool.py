"""Keep batches until they are acknowledged. Pure: time is handed in, nothing is read or sent here.

The bus loses what it has reported as sent (a restart of the master, a cut). So a batch stays here until the control
node has acknowledged it.
"""

from collections import OrderedDict
from typing import Any

Batch = dict[str, Any]

# After an outage the backlog must not crowd out the node's work: this many at a time.
FRESH_AT_ONCE = 20
MISSING_AT_ONCE = 20
OVERDUE_AT_ONCE = 5


class _Entry:
    __slots__ = ("batch", "sent", "wanted")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.sent: float | None = None
        self.wanted = False


class Spool:
    """Numbered batches of one boot, oldest first.

    ``capacity`` batches are kept; when one more comes, the oldest is dropped and counted.
    """

    def __init__(self, boot: str, capacity: int, resend_seconds: float) -> None:
        self.boot = boot
        self.dropped = 0
        self.acknowledged = 0
        self.resent = 0
        self._capacity = capacity
        self._resend_seconds = resend_seconds
        self._next = 1
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def oldest(self) -> int:
        """Lowest number that can still be sent; what is below and not stored is lost."""
        return next(iter(self._entries), self._next)

    @property
    def last(self) -> int:
        """Highest number given so far."""
        return self._next - 1

    def add(self, batch: Batch) -> None:
        """Number a batch and keep it."""
        batch["boot"], batch["sequence"] = self.boot, self._next
        if len(self._entries) >= self._capacity:
            self._entries.popitem(last=False)
            self.dropped += 1
        batch.setdefault("sampler", {}).update(dropped=self.dropped, waiting=len(self._entries))
        self._entries[self._next] = _Entry(batch)
        self._next += 1

    def due(self, now: float) -> list[Batch]:
        """Return the batches to send now: new ones, those the control node lacks, those that got no answer."""
        fresh: list[Batch] = []
        wanted: list[Batch] = []
        overdue: list[Batch] = []
        for entry in self._entries.values():
            if entry.sent is None:
                if len(fresh) < FRESH_AT_ONCE:
                    fresh.append(entry.batch)
            elif entry.wanted:
                if len(wanted) < MISSING_AT_ONCE:
                    wanted.append(entry.batch)
            elif now - entry.sent >= self._resend_seconds and len(overdue) < OVERDUE_AT_ONCE:
                overdue.append(entry.batch)
        due = [*fresh, *wanted, *overdue]
        for batch in due:
            # The oldest may have gone since the batch was made; the control node stops waiting for what is gone.
            batch["sampler"]["oldest"] = self.oldest
        return due

    def sent(self, sequence: int, now: float) -> None:
        """Note that the bus took a batch."""
        entry = self._entries.get(sequence)
        if entry is not None:
            if entry.sent is not None:
                self.resent += 1
            entry.sent, entry.wanted = now, False

    def acknowledge(self, stored: Any) -> bool:
        """Take an acknowledgement: everything up to ``sequence`` is stored, ``missing`` are not.

        One for another boot, or for numbers that were never given, is not ours.
        """
        if not isinstance(stored, dict) or stored.get("boot") != self.boot:
            return False
        sequence = stored.get("sequence")
        if not isinstance(sequence, int) or sequence > self.last:
            return False
        self.acknowledged = max(self.acknowledged, sequence)
        while self._entries and self.oldest <= sequence:
            self._entries.popitem(last=False)
        for number in stored.get("missing") or ():
            entry = self._entries.get(number)
            if entry is not None and entry.sent is not None:
                entry.wanted = True
        return True
