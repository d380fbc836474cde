"""Carry out what a trial of an image comes to; called every few seconds by whoever keeps the boots' record."""

from __future__ import annotations

from collections.abc import Callable

from netboot.image.canary import BootRecord, Decision, decide
from netboot.image.store import Store, StoreError


def settle(store: Store, profile: str, newest_boot: Callable[[str], BootRecord | None], now: float) -> Decision | None:
    """Promote or roll back the image that is on trial, when that can be decided; None when none is on trial.

    Parameters
    ----------
    newest_boot
        Node name -> what is known of its newest boot.
    now
        Seconds of the epoch.
    """
    trial = store.canary(profile)
    if trial is None:
        return None
    try:
        store.manifest(trial.digest)
    except StoreError as error:
        # The node can boot nothing as long as this stands.
        decision = Decision("rollback", str(error))
    else:
        decision = decide(trial, newest_boot(trial.node), now)
    if decision.action == "promote":
        store.activate(profile, trial.digest)
    elif decision.action == "rollback":
        store.end_trial(profile)
    return decision
