"""
Bring a deployment back that does not serve any more, and answer for what the cluster did by itself.

Called by the reactor, with what to look at; what is done follows from what the nodes' modules and the engine answer,
and not from the event (``control.recovery``).
"""

import time
from typing import TYPE_CHECKING, Any

from control import audit, locks, records
from control.nodes import Nodes
from control.recovery import Recovery

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

# There when another event asked to look while one look lasted.
AGAIN = "recover.again"


def worker_exited(node: str, workers: list[str] | None = None, what: str = "ended") -> dict[str, Any]:
    """
    Look at the deployment because a process of a worker was seen to end, or to be stopped (called by the reactor).

    CLI Example:

    .. code-block:: bash

        salt-run recover.worker_exited node1
    """
    return _look(f"a process of {', '.join(workers or ['a worker'])} on {node} {what}", settle=True)


def engine_stalled(node: str, seconds: float) -> dict[str, Any]:
    """
    Look at the deployment because a head's engine has requests and makes nothing (called by the reactor).

    CLI Example:

    .. code-block:: bash

        salt-run recover.engine_stalled node0 10
    """
    return _look(f"the engine of {node} made nothing in {float(seconds):.0f} s", settle=False)


def node_lost(node: str) -> dict[str, Any]:
    """
    Start a silent node's sampler again, and look at the deployment (called by the reactor).

    CLI Example:

    .. code-block:: bash

        salt-run recover.node_lost node1
    """
    __salt__["telemetry.revive"](node)
    return _look(f"{node} sends no samples", settle=False)


def look() -> dict[str, Any]:
    """
    Look whether the deployment serves, and bring it back when it does not.

    CLI Example:

    .. code-block:: bash

        salt-run recover.look
    """
    return _look("a person asked", settle=False)


def status() -> dict[str, Any]:
    """
    Return the restarts of the last hour, a deployment that was given up, and whether recovery is paused.

    CLI Example:

    .. code-block:: bash

        salt-run recover.status
    """
    found = records.read(__opts__, records.RECOVERY)
    now = time.time()
    return {
        "restarts": [each for each in found.get("restarts", []) if now - each["at"] < 3600],
        "given_up": found.get("given_up"),
        "paused": records.read(__opts__, records.PAUSED) or None,
    }


def pause(reason: str = "") -> dict[str, Any]:
    """
    Have the cluster do nothing by itself until ``resume``: no restart of workers, no reprovisioning.

    CLI Example:

    .. code-block:: bash

        salt-run recover.pause "cables are being changed"
    """
    records.write(__opts__, records.PAUSED, {"since": time.time(), "reason": str(reason)})
    return audit.note(__opts__, "pause", str(reason) or "a person asked", "the cluster does nothing by itself")


def resume() -> dict[str, Any]:
    """
    Let the cluster act by itself again, and look whether the deployment serves.

    CLI Example:

    .. code-block:: bash

        salt-run recover.resume
    """
    records.forget(__opts__, records.PAUSED)
    audit.note(__opts__, "resume", "a person asked", "the cluster acts by itself again")
    # What ended a moment ago may still answer.
    return _look("recovery was resumed", settle=True)


def forget_restarts() -> dict[str, Any]:
    """
    Have the restarts so far not count towards those that are allowed in an hour.

    CLI Example:

    .. code-block:: bash

        salt-run recover.forget_restarts

    For a person who has mended what the restarts came from, and for a campaign of faults, where each has its own cause.
    """
    found = records.read(__opts__, records.RECOVERY)
    gone = found.pop("restarts", [])
    records.write(__opts__, records.RECOVERY, found)
    return audit.note(__opts__, "forget restarts", "a person asked", f"{len(gone)} restarts do not count any more")


def log(limit: int = 20) -> dict[str, list[dict[str, Any]]]:
    """
    Return the newest entries of what the cluster did by itself, with cause and result.

    CLI Example:

    .. code-block:: bash

        salt-run recover.log limit=5
    """
    return {"entries": audit.entries(__opts__, int(limit))}


def _look(cause: str, settle: bool) -> dict[str, Any]:
    again = records.path_of(__opts__, AGAIN)
    restarted: dict[str, Any] = {}
    while True:
        try:
            with locks.exclusive(__opts__, locks.RECOVERY, "a look", "the deployment is being looked at already"):
                again.unlink(missing_ok=True)
                found = {**restarted, **Recovery(__opts__, Nodes(__opts__), __salt__).run(cause, settle)}
                restarted = {key: found[key] for key in ("restarted",) if key in found}
        except locks.LockedError as error:
            # Ranks end together, and each asks; who looks now looks once more.
            again.touch()
            return {"serves": None, "reason": str(error)}
        if not again.exists():
            return found
