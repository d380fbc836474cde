"""Keep the control node's store usable: begin anew when its file is damaged, make room when the disk runs full."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from bottleneck.telemetry.database import StoreDamagedError, StoreUnavailableError
from bottleneck.telemetry.store import Store

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


# Left on the disk for everything else that writes there: the smaller of the two.
RESERVE_BYTES, RESERVE_SHARE = 256 * 2**20, 0.05
# What goes at once when that is reached.
DROPPED_SHARE = 0.1


def make_room(store: Store) -> int:
    """Delete the oldest batches when the disk is nearly full, so that the file takes new ones without growing.

    Parameters
    ----------
    store : Store
        An open store.

    Returns
    -------
    int
        How many batches went; 0 while there is room on the disk, or inside the file.

    Raises
    ------
    StoreUnavailableError
        When the disk is so full already that nothing can be deleted.
    """
    try:
        disk = shutil.disk_usage(store.path.parent)
    except OSError as error:
        raise StoreUnavailableError(f"{store.path}: cannot be used now ({error})") from error
    reserve = min(RESERVE_BYTES, RESERVE_SHARE * disk.total)
    if disk.free >= reserve or store.spare_bytes() >= reserve / 4:
        return 0
    return store.drop_oldest(DROPPED_SHARE)


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
