"""
Record the start of a deployment: what its nodes did from the order to deploy until it served.

A start has no load, so nothing is sent. The samplers watch all the time: of a start that is over, or that failed,
the record is put together afterwards; of one that lasts, it is what there is so far.
"""

import time
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

from control import records
from control.nodes import Nodes, progress
from control.recording import Recording

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

# Less than this shows nothing of a start.
LEAST_SECONDS = 2.0


def record(note: str = "") -> dict[str, Any]:
    """
    Put the samples of the newest start in a run folder and return where it is.

    CLI Example:

    .. code-block:: bash

        salt-run start_recording.record
    """
    begun = time.monotonic()
    deployed = _newest()
    started = float(deployed["began"])
    # The head's first answer comes after it is ready: it is a load already.
    reached = deployed.get("ready") or deployed.get("ended")
    ended = float(reached or time.time())
    if ended - started < LEAST_SECONDS:
        what = "was there at once" if reached else "has only begun to start: ask again"
        raise CommandExecutionError(f"{deployed['deployment']} {what} ({ended - started:.1f} s)")
    recording = Recording(__opts__, Nodes(__opts__), deployed, "start")
    recording.open()
    try:
        progress("recording", "", f"the start of {deployed['deployment']}", begun)
        recording.write_static()
        problems = recording.export_samples(__salt__.get("telemetry.export"), started, ended)
        state = "serving" if deployed.get("ready") else "failed" if reached else "starting"
        document = {
            "kind": "start",
            "started": started,
            "ended": ended,
            "note": str(note),
            "workload": {},
            "status": "complete",
            "state": state,
            "points": [],
            "problems": problems,
        }
        recording.close(document)
    except BaseException:
        recording.drop()
        raise
    return {
        "run": recording.id,
        "folder": str(recording.final),
        "deployment": deployed["deployment"],
        "state": state,
        "start_seconds": round(ended - started, 1),
        "problems": problems,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _newest() -> dict[str, Any]:
    found: dict[str, Any] = __salt__["cluster.starting_record"]() or __salt__["cluster.deployment_record"]()
    if not found.get("began"):
        raise CommandExecutionError("nothing is deployed, and nothing starts: cluster deploy")
    records.deployment(found)
    return found
