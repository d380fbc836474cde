"""Keep what is known of every node's boots as a value: `apply(event, state) -> state`.

Nothing here reads a clock, a file or a socket. The boot service feeds it with events and
stores what it returns; `netboot.boot.progress_report` reads it to say what is stuck and why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from netboot.boot.events import (
    Armed,
    Arming,
    Blocked,
    Delivered,
    Deploying,
    DhcpAsked,
    Enrolled,
    Event,
    Refused,
    ScriptGiven,
    StageReached,
    Troubled,
    UnknownAsked,
)
from netboot.boot.stages import BOOT_STAGES, BootStage

# Bounds of what is kept: a machine on the wire can ask for as many scripts as it likes.
BOOTS_KEPT = 8
NOTES_KEPT = 24
UNKNOWN_KEPT = 64
REFUSALS_KEPT = 200
# A request for an address begins a new power-on when the one before was this long ago.
ASKING_SECONDS = 180.0
# iPXE asks for its script again and again while there is nothing to boot: that is one power-on, and its wait counts.
SCRIPT_BELONGS_SECONDS = 3600.0

ORDER: Mapping[str, int] = {stage: number for number, stage in enumerate(BOOT_STAGES)}


@dataclass(frozen=True)
class Reached:
    """A stage that a boot has completed."""

    stage: BootStage
    at: float
    detail: str = ""


@dataclass(frozen=True)
class Note:
    """Evidence of trouble while a stage was under way."""

    at: float
    stage: BootStage
    text: str


@dataclass(frozen=True)
class Boot:
    """One boot of one node, from its first DHCP packet on.

    `nonce` is the secret that this boot proves it has; it is gone as soon as it was used, has
    lapsed, or another boot of the node has enrolled. `asked` is when the deployment was asked
    for that the node first served in after this boot.
    """

    id: str
    began: float
    image: str
    mac: str
    minion_id: str
    nonce: str = ""
    expires: float = 0.0
    because: Arming = ""
    enrolled_key: str = ""
    reached: tuple[Reached, ...] = ()
    notes: tuple[Note, ...] = ()
    asked: float | None = None

    @property
    def last(self) -> Reached | None:
        """The stage reached last."""
        return self.reached[-1] if self.reached else None

    @property
    def next_stage(self) -> BootStage | None:
        """The stage that is under way; None when all are reached."""
        number = ORDER[self.reached[-1].stage] + 1 if self.reached else 0
        return BOOT_STAGES[number] if number < len(BOOT_STAGES) else None

    def at(self, stage: BootStage) -> float | None:
        """Return when `stage` was reached."""
        return next((reached.at for reached in self.reached if reached.stage == stage), None)


@dataclass(frozen=True)
class Asking:
    """A DHCP exchange that no boot script has followed yet."""

    first: float
    last: float
    detail: str = ""


@dataclass(frozen=True)
class NodeState:
    """One node of the profile."""

    armed: Arming = "first"
    armed_at: float = 0.0
    powered_on: float | None = None
    blocked: bool = False
    asking: Asking | None = None
    boots: tuple[Boot, ...] = ()
    notes: tuple[Note, ...] = ()
    deploying_since: float | None = None

    @property
    def boot(self) -> Boot | None:
        """The newest boot."""
        return self.boots[-1] if self.boots else None


@dataclass(frozen=True)
class Unknown:
    """A machine that asked to boot and is no node of the profile."""

    first: float
    last: float
    count: int
    address: str
    detail: str


@dataclass(frozen=True)
class Refusal:
    """Someone who was turned away, and why."""

    at: float
    what: str
    node: str
    source: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class State:
    """The whole record."""

    nodes: Mapping[str, NodeState]
    unknown: Mapping[str, Unknown] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()


def begin(nodes: list[str], now: float, known: State | None = None) -> State:
    """Return the state for `nodes`, keeping what `known` has of them.

    Parameters
    ----------
    nodes : list of str
        Names of the profile's nodes.
    now : float
        Seconds since the epoch.
    """
    kept = known.nodes if known else {}
    return State(
        nodes={name: kept.get(name) or NodeState(armed="first", armed_at=now) for name in nodes},
        unknown=known.unknown if known else {},
        refusals=known.refusals if known else (),
    )


def find(state: State, boot: str) -> tuple[str, Boot] | None:
    """Return the node and the boot that `boot` names."""
    for name, node in state.nodes.items():
        for found in node.boots:
            if found.id == boot:
                return name, found
    return None


@functools.singledispatch
def apply(event: Event, state: State) -> State:  # noqa: ARG001 - each event's own function takes it
    """Return the state after `event`. An event about an unknown node or boot changes nothing."""
    raise TypeError(f"{type(event).__name__} is no event")


@apply.register
def _armed(event: Armed, state: State) -> State:
    since = event.now if event.powered_on else None
    return _node(
        state,
        event.node,
        lambda found: replace(
            found, armed=event.reason, armed_at=event.now, powered_on=since, blocked=False, asking=None
        ),
    )


@apply.register
def _blocked(event: Blocked, state: State) -> State:
    node = state.nodes.get(event.node)
    if node is None:
        return state
    boots = tuple(replace(boot, nonce="") for boot in node.boots)
    return _node(
        state,
        event.node,
        lambda found: replace(found, armed="", blocked=True, powered_on=None, asking=None, boots=boots),
    )


@apply.register
def _dhcp(event: DhcpAsked, state: State) -> State:
    node = state.nodes.get(event.node)
    if node is None:
        return state
    asking = node.asking
    if asking is None or event.now - asking.last > ASKING_SECONDS:
        asking = Asking(event.now, event.now)
    detail = event.detail or asking.detail
    return _node(state, event.node, lambda found: replace(found, asking=replace(asking, last=event.now, detail=detail)))


@apply.register
def _troubled(event: Troubled, state: State) -> State:
    note = Note(event.now, event.stage, event.text)
    node = state.nodes.get(event.node)
    if node is None:
        return state
    if event.boot:
        return _boot(state, event.node, event.boot, lambda boot: replace(boot, notes=_kept(boot.notes, note)))
    return _node(state, event.node, lambda found: replace(found, notes=_kept(node.notes, note)))


@apply.register
def _delivered(event: Delivered, state: State) -> State:
    node = state.nodes.get(event.node)
    if node is None:
        return state
    kept = tuple(note for note in node.notes if note.stage != event.stage or not note.text.startswith(event.about))
    return state if kept == node.notes else _node(state, event.node, lambda found: replace(found, notes=kept))


@apply.register
def _unknown(event: UnknownAsked, state: State) -> State:
    seen = state.unknown.get(event.mac)
    entry = Unknown(
        first=seen.first if seen else event.now,
        last=event.now,
        count=seen.count + 1 if seen else 1,
        address=event.address or (seen.address if seen else ""),
        detail=event.detail or (seen.detail if seen else ""),
    )
    unknown = {**state.unknown, event.mac: entry}
    while len(unknown) > UNKNOWN_KEPT:
        del unknown[min(unknown, key=lambda mac: unknown[mac].last)]
    return replace(state, unknown=unknown)


@apply.register
def _script(event: ScriptGiven, state: State) -> State:
    node = state.nodes.get(event.node)
    if node is None:
        return state
    asking = node.asking if node.asking and event.now - node.asking.last <= SCRIPT_BELONGS_SECONDS else None
    reached: tuple[Reached, ...] = (Reached("script", event.now),)
    began = event.now
    if asking:
        began = asking.first
        reached = (Reached("dhcp", asking.last, asking.detail), *reached)
    if node.powered_on is not None:
        began = min(began, node.powered_on)
    boot = Boot(
        id=event.boot,
        began=began,
        image=event.image,
        mac=event.mac,
        minion_id=event.minion_id,
        nonce=event.nonce,
        expires=event.expires,
        # Whoever enrolled before and asks again was found not to be alive.
        because=node.armed or "down",
        reached=reached,
    )
    return _node(
        state, event.node, lambda found: replace(found, boots=(*node.boots, boot)[-BOOTS_KEPT:], asking=None, notes=())
    )


@apply.register
def _reached(event: StageReached, state: State) -> State:
    def advance(boot: Boot) -> Boot:
        # A stage counts once, and never backwards: reports can be repeated, late or made up.
        if boot.reached and ORDER[event.stage] <= ORDER[boot.reached[-1].stage]:
            return boot
        at = max(event.now, boot.reached[-1].at if boot.reached else boot.began)
        return replace(boot, reached=(*boot.reached, Reached(event.stage, at, event.detail)))

    return _boot(state, event.node, event.boot, advance)


@apply.register
def _enrolled(event: Enrolled, state: State) -> State:
    found = find(state, event.boot)
    if found is None or found[0] != event.node:
        return state
    state = _reached(StageReached(event.now, event.node, event.boot, "enrolled", event.key), state)
    node = state.nodes[event.node]
    # One boot wins: no other script that was given to this node is worth anything from here on.
    boots = tuple(
        replace(boot, enrolled_key=event.key) if boot.id == event.boot else replace(boot, nonce="")
        for boot in node.boots
    )
    return _node(state, event.node, lambda found: replace(found, boots=boots, armed="", powered_on=None))


@apply.register
def _refused(event: Refused, state: State) -> State:
    new = Refusal(event.now, event.what, event.node, event.source, event.reason)
    for index, known in enumerate(state.refusals):
        if (known.what, known.node, known.source, known.reason) == (new.what, new.node, new.source, new.reason):
            counted = replace(new, count=known.count + 1)
            return replace(state, refusals=(*state.refusals[:index], *state.refusals[index + 1 :], counted))
    return replace(state, refusals=(*state.refusals, new)[-REFUSALS_KEPT:])


@apply.register
def _deploying(event: Deploying, state: State) -> State:
    state = _node(state, event.node, lambda found: replace(found, deploying_since=event.since))
    node = state.nodes.get(event.node)
    boot = node.boot if node else None
    if event.since is None or boot is None or event.since < boot.began or boot.at("engine_ready") is not None:
        return state
    return _boot(state, event.node, boot.id, lambda found: replace(found, asked=event.since))


def _kept(notes: tuple[Note, ...], note: Note) -> tuple[Note, ...]:
    if notes and (notes[-1].stage, notes[-1].text) == (note.stage, note.text):
        notes = notes[:-1]
    return (*notes, note)[-NOTES_KEPT:]


def _node(state: State, name: str, change: Callable[[NodeState], NodeState]) -> State:
    if name not in state.nodes:
        return state
    return replace(state, nodes={**state.nodes, name: change(state.nodes[name])})


def _boot(state: State, name: str, boot: str, change: Callable[[Boot], Boot]) -> State:
    def with_boot(node: NodeState) -> NodeState:
        return replace(node, boots=tuple(change(found) if found.id == boot else found for found in node.boots))

    return _node(state, name, with_boot)
