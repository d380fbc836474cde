"""Keep what the control node knows of the running cluster: batches folded into state, windows, heartbeats.

Pure: `apply` takes an event and a state and returns the next state; time comes with the event. What others have to know
(a window to analyse, a node lost or back) is in `State.announcements` of the state it arose in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from bottleneck.json_numbers import number
from bottleneck.telemetry.cluster_view import (
    BACK_TAG,
    CLOCK_TAG,
    EXITED_TAG,
    LOST_TAG,
    STALLED_TAG,
    STILL_LOST_TAG,
    WINDOW_TAG,
    Arrived,
    Asked,
    ClockSet,
    Event,
    Failed,
    NodeState,
    Rejected,
    Settings,
    State,
    StoreReplaced,
    Tick,
)
from bottleneck.telemetry.engine_work import engine_work
from bottleneck.telemetry.prometheus_text import MetricsText

# What a node may ask for: one look in so many seconds.
LOOK_SECONDS = 2.0
# Whoever looks then tells a hang from a long step. Readings come every few seconds; the head's sampler, which looks
# more often while there are requests, says by itself when nothing has moved.
STALLED_SECONDS, STALLED_ON_NODE_SECONDS = 9.0, 2.0
# What is announced is announced again after as long.
STALLED_AGAIN_SECONDS = 9.0
# A window waits this long, and as long as a node sends nothing anyway, for the last batches of a slow node.
WINDOW_PATIENCE_SECONDS = 3.0
# Ticks come every second; with none for so long, this process stood still itself.
STANDSTILL_SECONDS = 5.0
# Minions come back some seconds after the master; a node is not lost for that.
START_GRACE_SECONDS = 20.0
# A node that stays lost is named again after so long, then twice that, up to the second.
LOST_AGAIN_SECONDS, LOST_AGAIN_MOST_SECONDS = 30.0, 600.0
# Missing numbers named in one acknowledgement.
MOST_MISSING = 100
# Numbers of refused batches that are known of a node.
MOST_REFUSED = 100
# Lives of a node's sampler that are over and still known.
PAST_BOOTS = 8
# News of a worker that is not the end of a process -> words for it.
_NO_END = {"stopped": "was stopped", "cut": "lost its link"}


def begin(settings: Settings, now: float, seen_before: Iterable[str] = ()) -> State:
    """Return the state to begin with.

    Parameters
    ----------
    settings : Settings
        Settings of the cluster.
    now : float
        Unix seconds by the control node's clock.
    seen_before : iterable of str
        Nodes that were heard of before the control node restarted: they are expected to be heard of again.
    """
    known = set(seen_before)
    return State(
        settings,
        {
            name: NodeState(up=True, last_batch=now + START_GRACE_SECONDS) if name in known else NodeState()
            for name in settings.senders
        },
    )


def apply(event: Event, state: State) -> State:
    """Return the state after an event.

    Parameters
    ----------
    event : Event
        Something that happened, with the time at which it did.
    state : State
        State before it; it stays as it is.

    Returns
    -------
    State
        What is to be announced because of this event, and no other, is in `State.announcements`.
    """
    state = replace(state, announcements=())
    if isinstance(event, Arrived):
        return _arrived(event, state)
    if isinstance(event, Rejected):
        return _rejected(event, state)
    if isinstance(event, Failed):
        return replace(state, failures=state.failures + 1)
    if isinstance(event, Asked):
        node = state.nodes.get(event.node)
        if node is None:
            return state
        noted = replace(node, sent_by_job=event.now) if event.by_job else replace(node, asked=event.now)
        return _with(state, event.node, noted)
    if isinstance(event, StoreReplaced):
        emptied = {name: replace(node, watermark=0, above=frozenset()) for name, node in state.nodes.items()}
        return replace(state, nodes=emptied)
    if isinstance(event, ClockSet):
        return _shifted(state, event)
    return _tick(event, state)


def _rejected(event: Rejected, state: State) -> State:
    state = replace(state, rejected=state.rejected + 1)
    name, boot, sequence = event.batch or ("", "", 0)
    node = state.nodes.get(name)
    if node is None or (boot, sequence) in node.refused:
        return state
    return _with(state, name, replace(node, refused=(*node.refused, (boot, sequence))[-MOST_REFUSED:]))


def refused(state: State, node: str, boot: str) -> list[int]:
    """Return the numbers of a life's batches that its sampler is to give up.

    One that is kept and sent again holds the watermark, and with it all that came after.

    Parameters
    ----------
    state
        The control node's state.
    node
        Its name.
    boot
        The life of its sampler.
    """
    known = state.nodes.get(node)
    return [number for each, number in known.refused if each == boot] if known else []


def _shifted(state: State, event: ClockSet) -> State:
    """Move all moments along with the clock: no node was silent for an hour because an hour was skipped."""

    def moved(moment: float) -> float:
        return moment + event.seconds if moment > 0 else moment

    nodes = {
        name: replace(
            node,
            last_batch=moved(node.last_batch),
            asked=moved(node.asked),
            sent_by_job=moved(node.sent_by_job),
            lost_named=moved(node.lost_named),
            stalled=moved(node.stalled),
            boundary=moved(node.boundary),
        )
        for name, node in state.nodes.items()
    }
    width, start = state.settings.window_seconds, state.window_start
    return replace(
        state,
        nodes=nodes,
        window_start=None if start is None else math.floor((start + event.seconds) / width) * width,
        ticked=moved(state.ticked),
        listens=moved(state.listens),
    )


def acknowledgement(state: State, node: str, boot: str) -> dict[str, Any] | None:
    """Return what to tell a node's sampler; None when nothing is known of that boot.

    Parameters
    ----------
    state
        The control node's state.
    node
        Its name.
    boot
        The life of its sampler that asks.
    """
    known = state.nodes.get(node)
    if known is None or not boot or known.boot != boot:
        return None
    gaps = (each for each in range(known.watermark + 1, known.sequence) if each not in known.above)
    found = {"boot": boot, "sequence": known.watermark, "missing": list(islice(gaps, MOST_MISSING))}
    given_up = [each for each in refused(state, node, boot) if each > known.watermark]
    return {**found, "refused": given_up} if given_up else found


def to_acknowledge(state: State, now: float) -> dict[str, dict[str, Any]]:
    """Return what to tell by a job, by node: those that send but have not asked for long.

    A sampler asks by itself (see `salt/sampler/files/delivery.py`); a job is for the node that cannot reach the port.

    Parameters
    ----------
    state : State
        State of the cluster.
    now : float
        Unix seconds by the control node's clock.

    Returns
    -------
    dict[str, dict[str, Any]]
        Node -> what is stored of its boot, as `acknowledgement` gives it.
    """
    patience = 6.0 * state.settings.acknowledge_interval_seconds
    found = {}
    for name, node in state.nodes.items():
        silent = now - max(node.asked, node.sent_by_job) >= patience
        stored = acknowledgement(state, name, node.boot)
        if stored and silent and now - node.last_batch < state.settings.lost_after_seconds:
            found[name] = stored
    return found


def _with(state: State, name: str, node: NodeState) -> State:
    return replace(state, nodes={**state.nodes, name: node})


def _arrived(event: Arrived, state: State) -> State:
    batch = event.batch
    name, boot, sequence = str(batch["node"]), str(batch["boot"]), int(batch["sequence"])
    before = state.nodes.get(name, NodeState())
    announcements = []
    if before.up is False:
        silent = event.now - before.last_batch
        announcements.append((BACK_TAG, {"node": name, "silent_seconds": round(silent, 3)}))
    node = replace(
        before,
        last_batch=event.now,
        up=True,
        stored=before.stored + event.new,
        repeated=before.repeated + (not event.new),
        clock_ahead=event.clock_ahead,
    )
    if abs(event.clock_ahead - before.clock_ahead) > 1.0:
        announcements.append((CLOCK_TAG, {"node": name, "ahead_seconds": round(event.clock_ahead, 3)}))
    ended = batch.get("exits") if event.new and not _of_former_life(batch) else None
    if ended:
        node = replace(node, exits=node.exits + sum(each["kind"] not in _NO_END for each in ended))
        if abs(event.now - node.exited) >= LOOK_SECONDS:
            node = replace(node, exited=event.now)
            workers = sorted({each["worker"] for each in ended})
            what = sorted({_NO_END.get(each["kind"], "ended") for each in ended})
            news = {"node": name, "workers": workers, "what": " or ".join(what), "at": number(batch["t1"])}
            announcements.append((EXITED_TAG, news))
    if _of_former_life(batch):
        if boot not in node.former:
            node = replace(node, former=(*node.former, boot)[-PAST_BOOTS:])
    elif boot != node.boot and boot not in node.past:
        past = (*node.past, node.boot)[-PAST_BOOTS:]
        node = replace(node, boot=boot, past=past, sequence=0, watermark=0, above=frozenset())
        node = replace(node, asked=event.now, sent_by_job=event.now)
    if boot == node.boot:
        mark = max(node.watermark, event.watermark)
        above = frozenset(each for each in {*node.above, sequence} if each > mark)
        node = replace(node, watermark=mark, above=above)
        # By number, not by time: a node's clock may be set back while it runs.
        if sequence > node.sequence:
            node = replace(_newest(node, batch, event.now), sequence=sequence)
            node, stalled = _engine(node, batch, event.now)
            if stalled:
                announcements.append((STALLED_TAG, {"node": name, "seconds": round(stalled, 3)}))
    state = replace(_with(state, name, node), announcements=tuple(announcements))
    if state.window_start is None:
        width = state.settings.window_seconds
        # What a former life left may be hours old; no window begins there.
        begins = min(max(number(batch["t0"]), event.now - width), event.now)
        return replace(state, window_start=math.ceil(begins / width) * width)
    return state


def _of_former_life(batch: Mapping[str, Any]) -> bool:
    """Return whether a sampler sent what a life of it before this one had left: no news of how the node is."""
    sampler = batch.get("sampler")
    return isinstance(sampler, Mapping) and sampler.get("former") == 1


def _engine(node: NodeState, batch: Mapping[str, Any], now: float) -> tuple[NodeState, float]:
    """Follow what a head's engine does; return for how long it has made nothing of its requests, when that is news."""
    reading = batch.get("engine")
    if not isinstance(reading, Mapping):
        return node, 0.0
    requests, work = engine_work(MetricsText.from_flat(reading["metrics"]))
    moment = number(reading.get("t", batch["t1"]))
    if not requests or work != node.work or moment < node.worked:
        node = replace(node, work=work, worked=moment)
    still, seen = moment - node.worked, number(reading.get("still_s", 0.0))
    stalled = seen if STALLED_ON_NODE_SECONDS <= seen < math.inf else still
    is_stalled = requests > 0 and (stalled == seen or still >= STALLED_SECONDS)
    if not is_stalled or 0.0 <= now - node.stalled < STALLED_AGAIN_SECONDS:
        return node, 0.0
    return replace(node, stalled=now), stalled


