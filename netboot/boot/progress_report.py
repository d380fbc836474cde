"""Report from a record: which node is stuck at which stage and why, and where a boot's time went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from netboot.boot.stages import STAGES, BootStage
from netboot.boot.state import (
    ORDER,
    Boot,
    NodeState,
    Note,
    State,
)

# What it means when a stage does not come and nothing was seen that says why.


@dataclass(frozen=True)
class Stuck:
    """A stage that is past its deadline."""

    node: str
    stage: BootStage
    since: float
    deadline_seconds: float
    cause: str


@dataclass(frozen=True)
class Span:
    """A stretch of a boot: from the stage reached before to this one, or the wait (`idle`) for a deployment."""

    stage: BootStage | Literal["idle"]
    start: float
    end: float
    attributed: bool

    @property
    def seconds(self) -> float:
        """Length of the stretch."""
        return self.end - self.start


def deadlines(overrides: Mapping[str, float]) -> dict[str, float]:
    """Return the deadline of every stage in seconds, the profile's before the default."""
    return {**{stage: rules.deadline_seconds for stage, rules in STAGES.items()}, **overrides}


def under_way(node: NodeState) -> tuple[BootStage, float] | None:
    """Return the stage that a node is at and since when; None when nothing is awaited of it."""
    boot, asking = node.boot, node.asking
    last = boot.last if boot else None
    if asking and (last is None or asking.first > last.at):
        return "script", asking.first
    if node.armed == "reprovision" and (last is None or node.armed_at > last.at):
        return "dhcp", node.armed_at
    if boot is None or last is None:
        return None
    stage = boot.next_stage
    if stage is None:
        return None
    if ORDER[stage] >= ORDER["engine_ready"]:
        # Nobody is late with a deployment that nobody has asked for.
        if node.deploying_since is None:
            return None
        return stage, max(last.at, node.deploying_since)
    return stage, last.at


def stuck(name: str, node: NodeState, now: float, limits: Mapping[str, float]) -> Stuck | None:
    """Return what is past its deadline on a node at `now`.

    Parameters
    ----------
    limits : mapping
        Stage -> seconds, as `deadlines` gives it.
    """
    found = under_way(node)
    if found is None:
        return None
    stage, since = found
    if now - since <= limits[stage]:
        return None
    return Stuck(name, stage, since, limits[stage], cause(node, stage, since))


def trouble(node: NodeState, stage: BootStage, since: float) -> str | None:
    """Return the newest evidence of trouble at `stage`, None when there is none."""
    notes: list[Note] = [*node.notes, *(node.boot.notes if node.boot else ())]
    evidence = [note for note in notes if note.stage == stage and note.at >= since]
    return max(evidence, key=lambda note: note.at).text if evidence else None


def cause(node: NodeState, stage: BootStage, since: float) -> str:
    """Return the newest evidence about `stage`, or what its absence means."""
    return trouble(node, stage, since) or STAGES[stage].cause


def trace(boot: Boot) -> list[Span]:
    """Return where a boot's time went, stage by stage, from its beginning to the stage reached last.

    A stretch is attributed when the stage before it was seen too; where reports are missing, the
    stretch over the gap counts as not attributed. A node that is configured and of which nothing is
    asked is idle until its deployment is: no stage took that time.
    """
    spans: list[Span] = []
    start, expected = boot.began, 0
    for reached in boot.reached:
        number = ORDER[reached.stage]
        if reached.stage == "engine_ready" and boot.asked is not None and start < boot.asked < reached.at:
            spans.append(Span("idle", start, boot.asked, number == expected))
            start = boot.asked
        spans.append(Span(reached.stage, start, reached.at, number == expected))
        start, expected = reached.at, number + 1
    return spans


def attributed_ratio(spans: list[Span]) -> float:
    """Return which share of a trace's time is attributed to one stage, 0 to 1."""
    total = sum(span.seconds for span in spans)
    return sum(span.seconds for span in spans if span.attributed) / total if total > 0 else 1.0


def view(state: State, now: float, limits: Mapping[str, float]) -> dict[str, Any]:
    """Return the record for people and programs, without a secret in it."""
    return {
        "at": now,
        "nodes": {name: _node(name, node, now, limits) for name, node in state.nodes.items()},
        "unknown": {mac: asdict(entry) for mac, entry in state.unknown.items()},
        "refusals": [asdict(refusal) for refusal in state.refusals],
    }


def _node(name: str, node: NodeState, now: float, limits: Mapping[str, float]) -> dict[str, Any]:
    found, late = under_way(node), stuck(name, node, now, limits)
    boot = node.boot
    spans = trace(boot) if boot else []
    return {
        "armed": node.armed,
        "blocked": node.blocked,
        "stage": boot.last.stage if boot and boot.last else "",
        "under_way": _under_way(node, *found, limits) if found else None,
        "stuck": asdict(late) if late else None,
        "boot": _boot(boot, spans) if boot else None,
        "boots": len(node.boots),
    }


def _under_way(node: NodeState, stage: BootStage, since: float, limits: Mapping[str, float]) -> dict[str, Any]:
    complaint = trouble(node, stage, since)
    return {"stage": stage, "since": since, "deadline_seconds": limits[stage], "trouble": complaint}


def _boot(boot: Boot, spans: list[Span]) -> dict[str, Any]:
    return {
        # The name of a boot lets its node report stages: enough of it is shown to tell two apart.
        "id": boot.id[:8],
        "image": boot.image,
        "because": boot.because,
        "began": boot.began,
        "key": boot.enrolled_key,
        "stages": [
            {"stage": span.stage, "start": span.start, "seconds": span.seconds, "attributed": span.attributed}
            for span in spans
        ],
        "attributed_ratio": attributed_ratio(spans),
        "notes": [asdict(note) for note in boot.notes],
    }
