"""Open what samplers send: batches that count when the node that they are said to be of has sealed them."""

from __future__ import annotations

import json

from bottleneck import node_seal
from control import node_keys, records
from control.records import Options

# A sampler sends 768 KiB, and a single sample that is larger as it is; Salt trims events above 1 MiB.
LARGEST_EVENT = 4 * 2**20


class UnsealedError(ValueError):
    """An event is not the named node's own, or no JSON; the text says why."""


def opened(opts: Options, minion: str | None, content: object) -> object:
    """Return the batches of an event's data; they may be anything.

    Parameters
    ----------
    minion : str or None
        Id of the minion of the node that the event's tag names; None when it names no node of the profile.
    content : object
        What the event has.

    Raises
    ------
    UnsealedError
        When it has not the seal of that node. A node that has never sealed a batch, nor enrolled since nodes have keys,
        is one whose states are to be applied: its batches are taken as they are.
    """
    if minion is None:
        raise UnsealedError("of no node of the profile")
    text, seal = (content.get("text"), content.get("seal")) if isinstance(content, dict) else (None, None)
    try:
        if not isinstance(text, str) or seal is None:
            if isinstance(content, dict) and not node_keys.is_required(opts, minion):
                return content.get("batches")
            raise UnsealedError("without a seal")
        if len(text) > LARGEST_EVENT:
            raise UnsealedError(f"of {len(text)} characters, expected at most {LARGEST_EVENT}")
        if not node_keys.seal_holds(opts, node_seal.BATCHES, minion, text, seal):
            raise UnsealedError(f"without the seal of {minion} (it takes its key over with: cluster apply)")
    except (OSError, records.RecordError) as error:
        raise UnsealedError(f"whose seal cannot be checked: {error}") from error
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        raise UnsealedError(f"that cannot be read: {type(error).__name__}") from None
