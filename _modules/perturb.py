"""
Slow one resource of this node by a known amount, for a limited time.

What is slowed is put back by whoever comes first: the one who asked (``undo``, or the next ``set``), or the watchdog
(``_utils/perturbation_watchdog.py``), a process of its own on this node that undoes everything once nobody has renewed
the lease. The way back is written down before the way there is taken, so that neither a crash of the driver, nor of the
minion, nor a lost connection to the control node leaves a node slow.

The steps themselves are plain data (``actuator.plan``), so that the watchdog needs no Salt.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import perturbation_watchdog as watchdog

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__

log = logging.getLogger(__name__)

DIRECTORY = "/run/cluster/perturb"
UNIT = "perturb-watchdog"
LEAST_SECONDS, MOST_SECONDS = 1.0, 900.0
WATCHDOG_SECONDS = 15.0


def __virtual__() -> str | tuple[bool, str]:
    return "perturb" if sys.platform == "linux" else (False, "perturb needs tc and control groups")


def set(
    changes: Sequence[dict[str, Any]] | Mapping[str, Sequence[dict[str, Any]]], seconds: float = 30.0
) -> dict[str, Any]:
    """
    Put everything back that is not asked for, do what is, and let it last ``seconds``.

    CLI Example:

    .. code-block:: bash

        salt node1 perturb.set '[{"actuator": "cpu_speed", "slowdown": 2}]' seconds=20

    changes
        list of changes, each with its ``actuator`` and what ``actuator.plan`` takes for it, or such
        lists by minion id; an empty one: put everything back, but stay armed
    seconds
        until the watchdog undoes it, unless it is set again or renewed
    """
    lease = _lease(seconds)
    directory = _directory()
    if isinstance(changes, Mapping):
        changes = changes.get(__opts__["id"], [])
    # Planned before anything is armed: what cannot be done fails here.
    plans = [__salt__["actuator.plan"](change, directory) for change in changes]
    _arm(lease)
    with watchdog.locked(directory):
        state = watchdog.read(directory)
        wanted = {_place(plan["change"]): plan["change"] for plan in plans}
        unwanted = [entry for entry in state["applied"] if _place(entry["change"]) not in wanted]
        state = watchdog.put_back(directory, state, unwanted)
        state = {**state, "deadline": watchdog.now() + lease}
        for change in wanted.values():
            state = _apply(directory, state, change)
        watchdog.write(directory, state)
    return status()


def renew(seconds: float = 30.0) -> bool:
    """
    Move the deadline to ``seconds`` from now; return False when there is nothing left to renew.

    A watchdog that has died is started again first: without one a deadline is only a number. Where it does not start,
    everything is put back, and False returned.

    CLI Example:

    .. code-block:: bash

        salt node1 perturb.renew 30
    """
    lease = _lease(seconds)
    with watchdog.locked(_directory()):
        state = watchdog.read(_directory())
        if state["deadline"] is None:
            return False
    if not watchdog.is_armed(_directory()):
        log.error("The watchdog of %s has died; it is started again", _directory())
        try:
            _arm(lease)
        except RuntimeError:
            undo()
            return False
    with watchdog.locked(_directory()):
        state = watchdog.read(_directory())
        if state["deadline"] is None:
            return False
        watchdog.write(_directory(), {**state, "deadline": watchdog.now() + lease})
    return True


def undo() -> list[dict[str, Any]]:
    """
    Put everything back now; return what it was.

    CLI Example:

    .. code-block:: bash

        salt '*' perturb.undo
    """
    if not os.path.isdir(_directory()):
        return []
    with watchdog.locked(_directory()):
        state = watchdog.read(_directory())
        watchdog.put_back(_directory(), state, state["applied"])
        watchdog.forget(_directory())
    return [entry["change"] for entry in state["applied"]]


def status() -> dict[str, Any]:
    """
    Return what is slowed now, and for how many seconds it stays so without a renewal.

    CLI Example:

    .. code-block:: bash

        salt '*' perturb.status
    """
    state = watchdog.read(_directory())
    left = None if state["deadline"] is None else round(state["deadline"] - watchdog.now(), 3)
    return {
        "armed": state["deadline"] is not None and watchdog.is_armed(_directory()),
        "seconds_left": left,
        "applied": [{"change": entry["change"], "before": entry["before"]} for entry in state["applied"]],
    }


def _directory() -> str:
    return str(__opts__.get("cluster_perturb_directory", DIRECTORY))


def _place(change: dict[str, Any]) -> str:
    """Return what a change acts on: two changes of one place are one change after the other."""
    return "/".join([change["actuator"], str(change.get("interface") or change.get("name") or "")])


def _lease(value: float) -> float:
    seconds = float(value)
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise ValueError(f"seconds={value}: expected {LEAST_SECONDS:g} to {MOST_SECONDS:g}")
    return seconds


def _apply(directory: str, state: watchdog.State, change: dict[str, Any]) -> watchdog.State:
    """Make one change and return the record with it; one that is in effect already stays as it is."""
    place = _place(change)
    before = next((entry for entry in state["applied"] if _place(entry["change"]) == place), None)
    if before and before["change"] == change:
        return state
    # Planned anew: the first plan saw what was slowed then. The way back leads to what was there before all.
    plan = __salt__["actuator.plan"](change, directory)
    entry: watchdog.Entry = {
        "change": change,
        "before": before["before"] if before else plan["before"],
        "undo": before["undo"] if before else plan["undo"],
    }
    applied = state["applied"]
    applied = [entry if each is before else each for each in applied] if before else [*applied, entry]
    state = {**state, "applied": applied}
    watchdog.write(directory, state)
    watchdog.perform(plan["apply"])
    return state


def _arm(seconds: float) -> None:
    """Have the watchdog run before anything is slowed."""
    directory = _directory()
    os.makedirs(directory, mode=0o755, exist_ok=True)
    with watchdog.locked(directory):
        state = watchdog.read(directory)
        deadline = max(state["deadline"] or 0.0, watchdog.now() + seconds + WATCHDOG_SECONDS)
        watchdog.write(directory, {**state, "deadline": deadline})
    patience = time.monotonic() + WATCHDOG_SECONDS
    program = [sys.executable, os.path.abspath(watchdog.__file__), directory]
    while not watchdog.is_armed(directory):
        if time.monotonic() > patience:
            raise RuntimeError("the watchdog did not start: nothing was slowed (see supervise.status)")
        # One that is just ending still counts as running: ask again.
        __salt__["supervise.start"](UNIT, program, {"PYTHONDONTWRITEBYTECODE": "1"})
        time.sleep(0.05)
