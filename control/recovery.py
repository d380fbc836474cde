"""Bring a deployment back that does not serve any more: end all its ranks, start them again, and know when to stop.

A rank cannot come back alone: the others hold its connections and its place in a collective. So all are ended and
started, which also ends requests that wait for an answer that will not come. Each restart waits longer than the one
before it, and after `MOST_RESTARTS` within `WITHIN_SECONDS` a person has to look: the deployment stays down, on record
with the reason, until it is deployed again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salt.exceptions import CommandExecutionError, SaltException

from control import audit, gateway, hangs, locks, records
from control.nodes import Nodes, Options
from control.serving import trouble

MOST_RESTARTS = 3
WITHIN_SECONDS = 3600.0
# Before the first, second and third restart of an hour.
BACK_OFF_SECONDS = (0.0, 10.0, 60.0)
# A node that lost power, or only its minion, is back by then or has to be looked at.
NODE_SECONDS = 300.0
NODE_POLL_SECONDS = 5.0
STOP_SECONDS = 60.0
# No deploy waits longer: what is on record as starting after that was left by one that was killed.
LONGEST_START_SECONDS = 900.0

# Runner functions by name, such as Salt's ``__salt__``.
Functions = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Decision:
    """The answer to a deployment that does not serve: restart it after ``wait`` seconds, or not, and why."""

    restart: bool
    wait: float = 0.0
    reason: str = ""


def decide(restarts: Sequence[float], now: float) -> Decision:
    """
    Return what the restarts so far allow.

    restarts
        when each of them began, unix seconds; one in the future counts as now, for a clock may have been set back
    """
    recent = [moment for moment in restarts if now - moment < WITHIN_SECONDS]
    if len(recent) >= MOST_RESTARTS:
        return Decision(False, reason=f"{len(recent)} restarts in the last hour did not help")
    return Decision(True, wait=BACK_OFF_SECONDS[min(len(recent), len(BACK_OFF_SECONDS) - 1)])


def under_way(opts: Options, now: float) -> str | None:
    """Return what else is being done with the deployment, which recovery must not disturb, or None."""
    starting = records.read(opts, records.STARTING)
    if starting and not starting.get("ended") and now - starting["began"] < LONGEST_START_SECONDS:
        return f"{starting['deployment']} is being deployed"
    if records.path_of(opts, records.PAUSED).exists():
        return "recovery is paused (cluster resume)"
    if locks.is_taken(opts, locks.REPROVISION):
        return "nodes are being reprovisioned"
    return None


class Recovery:
    """One look at the deployment, and what follows from it.

    Parameters
    ----------
    functions : mapping
        Runner functions by name; ``cluster.deploy`` is used.
    """

    def __init__(
        self,
        opts: Options,
        nodes: Nodes,
        functions: Functions,
        wait: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
        look: Callable[..., str | None] = trouble,
    ) -> None:
        self._opts, self._nodes, self._functions = opts, nodes, functions
        self._wait, self._now, self._look = wait, now, look

    def run(self, cause: str, settle: bool) -> dict[str, Any]:
        """
        Look whether the deployment serves, and bring it back when it does not; return what was done.

        cause
            why it is looked at, with what was seen
        settle
            whether a process was seen to end
        """
        seen = self._now()
        record = records.read(self._opts, records.DEPLOYMENT)
        if not record:
            return {"serves": None, "reason": "nothing is deployed"}
        if reason := under_way(self._opts, seen):
            return {"serves": None, "reason": reason}
        model = self._nodes.profile.model.name
        why = self._look(self._nodes, record["workers"], model, settle, exchanges=self._exchanges(record))
        if why is None:
            return {"serves": True, "reason": cause}
        detected = self._now()
        while True:
            try:
                found = self._end_ranks(record, cause, why)
                if found is not None:
                    return found
                failure = self._restart(record, cause, why, seen, detected)
            except locks.LockedError as error:
                # A person, or reprovisioning, starts or stops workers now: what they want is what counts.
                return {"serves": None, "reason": str(error)}
            if failure is None:
                return {"serves": True, "restarted": True, "reason": why}
            why = failure

    def _exchanges(self, record: Mapping[str, Any]) -> int:
        try:
            return hangs.exchanges(self._nodes.profile, records.deployment(record))
        except SaltException:
            # A record that a version before wrote: a loop is then found by the longest step.
            return 0

    def _end_ranks(self, record: Mapping[str, Any], cause: str, why: str) -> dict[str, Any] | None:
        """End what is left of the deployment, and wait as long as the restarts before it want; or return the outcome.

        Under the lock of those who start and stop workers, and after another look: workers that are being stopped on
        purpose look as if they had died.
        """
        with locks.exclusive(self._opts, locks.DEPLOYMENT, f"a restart of {record['deployment']}"):
            if records.read(self._opts, records.DEPLOYMENT).get("started") != record.get("started"):
                return {"serves": None, "reason": "it is not the deployment any more that was looked at"}
            if reason := under_way(self._opts, self._now()):
                return {"serves": None, "reason": reason}
            restarts = [float(each["at"]) for each in self._record().get("restarts", [])]
            decision = decide(restarts, self._now())
            # First: what clients wait for fails at once, and what comes now waits for the ranks that are started again.
            heads = [worker["node"] for worker in record["workers"] if worker["head"]]
            gateway.withdraw(self._opts, heads, awaited=decision.restart)
            self._stop(record)
            if not decision.restart:
                return self._give_up(record, cause, f"{why}; {decision.reason}")
        self._wait(decision.wait)
        return None

    def _stop(self, record: Mapping[str, Any]) -> None:
        """End every rank: at once, for the head still holds requests that nobody will answer."""
        names = sorted({worker["node"] for worker in record["workers"]})
        self._nodes.ask("worker.stop", [None, True], names=names, timeout=STOP_SECONDS)

    def _restart(self, record: Mapping[str, Any], cause: str, why: str, seen: float, detected: float) -> str | None:
        """Start all ranks; return why that failed, or None."""
        began = self._now()
        self._note_restart(began)
        # When it was known that it does not serve: what a campaign measures against the moment of the fault.
        entry = {"deployment": record["deployment"], "looked_at": cause, "detected": round(detected, 3)}
        try:
            self._await_nodes(record)
            started = self._functions["cluster.deploy"](
                record["deployment"], record.get("overrides") or {}, again=record["started"]
            )
        except locks.LockedError:
            raise
        except (SaltException, OSError) as error:
            audit.note(self._opts, "restart", why, f"failed: {error}", seconds=round(self._now() - seen, 1), **entry)
            return str(error)
        stages = {
            "stopped_seconds": round(began - seen, 1),
            "started_seconds": round(started["ready"] - began, 1),
            "first_token_seconds": round(started["first_token"] - started["ready"], 1),
        }
        audit.note(self._opts, "restart", why, "serves again", seconds=round(self._now() - seen, 1), **stages, **entry)
        return None

    def _await_nodes(self, record: Mapping[str, Any]) -> None:
        """Wait for nodes that do not answer; ranks on the others alone would serve nothing."""
        names = {worker["node"] for worker in record["workers"]}
        deadline = self._now() + NODE_SECONDS
        while silent := names - self._nodes.answering(names, timeout=NODE_POLL_SECONDS):
            if self._now() >= deadline:
                raise CommandExecutionError(
                    f"{', '.join(sorted(silent))} did not answer in {NODE_SECONDS:.0f} s (cluster status)"
                )
            self._wait(NODE_POLL_SECONDS)

    def _give_up(self, record: Mapping[str, Any], cause: str, why: str) -> dict[str, Any]:
        found = {
            "deployment": record["deployment"],
            "at": self._now(),
            "reason": why,
            "next": f"cluster logs NODE -n 200; then cluster deploy {record['deployment']}",
        }
        records.write(self._opts, records.RECOVERY, {**self._record(), "given_up": found})
        records.forget(self._opts, records.DEPLOYMENT)
        audit.note(self._opts, "give up", why, "stopped until a person deploys it", looked_at=cause, **_where(record))
        return {"serves": False, "reason": why}

    def _record(self) -> dict[str, Any]:
        return records.read(self._opts, records.RECOVERY)

    def _note_restart(self, moment: float) -> None:
        found = self._record()
        kept = [each for each in found.get("restarts", []) if moment - each["at"] < WITHIN_SECONDS]
        records.write(self._opts, records.RECOVERY, {"restarts": [*kept, {"at": moment}]})


def _where(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"deployment": record["deployment"]}
