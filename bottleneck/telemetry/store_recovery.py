"""Keep the control node's store usable: begin anew when its file is damaged, make room when the disk runs full."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from bottleneck.telemetry.store import Store, StoreDamagedError, StoreUnavailableError

# A disk that damages files again and again must not fill with them.
MOST_SET_ASIDE = 3


def set_aside(path: Path, now: float) -> Path:
    """Rename a damaged store, with what SQLite keeps beside it, and remove all but the last few set aside before.

    Parameters
    ----------
    path : Path
        The store's file.
    now : float
        Unix seconds; part of the new name.

    Returns
    -------
    Path
        The file's new name.

    Raises
    ------
    StoreUnavailableError
        When the file system lets nothing be renamed.
    """
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{moment}")
    number_of_name = 1
    while aside.exists():
        number_of_name += 1
        aside = path.with_name(f"{path.name}.damaged-{moment}-{number_of_name}")
    try:
        for suffix in ("-wal", "-shm", ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.replace(aside.with_name(aside.name + suffix))
        names = (
            each for each in path.parent.glob(f"{path.name}.damaged-*") if not each.name.endswith(("-wal", "-shm"))
        )
        for old in sorted(names, key=lambda each: each.stat().st_mtime_ns)[:-MOST_SET_ASIDE]:
            for suffix in ("", "-wal", "-shm"):
                old.with_name(old.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise StoreUnavailableError(f"{path}: is damaged and cannot be set aside ({error})") from error
    return aside


def open_or_begin_anew(path: Path | str, now: float) -> tuple[Store, Path | None]:
    """Open a store; one that is damaged is set aside, and an empty one takes its place.

    Parameters
    ----------
    path : Path or str
        The store's file.
    now : float
        Unix seconds.

    Returns
    -------
    (Store, Path or None)
        The store, and what the damaged one is called now.

    Raises
    ------
    StoreError
        When it is a store of another version, or cannot be used now.
    """
    try:
        store = Store(path)
    except StoreDamagedError:
        aside = set_aside(Path(path), now)
        return Store(path), aside
    try:
        # The damage of a file whose first page is sound shows when it is read.
        store.last_seen()
        store.latest_verdict()
    except StoreDamagedError:
        store.close()
        aside = set_aside(Path(path), now)
        return Store(path), aside
    return store, None
