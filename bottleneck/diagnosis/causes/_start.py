"""Work out what a start says of storage: how long it was waited for, and what was read."""

from __future__ import annotations

from bottleneck.diagnosis.observations.node import NodeFacts


def storage_wait_share(facts: NodeFacts, span_seconds: float) -> tuple[float, str]:
    """Return the share of the time in which a node's workers waited for storage, 0 to 1, and how it is known.

    Parameters
    ----------
    facts : NodeFacts
        Facts of one node.
    span_seconds : float
        Time watched, above 0.

    Returns
    -------
    tuple[float, str]
        0 and no words where neither waits nor pressure were sampled.
    """
    if facts.storage_wait_seconds is not None:
        return min(1.0, facts.storage_wait_seconds / span_seconds), "samples: processes of the workers that wait"
    if facts.io_stall_seconds is not None and facts.disk_read_bytes is not None:
        # Who stalls and reads nothing writes, or is another machine's business.
        stalled = facts.io_stall_seconds if facts.disk_read_bytes > 0 else 0.0
        return min(1.0, stalled / span_seconds), "samples: pressure of io"
    return 0.0, ""


def read_bytes(facts: NodeFacts) -> tuple[float, str]:
    """Return what was read from storage for a node's workers, and how it is known.

    Parameters
    ----------
    facts : NodeFacts
        Facts of one node.

    Returns
    -------
    tuple[float, str]
        Bytes, 0 where nothing was counted.
    """
    if facts.storage_read_bytes is not None:
        return facts.storage_read_bytes, "samples: bytes the workers read from storage"
    return facts.disk_read_bytes or 0.0, "samples: bytes read from whole disks"
