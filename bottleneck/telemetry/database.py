"""A SQLite file of several processes: one connection for each, short transactions, errors that say what can be done.

The file is in WAL mode, and every change is one transaction that takes its turn at once.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class StoreError(Exception):
    """The file is not a store of this version, or cannot be used."""


class StoreDamagedError(StoreError):
    """The file is no database, or parts of it were overwritten: what it holds cannot be relied upon."""


class StoreUnavailableError(StoreError):
    """The file cannot be used now (no space, a lock, no permission): the same may succeed later."""


# By SQLite's primary result code. https://www.sqlite.org/rescode.html
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    }
)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into those of this module, where they say something about the file."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            raise StoreDamagedError(f"{path}: is damaged ({error})") from error
        if code in _UNAVAILABLE:
            raise StoreUnavailableError(f"{path}: cannot be used now ({error})") from error
        raise


class Database:
    """A SQLite file, and this process's connection to it.

    Parameters
    ----------
    path : Path or str
        Created with its folder when missing.
    schema : str
        Statements that make an empty file's tables.
    version : int
        Of the schema, from 1; it is written into the file.
    timeout_seconds : float
        How long to wait for another process's transaction.

    Raises
    ------
    StoreDamagedError
        When the file is no database, or a damaged one; from any method.
    StoreUnavailableError
        When it cannot be used now, for lack of space for one; from any method.
    StoreError
        When it is of another version.
    """

    def __init__(self, path: Path | str, schema: str, version: int, timeout_seconds: float = 30.0) -> None:
        self.path = Path(path)
        self._schema, self._version = schema, version
        self._timeout = timeout_seconds
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        with self._lock:
            self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection of this process."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        # A connection must not cross a fork (Salt forks its processes): each process opens its own.
        if self._connection is not None and self._process == os.getpid():
            return self._connection
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"{self.path}: cannot be used now ({error})") from error
        with _translated(self.path):
            connection = sqlite3.connect(
                self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        self._connection, self._process = connection, os.getpid()
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # What was acknowledged must survive a power cut: NORMAL would wait for the disk at checkpoints only.
        connection.execute("PRAGMA synchronous=FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, self._version):
            seen = f"store version {version}, expected {self._version}"
            raise StoreError(f"{self.path}: {seen}; move it away to start anew")
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {self._schema} PRAGMA user_version={self._version}; COMMIT;")

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside a transaction, which is committed at the end and undone by an error.

        Yields
        ------
        sqlite3.Connection
            For statements alone: begin and end of the transaction are made here.
        """
        with self._lock:
            connection = self._open()
            with _translated(self.path):
                # Immediate: two writers that both read first would otherwise fail each other.
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    # On some errors, a full disk for one, SQLite has rolled back by itself.
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """Return the rows that a query gives.

        Parameters
        ----------
        query : str
            SQL with a question mark for each value.
        values : Sequence[object]
            Values in the order of the question marks.
        """
        with self._lock, _translated(self.path):
            return self._open().execute(query, tuple(values)).fetchall()
