"""Keep each node's own key: made by the control node, given to that node alone through its pillar.

A key is derived from the control node's secret, the minion's id and a generation. So what is on record here is no
secret: which generation a node has, the one before while it changes, and whether the node has proven that it has the
present one. A node that enrols gets a new generation at that moment, and what had the former key has none.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from bottleneck import atomic_files, node_seal
from control import records, shared_secrets
from control.records import Options

FOLDER = Path("secrets", "node-keys")
_PURPOSE = "node key"
_GENERATION_BYTES = 16


@dataclass(frozen=True)
class Generation:
    """The key that a node has.

    Attributes
    ----------
    name : str
        Of the key that it is to use.
    former : str
        Of the one that it used before, as long as it may still; empty when only the present one is good.
    proven : bool
        Whether something that the node sent had the seal of the present one.
    required : bool
        Whether batches in the node's name without a seal are refused: since it enrolled, or has sealed one. A node
        that was there before nodes had keys seals nothing until its states are applied.
    """

    name: str
    former: str
    proven: bool
    required: bool


_GENERATION: TypeAdapter[Generation] = TypeAdapter(Generation)


def key_of(opts: Options, minion: str) -> bytes:
    """Return the key that a node is to use; one is made when it has none yet."""
    found = _read(opts, minion)
    if found is None:
        with _alone(opts, minion):
            found = _read(opts, minion) or _write(opts, minion, _new())
    return _derived(opts, minion, found.name)


def renew(opts: Options, minion: str, keep_former: bool) -> None:
    """Make a new key for a node.

    Parameters
    ----------
    keep_former : bool
        Whether the one before is good until `settle`: for a node that is up. A node that enrols has none.
    """
    with _alone(opts, minion):
        known = _read(opts, minion)
        if keep_former and known:
            _write(opts, minion, replace(_new(), former=known.name, required=known.required))
        else:
            _write(opts, minion, replace(_new(), required=True))


def settle(opts: Options, minion: str) -> None:
    """Let only the present key of a node be good from here on."""
    with _alone(opts, minion):
        known = _read(opts, minion)
        if known is not None and known.former:
            _write(opts, minion, replace(known, former=""))


def is_proven(opts: Options, minion: str) -> bool:
    """Return whether a node has shown that it has its present key."""
    known = _read(opts, minion)
    return known is not None and known.proven


def is_required(opts: Options, minion: str) -> bool:
    """Return whether a node is to seal its batches: what comes in its name without a seal is refused."""
    known = _read(opts, minion)
    return known is not None and known.required


def seal_holds(opts: Options, purpose: str, minion: str, text: str, found: object) -> bool:
    """Return whether a text has the seal of a node; the first one of a key is put on record.

    Parameters
    ----------
    purpose : str
        Of `bottleneck.node_seal`.
    minion : str
        Id of the node that is said to have sent it.
    text : str
        What was sealed.
    found : object
        What came as its seal; it may be anything.
    """
    known = _read(opts, minion)
    if known is None:
        return False
    if node_seal.holds(_derived(opts, minion, known.name), purpose, minion, text, found):
        # A node's modules may seal its answers while its sampler is still one that seals nothing.
        required = known.required or purpose == node_seal.BATCHES
        if (known.proven, known.required) != (True, required):
            # On a full disk it is noted later: what was sealed holds all the same.
            with contextlib.suppress(OSError):
                _note_proven(opts, minion, known.name, required)
        return True
    return bool(known.former) and node_seal.holds(_derived(opts, minion, known.former), purpose, minion, text, found)


def _note_proven(opts: Options, minion: str, name: str, required: bool) -> None:
    with _alone(opts, minion):
        known = _read(opts, minion)
        if known is not None and known.name == name:
            _write(opts, minion, replace(known, proven=True, required=required or known.required))


def _new() -> Generation:
    return Generation(secrets.token_hex(_GENERATION_BYTES), former="", proven=False, required=False)


def _derived(opts: Options, minion: str, name: str) -> bytes:
    return shared_secrets.derived(opts, _PURPOSE, minion, name)


def _path(opts: Options, minion: str) -> Path:
    if not minion or "/" in minion or minion.startswith("."):
        raise ValueError(f"{minion!r} is no minion's id")
    return records.path_of(opts, str(FOLDER / f"{minion}.json"))


def _read(opts: Options, minion: str) -> Generation | None:
    remedy = f"take the file away, then cluster apply: {minion} gets a new key"
    return records.read_as(_path(opts, minion), _GENERATION, remedy)


def _write(opts: Options, minion: str, generation: Generation) -> Generation:
    atomic_files.replace_json(_path(opts, minion), asdict(generation), mode=0o600, durable=True)
    return generation


@contextlib.contextmanager
def _alone(opts: Options, minion: str) -> Iterator[None]:
    path = _path(opts, minion).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
