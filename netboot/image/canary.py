"""Try a new image on one node: it goes to all when that node came back, and goes away when it did not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

DEFAULT_DEADLINE_SECONDS = 600.0


@dataclass(frozen=True)
class Canary:
    """One trial.

    Parameters
    ----------
    started, deadline : float
        Seconds of the epoch: when it began, and by when the node has to be back.
    """

    profile: str
    node: str
    digest: str
    started: float
    deadline: float

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class BootRecord:
    """Known facts of the node's newest boot.

    Parameters
    ----------
    image : str
        Digest that it was given.
    started : float
        When it asked for its boot script, in seconds of the epoch.
    enrolled : float or None
        When its minion was let in.
    failed : str or None
        Why it cannot get further, where that is certain.
    """

    image: str
    started: float
    enrolled: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Decision:
    """The next step, and why, in one sentence."""

    action: Literal["wait", "promote", "rollback"]
    reason: str


def decide(canary: Canary, boot_record: BootRecord | None, now: float) -> Decision:
    """Return what a trial comes to, given the node's newest boot.

    Only a boot that began after the trial and was given its image counts: the node may still
    be up with the old one, and its stages must not be taken for the new one's.
    """
    counts = boot_record is not None and boot_record.started >= canary.started and boot_record.image == canary.digest
    left = canary.deadline - now
    if boot_record is not None and counts:
        if boot_record.enrolled is not None and boot_record.enrolled <= canary.deadline:
            taken = boot_record.enrolled - canary.started
            return Decision("promote", f"{canary.node} came back with {canary.digest} after {taken:.0f} s")
        if boot_record.failed:
            return Decision("rollback", f"{canary.node} cannot boot {canary.digest}: {boot_record.failed}")
    if left <= 0:
        seen = "it booted and did not enrol" if counts else "it did not boot it"
        window = canary.deadline - canary.started
        return Decision("rollback", f"{canary.node} is not back with {canary.digest} within {window:.0f} s: {seen}")
    return Decision("wait", f"{canary.node} has {left:.0f} s left to come back with {canary.digest}")


class Trials(Protocol):
    """The part of the image store that a trial needs."""

    def canary(self, profile: str) -> Canary | None:
        """Return the trial that is under way."""

    def why_missing(self, digest: str) -> str:
        """Return why an image cannot be booted; empty when it can."""

    def activate(self, profile: str, digest: str) -> object:
        """Make an image the one that the profile's nodes boot, which ends the trial."""

    def end_trial(self, profile: str) -> None:
        """Give every node the profile's image again."""


def settle(store: Trials, profile: str, newest_boot: Callable[[str], BootRecord | None], now: float) -> Decision | None:
    """Promote or roll back the image that is on trial, when that can be decided; None when none is.

    Called every few seconds by whoever keeps the boots' record.

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
    missing = store.why_missing(trial.digest)
    # Without the image the node can boot nothing as long as the trial stands.
    decision = Decision("rollback", missing) if missing else decide(trial, newest_boot(trial.node), now)
    if decision.action == "promote":
        store.activate(profile, trial.digest)
    elif decision.action == "rollback":
        store.end_trial(profile)
    return decision
