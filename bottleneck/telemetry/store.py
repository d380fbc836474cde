"""The control node's store: batches, and the verdicts made of them, in one SQLite file.

Several processes write and read it (the engine that takes batches, the runner that analyses windows, a person's
query), so it is in WAL mode and every change is one short transaction. A batch may come twice, late or out of order:
it is kept once, by node, boot and sequence number.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from bottleneck.json_numbers import number
from bottleneck.telemetry.database import Database

log = logging.getLogger(__name__)

VERSION = 1
# Missing numbers named in one answer.
MOST_MISSING = 100
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    node TEXT NOT NULL, boot TEXT NOT NULL, sequence INTEGER NOT NULL,
    t0 REAL NOT NULL, t1 REAL NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (node, boot, sequence));
CREATE INDEX IF NOT EXISTS batches_by_time ON batches (t1, t0);
CREATE INDEX IF NOT EXISTS batches_by_node ON batches (node, t1);
CREATE TABLE IF NOT EXISTS watermarks (
    node TEXT NOT NULL, boot TEXT NOT NULL, sequence INTEGER NOT NULL, seen REAL NOT NULL,
    PRIMARY KEY (node, boot));
CREATE TABLE IF NOT EXISTS verdicts (
    window TEXT PRIMARY KEY, start REAL NOT NULL, end REAL NOT NULL,
    class TEXT NOT NULL, described BLOB NOT NULL, payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS verdicts_by_time ON verdicts (end);
"""


def _pack(document: object) -> bytes:
    return zlib.compress(json.dumps(document, separators=(",", ":")).encode())


def _unpack(payload: bytes) -> Any:
    """Return a document; None when its bytes were overwritten (a row has its own checksum, a page has none)."""
    try:
        return json.loads(zlib.decompress(payload))
    except (zlib.error, ValueError):
        log.warning("A row of the store cannot be read and is left out: parts of its file were overwritten")
        return None