def _newest(node: NodeState, batch: Mapping[str, Any], now: float) -> NodeState:
    samples = batch["samples"]
    sample: dict[str, Any] = {**samples[0], **samples[-1]}
    for key in ("workers", "psi"):
        first, last = samples[0].get(key), samples[-1].get(key)
        if isinstance(first, Mapping) and isinstance(last, Mapping):
            sample[key] = {
                name: {**first[name], **part}
                if isinstance(first.get(name), Mapping) and isinstance(part, Mapping)
                else part
                for name, part in {**first, **last}.items()
            }
    return replace(
        node,
        sample=sample,
        engine=batch.get("engine") or node.engine,
        sampler=batch.get("sampler") or {},
        boundary=number(batch["t1"]),
        delay_seconds=now - number(batch["t1"]),
    )


def _tick(event: Tick, state: State) -> State:
    announcements: list[tuple[str, dict[str, object]]] = []
    nodes = dict(state.nodes)
    listens = event.now if event.now - state.ticked > STANDSTILL_SECONDS else state.listens
    for name, node in nodes.items():
        if node.up and event.now - max(node.last_batch, listens) > state.settings.lost_after_seconds:
            nodes[name] = replace(node, up=False, lost_named=event.now, lost_times=1)
            announcements.append((LOST_TAG, {"node": name, "since": node.last_batch}))
        elif node.up is False and event.now - node.lost_named >= _lost_again_seconds(node.lost_times):
            nodes[name] = replace(node, lost_named=event.now, lost_times=node.lost_times + 1)
            again = {"node": name, "since": node.last_batch, "times": node.lost_times + 1}
            announcements.append((STILL_LOST_TAG, again))
    start, windows = state.window_start, state.windows
    width = state.settings.window_seconds
    if start is not None and event.now > start + 100 * width:
        # The process was stopped: what lies between is not a window any more.
        start = math.floor(event.now / width) * width
    while start is not None and _complete(nodes.values(), start + width, event.now, state.settings):
        inside = sorted(name for name, node in nodes.items() if node.up and node.boundary >= start)
        if inside:
            window = {"window": f"{start:.0f}", "start": start, "end": start + width, "nodes": inside}
            announcements.append((WINDOW_TAG, window))
            windows += 1
        start += width
    return replace(
        state,
        nodes=nodes,
        window_start=start,
        windows=windows,
        ticked=event.now,
        listens=listens,
        announcements=tuple(announcements),
    )


def _lost_again_seconds(times: int) -> float:
    return min(LOST_AGAIN_SECONDS * 2.0 ** min(times - 1, 10), LOST_AGAIN_MOST_SECONDS)


def _complete(nodes: Iterable[NodeState], end: float, now: float, settings: Settings) -> bool:
    """Return whether a window can be closed: all its batches have come, or they have had their time."""
    up = [node for node in nodes if node.up]
    if now >= end + WINDOW_PATIENCE_SECONDS + settings.send_interval_seconds:
        return True
    return now >= end and bool(up) and all(node.boundary >= end for node in up)
