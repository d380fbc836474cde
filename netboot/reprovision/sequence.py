"""Decide the next step when nodes are reprovisioned: a pure state machine.

`next_action` says what to do, `after` takes how it went; neither does anything itself.
Whoever drives it (the runner) keeps the state in a file, so that a run that was cut off
is seen to be, and what was deployed before is known.

One node at a time, in the order given: its boot is armed, it reboots, it comes back with
the image that it was given, its states are applied. At the first failure no further node
is touched. When the image is to blame (the node was rebooted into one that it did not run
before, and did not come back with it), the image is rolled back, and the nodes that have
it are brought back, each once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Kind = Literal["drain", "undeploy", "arm", "reboot", "boot", "apply", "rollback", "redeploy", "end"]
# What is done with each node, in order.
NODE_STEPS: tuple[Kind, ...] = ("arm", "reboot", "boot", "apply")
# Failures after which a node runs, or hangs in, what it was given.
_BLAMED_ON_IMAGE: tuple[Kind, ...] = ("boot", "apply")


@dataclass(frozen=True)
class Action:
    """One thing to do; `node` is None for what concerns the whole cluster."""

    kind: Kind
    node: str | None = None


@dataclass(frozen=True)
class Failure:
    """The place and text of a failure; `text` is a sentence for the person."""

    kind: Kind
    node: str | None
    text: str


@dataclass(frozen=True)
class State:
    """Progress of a run.

    Attributes
    ----------
    waiting
        Nodes still to be done, in order; the first is the one under way.
    step
        Index into `NODE_STEPS` of the node under way.
    tries
        Reboots of the node under way, so far.
    attempts
        Reboots of one node before its image is to blame.
    renewed
        Nodes for which the image is another than the one they ran before.
    done
        Nodes that came back with what they were given.
    deployment
        What was deployed before: its name and overrides; None when nothing was.
    stage
        The part that is under way; ``back`` after a rollback, when nodes are brought back.
    """

    waiting: tuple[str, ...]
    step: int = 0
    tries: int = 0
    attempts: int = 1
    renewed: frozenset[str] = frozenset()
    done: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    deployment: dict[str, Any] | None = None
    stage: Literal["drain", "undeploy", "nodes", "rollback", "back", "redeploy", "ended"] = "drain"
    undeployed: bool = False
    failures: tuple[Failure, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Return whether everything went as wanted."""
        return self.stage == "ended" and not self.failures


def begin(
    nodes: list[str],
    *,
    canary: str | None = None,
    deployment: dict[str, Any] | None = None,
    renewed: frozenset[str] = frozenset(),
    attempts: int = 1,
) -> State:
    """Return the state before anything is done; the canary goes first when it is among the nodes.

    Raises
    ------
    ValueError
        When there is no node.
    """
    if not nodes:
        raise ValueError("no node; expected at least one")
    order = list(dict.fromkeys(nodes))
    if canary in order:
        order.remove(canary)
        order.insert(0, canary)
    stage: Literal["drain", "nodes"] = "drain" if deployment else "nodes"
    return State(tuple(order), attempts=attempts, renewed=renewed, deployment=deployment, stage=stage)


def next_action(state: State) -> Action:
    """Return what is to be done now; ``end`` when nothing is."""
    if state.stage in ("nodes", "back"):
        return Action(NODE_STEPS[state.step], state.waiting[0])
    whole: dict[str, Kind] = {"drain": "drain", "undeploy": "undeploy", "rollback": "rollback", "redeploy": "redeploy"}
    return Action(whole.get(state.stage, "end"))


def after(state: State, error: str | None = None) -> State:
    """Return the state after the action that `next_action` named.

    Parameters
    ----------
    error
        What went wrong, as a sentence; None when it was done.
    """
    action = next_action(state)
    if action.kind == "end":
        return state
    if error is not None:
        failed = replace(state, failures=(*state.failures, Failure(action.kind, action.node, error)))
        return _failed(failed, action)
    if action.kind == "drain":
        return replace(state, stage="undeploy")
    if action.kind == "undeploy":
        return replace(state, stage="nodes", undeployed=True)
    if action.kind == "rollback":
        return _brought_back(state)
    if action.kind == "redeploy":
        return replace(state, stage="ended")
    tries = state.tries + 1 if action.kind == "reboot" else state.tries
    if state.step + 1 < len(NODE_STEPS):
        return replace(state, step=state.step + 1, tries=tries)
    return _node_done(state)


def _node_done(state: State) -> State:
    node = state.waiting[0]
    if state.stage == "back":
        return _skip(replace(state, restored=(*state.restored, node)))
    return _skip(replace(state, done=(*state.done, node)))


def _finish(state: State) -> State:
    """Put back what was deployed, if it was taken down."""
    return replace(state, stage="redeploy" if state.undeployed else "ended")


def _failed(state: State, action: Action) -> State:
    if action.kind in ("drain", "redeploy"):
        # Not drained: it still serves, and goes on.
        return replace(state, stage="ended")
    if action.kind == "undeploy":
        # Half of it may be gone: what is deployed as before is whole.
        return replace(state, stage="redeploy")
    if action.kind == "rollback":
        return _finish(state)
    if state.stage == "back":
        # Each node is brought back once; the others still are.
        return _skip(state)
    if action.kind not in _BLAMED_ON_IMAGE:
        return _finish(state)
    if state.tries < state.attempts:
        return replace(state, step=0)
    if action.node in state.renewed:
        return replace(state, stage="rollback")
    return _finish(state)


def _brought_back(state: State) -> State:
    """After the rollback: the node that failed first, then those that run the image, the last one first."""
    broken = state.waiting[0]
    others = [node for node in reversed(state.done) if node in state.renewed]
    return replace(state, stage="back", waiting=(broken, *others), step=0, tries=0)


def _skip(state: State) -> State:
    """Go on to the next node, or to the end."""
    rest = state.waiting[1:]
    state = replace(state, waiting=rest, step=0, tries=0)
    return state if rest else _finish(state)


def to_document(state: State) -> dict[str, Any]:
    """Return a state as plain data."""
    return {**asdict(state), "renewed": sorted(state.renewed), "ok": state.ok}


def summary(state: State) -> str:
    """Return how a run ended, in one sentence."""
    if state.stage != "ended":
        action = next_action(state)
        where = f" {action.node}" if action.node else ""
        return f"cut off before it ended, at: {action.kind}{where}"
    done = ", ".join(state.done) or "no node"
    if state.ok:
        return f"{done} came back"
    listed = "; ".join(_sentence(failure) for failure in state.failures)
    back = f"; brought back to the image before: {', '.join(state.restored)}" if state.restored else ""
    return f"{done} came back; {listed}{back}"


def _sentence(failure: Failure) -> str:
    where = f" {failure.node}" if failure.node else ""
    return f"{failure.kind}{where} failed: {failure.text}"