class Store(Database):
    """Batches and verdicts in a SQLite file.

    Parameters
    ----------
    path : Path or str
        Created with its folder when missing.
    timeout_seconds : float
        How long to wait for another process's transaction.

    Raises
    ------
    StoreDamagedError
        When the file is no database, or a damaged one; from any method.
    StoreUnavailableError
        When it cannot be used now, for lack of space for one; from any method.
    StoreError
        When it is a store of another version.
    """

    def __init__(self, path: Path | str, timeout_seconds: float = 30.0) -> None:
        super().__init__(path, _SCHEMA, VERSION, timeout_seconds)

    # -- batches

    def put_batches(self, batches: Iterable[Mapping[str, Any]]) -> list[tuple[bool, int]]:
        """Store batches, each once and all of them or none.

        Parameters
        ----------
        batches : iterable of mapping
            Each with `node`, `boot`, `sequence` (from 1), `t0` and `t1` (unix seconds).

        Returns
        -------
        list of (bool, int)
            For each, in order: whether it is new, and up to which number nothing of its boot is missing now.

        Raises
        ------
        ValueError
            When one lacks what identifies it.
        """
        rows = [self._row(batch) for batch in batches]
        with self.change() as connection:
            return [self._put(connection, row) for row in rows]

    @staticmethod
    def _row(batch: Mapping[str, Any]) -> tuple[str, str, int, float, float, bytes]:
        node, boot = batch.get("node"), batch.get("boot")
        sequence, t0, t1 = (number(batch.get(name)) for name in ("sequence", "t0", "t1"))
        if not isinstance(node, str) or not node or not isinstance(boot, str) or not boot:
            raise ValueError(f"batch without node or boot: node {node!r}, boot {boot!r}; expected two names")
        if not (math.isfinite(sequence) and sequence >= 1 and sequence == int(sequence)):
            raise ValueError(f"batch of {node}: sequence {batch.get('sequence')!r}; expected a whole number from 1")
        if not (math.isfinite(t0) and math.isfinite(t1)):
            raise ValueError(f"batch {int(sequence)} of {node}: t0 {batch.get('t0')!r}, t1 {batch.get('t1')!r}")
        return (node, boot, int(sequence), t0, t1, _pack(dict(batch)))

    @classmethod
    def _put(cls, connection: sqlite3.Connection, row: tuple[str, str, int, float, float, bytes]) -> tuple[bool, int]:
        node, boot, sequence, _, end, _ = row
        mark = cls._watermark(connection, node, boot)
        if sequence <= mark:
            return False, mark  # also when it was pruned since
        added = connection.execute("INSERT OR IGNORE INTO batches VALUES (?, ?, ?, ?, ?, ?)", row).rowcount
        return bool(added), cls._advance(connection, node, boot, mark, end) if added else mark

    @staticmethod
    def _watermark(connection: sqlite3.Connection, node: str, boot: str) -> int:
        found = connection.execute("SELECT sequence FROM watermarks WHERE node=? AND boot=?", (node, boot)).fetchone()
        return int(found[0]) if found else 0

    @staticmethod
    def _advance(connection: sqlite3.Connection, node: str, boot: str, mark: int, seen: float) -> int:
        rows = connection.execute(
            "SELECT sequence FROM batches WHERE node=? AND boot=? AND sequence>? ORDER BY sequence", (node, boot, mark)
        )
        for (sequence,) in rows:
            if sequence != mark + 1:
                break
            mark = sequence
        connection.execute(
            "INSERT INTO watermarks VALUES (?, ?, ?, ?) ON CONFLICT (node, boot) "
            "DO UPDATE SET sequence=excluded.sequence, seen=max(seen, excluded.seen)",
            (node, boot, mark, seen),
        )
        return mark

    def watermark(self, node: str, boot: str) -> int:
        """Return the highest sequence number up to which nothing of a boot is missing; 0 when the first is.

        Parameters
        ----------
        node : str
            Name of the node.
        boot : str
            Identifier of its boot, within which batches are numbered from 1.

        Raises
        ------
        StoreUnavailableError
            When the file cannot be used.
        """
        known = self.rows("SELECT sequence FROM watermarks WHERE node=? AND boot=?", (node, boot))
        return int(known[0][0]) if known else 0

    def stored(self, node: str, boot: str) -> dict[str, Any] | None:
        """Return what is stored of a boot, as its sampler is answered; None when nothing is known of it.

        Parameters
        ----------
        node : str
            Name of the node.
        boot : str
            Identifier of its boot.

        Returns
        -------
        dict[str, Any] or None
            The boot, its watermark as ``sequence``, and as ``missing`` the first `MOST_MISSING` numbers above it that
            are not stored while later ones are.

        Raises
        ------
        StoreUnavailableError
            When the file cannot be used.
        """
        known = self.rows("SELECT sequence FROM watermarks WHERE node=? AND boot=?", (node, boot))
        if not known:
            return None
        mark = int(known[0][0])
        rows = self.rows(
            "SELECT sequence FROM batches WHERE node=? AND boot=? AND sequence>? ORDER BY sequence", (node, boot, mark)
        )
        above = [int(row[0]) for row in rows]
        present = set(above)
        gaps = (each for each in range(mark + 1, above[-1] if above else mark) if each not in present)
        return {"boot": boot, "sequence": mark, "missing": list(islice(gaps, MOST_MISSING))}

    def skip(self, node: str, boot: str, below: int) -> int:
        """Give up the batches below a number, which the node no longer has; return the new watermark.

        Without it a batch that fell out of a node's spool would hold the watermark for ever, and with it everything
        after.

        Parameters
        ----------
        node
            Its name.
        boot
            The life of its sampler.
        below
            The first number that it still has.
        """
        with self.change() as connection:
            mark = self._watermark(connection, node, boot)
            return self._advance(connection, node, boot, max(mark, below - 1), 0.0)

    def batches(self, start: float, end: float) -> list[dict[str, Any]]:
        """Return the batches that touch an interval, by time.

        Parameters
        ----------
        start, end : float
            Unix seconds; a batch touches it when `t1 >= start` and `t0 <= end`.
        """
        rows = self.rows("SELECT payload FROM batches WHERE t1>=? AND t0<=? ORDER BY t0, node", (start, end))
        found = (_unpack(payload) for (payload,) in rows)
        return [batch for batch in found if batch is not None]

    def last_seen(self) -> dict[str, float]:
        """Return the end of the newest batch of every node, unix seconds."""
        rows = self.rows(
            "SELECT node, (SELECT max(t1) FROM batches WHERE batches.node = known.node)"
            " FROM (SELECT DISTINCT node FROM watermarks) AS known"
        )
        return {node: float(seen) for node, seen in rows if seen is not None}

    # -- verdicts

    def put_verdict(self, window: Mapping[str, Any], verdict: Mapping[str, Any]) -> None:
        """Store the verdict of a window, in place of an earlier one of the same window.

        Parameters
        ----------
        window : mapping
            With `window` (its id), `start` and `end` (unix seconds).
        verdict : mapping
            As `Verdict.to_json` gives it.

        Raises
        ------
        ValueError
            For a window without an id, or without a start and an end.
        """
        start, end = number(window.get("start")), number(window.get("end"))
        if window.get("window") is None or not (math.isfinite(start) and math.isfinite(end)):
            raise ValueError(f"window {dict(window)!r}; expected window, start and end")
        row = (
            str(window["window"]),
            start,
            end,
            str(verdict.get("class", "")),
            _pack(dict(window)),
            _pack(dict(verdict)),
        )
        with self.change() as connection:
            connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", row)

    def latest_verdict(self, until: float = math.inf) -> dict[str, Any] | None:
        """Return the newest window's `{"window": ..., "verdict": ...}`, or None.

        Parameters
        ----------
        until : float
            Unix seconds; a window that ends later is none of now, and would stay the newest for ever.
        """
        rows = self.rows(
            "SELECT described, payload FROM verdicts WHERE end<=? ORDER BY end DESC, start DESC LIMIT 1", (until,)
        )
        found = [{"window": _unpack(described), "verdict": _unpack(payload)} for described, payload in rows]
        return found[0] if found and None not in found[0].values() else None

    def verdict_history(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return `{"window": ..., "verdict": ...}` of the windows, the newest first.

        Parameters
        ----------
        limit
            At most so many; None is all.
        """
        rows = self.rows(
            "SELECT described, payload FROM verdicts ORDER BY end DESC, start DESC LIMIT ?",
            (-1 if limit is None else limit,),
        )
        found = ({"window": _unpack(described), "verdict": _unpack(payload)} for described, payload in rows)
        return [each for each in found if None not in each.values()]

    def spare_bytes(self) -> int:
        """Return how much of the file is free inside: what was deleted leaves room for what comes."""
        ((pages,),) = self.rows("PRAGMA freelist_count")
        ((size,),) = self.rows("PRAGMA page_size")
        return int(pages) * int(size)

    def drop_oldest(self, share: float) -> int:
        """Delete a share (0 to 1) of the batches, the oldest; return how many went.

        Parameters
        ----------
        share : float
            Share of all batches, rounded up to whole ones.

        Raises
        ------
        StoreUnavailableError
            When the file cannot be used.
        """
        ((count,),) = self.rows("SELECT count(*) FROM batches")
        found = self.rows("SELECT t1 FROM batches ORDER BY t1 LIMIT 1 OFFSET ?", (math.ceil(count * share),))
        return self.prune(float(found[0][0])) if found else 0

    def prune(self, before: float, after: float = math.inf) -> int:
        """Delete what ended before a moment or ends after another (unix seconds); return how many batches went.

        Parameters
        ----------
        before, after : float
            Unix seconds by the control node's clock.

        Raises
        ------
        StoreUnavailableError
            When the file cannot be used.
        """
        with self.change() as connection:
            gone = connection.execute("DELETE FROM batches WHERE t1<? OR t1>?", (before, after)).rowcount
            connection.execute("DELETE FROM verdicts WHERE end<? OR end>?", (before, after))
            connection.execute(
                "DELETE FROM watermarks WHERE seen<? AND NOT EXISTS "
                "(SELECT 1 FROM batches WHERE batches.node=watermarks.node AND batches.boot=watermarks.boot)",
                (before,),
            )
            return int(gone)
