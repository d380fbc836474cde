"""Seal the control node's own events, so that what acts on them can tell them from a node's.

A minion can send any event under any tag, and with a list of events one that carries no sender. So an event that leads
to an action carries its content a second time, as text, with a MAC that only the control node can make. What takes it
reads that text and nothing else of the event.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from salt.exceptions import CommandExecutionError

from bottleneck.telemetry import cluster_view
from control import shared_secrets
from control.nodes import Options


@dataclass(frozen=True)
class Action:
    """A runner's function, and which parts of an event it is called with; `whole` is the event itself."""

    function: str
    arguments: tuple[str, ...] = ()
    whole: bool = False


ACTIONS = {
    cluster_view.WINDOW_TAG: Action("telemetry.aggregate", whole=True),
    cluster_view.LOST_TAG: Action("recover.node_lost", ("node",)),
    cluster_view.STILL_LOST_TAG: Action("recover.node_lost", ("node",)),
    cluster_view.EXITED_TAG: Action("recover.worker_exited", ("node", "workers", "what")),
    cluster_view.STALLED_TAG: Action("recover.engine_stalled", ("node", "seconds")),
}
SEALED, SEAL = "sealed", "seal"
_PURPOSE = "internal events"


def sealed(opts: Options, tag: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event's data with its seal."""
    text = json.dumps(data, sort_keys=True)
    return {**data, SEALED: text, SEAL: _mac(opts, tag, text)}


def opened(opts: Options, tag: str, event: object) -> dict[str, Any]:
    """Return what the control node sealed under a tag.

    Raises
    ------
    CommandExecutionError
        When the event is not the control node's own.
    """
    if tag not in ACTIONS:
        raise CommandExecutionError(f"{tag}: expected one of {', '.join(ACTIONS)}")
    text, mac = (event.get(SEALED), event.get(SEAL)) if isinstance(event, Mapping) else (None, None)
    if not isinstance(text, str) or not isinstance(mac, str) or not mac.isascii():
        raise CommandExecutionError(f"an event {tag} without a seal: it is not the control node's own")
    if not hmac.compare_digest(_mac(opts, tag, text), mac):
        raise CommandExecutionError(f"an event {tag} with a wrong seal: it is not the control node's own")
    found: dict[str, Any] = json.loads(text)
    return found


def _mac(opts: Options, tag: str, text: str) -> str:
    key = shared_secrets.derived(opts, _PURPOSE)
    # Half a surrogate pair is no Unicode, and what a node sends may hold one.
    return hmac.new(key, f"{tag}\n{text}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
