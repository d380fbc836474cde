"""Decide which start of a minion leads to an apply, and have one apply at a time on a node.

Any accepted minion can send any other's start event, as often as it likes. So an event only says: look. What is looked
at are the control node's own records: the boot that enrolled (`netboot`), what was applied after it, and when.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from bottleneck import atomic_files
from bottleneck.json_files import JsonFileError, read_json
from bottleneck.profile import Profile
from control import records
from control.nodes import Options
from netboot.boot import storage

FOLDER = "starts"
# Applies that starts may lead to, of one node, in so long: for nodes whose boots are on no record, and failed ones.
MOST_APPLIES, WITHIN_SECONDS = 3, 600.0


@dataclass(frozen=True)
class Applied:
    """Results of a node's starts.

    Attributes
    ----------
    boot : str
        The boot that the states were applied after, all of them without a failure; empty when none was.
    moments : tuple of float
        When applies began that a start led to, unix seconds.
    profile : str
        Digest of the profile whose states were applied last, all of them without a failure.
    """

    boot: str = ""
    moments: tuple[float, ...] = ()
    profile: str = ""


_APPLIED: TypeAdapter[Applied] = TypeAdapter(Applied)


def refusal(known: Applied, boot: str | None, boots_on_record: bool, now: float) -> str | None:
    """Return why a start leads to nothing, or None.

    Parameters
    ----------
    boot : str or None
        Id of the newest boot that enrolled, by the boot service's record.
    boots_on_record : bool
        Whether the nodes boot over the network, so that there is such a record.
    """
    if boots_on_record and boot is None:
        return "no boot of it has enrolled"
    if boot is not None and known.boot == boot:
        return f"it is configured since boot {boot[:8]}"
    # A moment after now is of a clock that was set back: it counts, and goes when the clock has passed it.
    recent = [moment for moment in known.moments if now - moment < WITHIN_SECONDS]
    if len(recent) >= MOST_APPLIES:
        return f"{len(recent)} starts of it were acted on in {WITHIN_SECONDS:.0f} s (cluster apply does it now)"
    return None


def began(known: Applied, now: float) -> Applied:
    """Return what is known once an apply begins."""
    return replace(known, moments=(*known.moments, now)[-MOST_APPLIES:])


def ended(known: Applied, boot: str | None, profile: str) -> Applied:
    """Return what is known once all states of a profile were applied without a failure."""
    return replace(known, boot=boot or known.boot, profile=profile)


def enrolled_boot(opts: Options, node: str) -> str | None:
    """Return the id of the newest boot of a node that enrolled, by the boot service's own record."""
    state = storage.read(records.path_of(opts, records.BOOT))
    boots = state.nodes[node].boots if state is not None and node in state.nodes else ()
    return next((boot.id for boot in reversed(boots) if boot.at("enrolled") is not None), None)


def read(opts: Options, node: str) -> Applied:
    """Return what starts have led to on a node; a record that cannot be read is none."""
    try:
        return read_json(_path(opts, node), _APPLIED) or Applied()
    except JsonFileError:
        return Applied()


def write(opts: Options, node: str, known: Applied) -> None:
    """Put what is known of a node on record."""
    path = _path(opts, node)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_files.replace_json(path, asdict(known), durable=True)


@contextlib.contextmanager
def alone(opts: Options, nodes: Iterable[str], wait: bool = True) -> Iterator[bool]:
    """Take the locks of nodes for an apply, as the process that has them; yield whether they were had.

    Parameters
    ----------
    wait : bool
        Wait for another apply to end; else yield False at once where there is one.
    """
    with contextlib.ExitStack() as stack:
        # In one order everywhere: two that wait for each other would wait for ever.
        for node in sorted(nodes):
            path = _path(opts, node).with_suffix(".lock")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = stack.enter_context(path.open("w", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
        yield True


def note_applied(opts: Options, node: str, profile: Profile) -> None:
    """Put on record that all states of a profile were applied to a node without a failure."""
    boot = enrolled_boot(opts, node) if profile.boot is not None else None
    write(opts, node, ended(read(opts, node), boot, profile.digest))


def act_on(
    opts: Options, node: str, profile: Profile, now: float, apply: Callable[[], Mapping[str, object]]
) -> Mapping[str, object]:
    """Apply the states after a start of a node, if the records call for it; return what was done, or why not.

    Parameters
    ----------
    apply : callable
        Applies the states and returns ``{"failed": [...]}``.
    """
    with alone(opts, [node], wait=False) as free:
        if not free:
            return {"applied": False, "reason": "an apply is under way on it"}
        boots_on_record = profile.boot is not None
        boot = enrolled_boot(opts, node) if boots_on_record else None
        known = read(opts, node)
        reason = refusal(known, boot, boots_on_record, now)
        if reason is not None:
            return {"applied": False, "reason": reason}
        known = began(known, now)
        # Before: an apply that ends this process would otherwise be tried again without end.
        write(opts, node, known)
        result = apply()
        if not result["failed"]:
            # The boot that was looked at: another may have enrolled meanwhile.
            write(opts, node, ended(known, boot, profile.digest))
        return {"applied": True, **result}


def _path(opts: Options, node: str) -> Path:
    return records.path_of(opts, FOLDER) / f"{node}.json"
