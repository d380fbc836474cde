"""The ledger: where the time of an output token went, by phase, node, link and resource.

Unit: seconds per output token, over all requests of the run: the sum of their times from sending to last token,
divided by the sum of their output tokens. The parts add up to the whole exactly; what no measurement explains is an
entry of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bottleneck.diagnosis.attribution.steps import DECODE, PREFILL, EngineTime, Part, Work, engine_time
from bottleneck.diagnosis.observations.signals import Signals
from bottleneck.json_numbers import number
from bottleneck.runs.run import Run

UNIT = "seconds per output token"
PER_REQUEST = "seconds per request"


RESOURCES = {
    "compute": "a node's own work, bound by arithmetic",
    "memory": "a node's own work, bound by reads of weights and cache",
    "host": "the engine's loop, kernel launches, sampling: what the host does between kernels",
    "throttled": "held by a CPU quota",
    "cpu_wait": "ready to run, but another process had the core",
    "link_transfer": "bytes on the link",
    "link_latency": "messages on the wire",
    "message_handling": "messages in the nodes' kernels",
    "message_wait": "from a message's arrival until the waiting worker runs",
    "queue": "in the engine's queue",
    "front": "in the server's front process: HTTP, tokenizer, detokenizer",
    "step_wait": "before the queue, until a running step ends",
    "unexplained": "what no measurement explains",
}
"""Every resource of the ledger and what it is."""


@dataclass(frozen=True)
class Entry:
    """One part of an output token's time.

    Attributes
    ----------
    phase : str
        `queue`, `prefill`, `decode`, or `client` for what happened outside the engine.
    resource : str
        A key of `RESOURCES`.
    seconds : float
        Seconds per output token.
    share : float
        Of the ledger's total, 0 to 1.
    start, end : float
        The interval it was measured over, unix seconds.
    """

    phase: str
    resource: str
    seconds: float
    share: float
    source: str
    node: str | None = None
    link: str | None = None
    start: float = 0.0
    end: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON-able data."""
        return {
            "phase": self.phase,
            "node": self.node,
            "link": self.link,
            "resource": self.resource,
            "seconds": self.seconds,
            "share": self.share,
            "source": self.source,
            "start": self.start,
            "end": self.end,
        }


@dataclass
class Ledger:
    """The whole and its parts.

    Attributes
    ----------
    kinds : dict
        (kind of steps, resource) to share of the total: a token that waits in `decode` for the prompt of another
        request lives through steps of kind `prefill`.
    work : list of Work
        The steps behind it, by engine and kind.
    unit : str
        What the seconds are per.
    first_token : Ledger or None
        The same for a request's first token: seconds per request, from sending to the first token.
    """

    total: float = 0.0
    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: str = ""
    kinds: dict[tuple[str, str], float] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list, compare=False)
    unit: str = UNIT
    first_token: Ledger | None = None

    def share(self, chosen: Callable[[Entry], bool]) -> float:
        """Return the share of the total that the chosen entries have together."""
        return math.fsum(entry.share for entry in self.entries if chosen(entry))

    def of(self, *resources: str) -> float:
        """Return the share of some resources inside prefill and decode."""
        return self.share(lambda entry: entry.resource in resources and entry.phase in (PREFILL, DECODE))

    def of_kind(self, kind: str, *resources: str) -> float:
        """Return the share of some resources inside the steps of one kind."""
        return math.fsum(self.kinds.get((kind, resource), 0.0) for resource in resources)

    @property
    def attributed(self) -> float:
        """Share of the total that has a cause, 0 to 1."""
        return 1.0 - self.share(lambda entry: entry.resource == "unexplained")

    def phase(self, name: str) -> float:
        """Return the share of a phase."""
        return self.share(lambda entry: entry.phase == name)

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as JSON-able data."""
        return {
            "unit": self.unit,
            "total": self.total,
            "source": self.source,
            "attributed": self.attributed if self.entries else 0.0,
            "steps": [
                {"kind": kind, "resource": resource, "share": share} for (kind, resource), share in self.kinds.items()
            ],
            "entries": [entry.to_json() for entry in self.entries],
            "notes": self.notes,
            **({} if self.first_token is None else {"first_token": self.first_token.to_json()}),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Ledger:
        """Read a ledger that `to_json` wrote."""
        entries = [
            Entry(
                phase=str(item.get("phase", "")),
                resource=str(item.get("resource", "unexplained")),
                seconds=float(item.get("seconds", 0.0)),
                share=float(item.get("share", 0.0)),
                source=str(item.get("source", "")),
                node=item.get("node"),
                link=item.get("link"),
                start=float(item.get("start", 0.0)),
                end=float(item.get("end", 0.0)),
            )
            for item in document.get("entries") or []
        ]
        total = number(document.get("total"))
        kinds = {
            (str(item.get("kind")), str(item.get("resource"))): number(item.get("share"))
            for item in document.get("steps") or []
        }
        return cls(
            total if math.isfinite(total) else 0.0,
            entries,
            [str(note) for note in document.get("notes") or []],
            str(document.get("source", "")),
            kinds,
            unit=str(document.get("unit", UNIT)),
            first_token=cls.from_json(document["first_token"]) if document.get("first_token") else None,
        )


@dataclass(frozen=True)
class _Row:
    phase: str
    part: Part
    kind: str = ""


def build_ledger(run: Run, signals: Signals) -> Ledger:
    """Build a run's ledger.

    The whole is what the client waited (sum of request latencies / sum of output tokens); without client timings it
    is the engine's own account (queue, prefill and decode time of the finished requests / their tokens). The engine's
    phases fill it, each taken apart by `steps.engine_time`; what the client waited beyond them is phase `client`.

    Parameters
    ----------
    run : Run
        For the interval.
    signals : Signals
        The facts of the run.

    Returns
    -------
    Ledger
        Empty with a note when no output token or no request time is known. Its entries sum to `total`.
    """
    times = [
        found
        for group, facts in zip(signals.topology.groups, signals.engines, strict=True)
        if (found := engine_time(signals, group, facts)) is not None
    ]
    client, ledger = signals.client, Ledger()
    tokens = math.fsum(time.tokens for time in times)
    inside = math.fsum(time.total_seconds for time in times) / tokens if tokens > 0 else math.nan
    if client is not None and client.output_tokens > 0 and client.latency_seconds > 0:
        ledger.total, ledger.source = client.latency_seconds / client.output_tokens, "client: latency / output tokens"
    elif math.isfinite(inside) and inside > 0:
        ledger.total, ledger.source = inside, times[0].source
    else:
        ledger.notes.append("no output token with a known time: there is no ledger")
        return ledger
    rows = [row for time in times for row in _rows(time, tokens)]
    for time in times:
        ledger.notes += time.notes
    rows = _fit(rows, ledger, "client timings minus the engine's phases" if times else "client timings")
    _check_counts(signals, ledger)
    ledger.work = [work for time in times for work in time.work.values()]
    for row in rows:
        if row.kind:
            key = (row.kind, row.part.resource)
            ledger.kinds[key] = ledger.kinds.get(key, 0.0) + row.part.seconds / ledger.total
    ledger.entries = _entries(rows, ledger.total, run)
    ledger.first_token = _first_token(rows, signals, run, times)
    return ledger


def _entries(rows: list[_Row], total: float, run: Run) -> list[Entry]:
    """Make rows into entries, the largest first."""
    start, end = run.interval
    end = end if math.isfinite(end) else start
    found = [
        Entry(
            row.phase,
            row.part.resource,
            row.part.seconds,
            row.part.seconds / total,
            row.part.source,
            row.part.node,
            row.part.link,
            start,
            end,
        )
        for row in _merged(rows)
    ]
    return sorted(found, key=lambda entry: -entry.seconds)


def _first_token(rows: list[_Row], signals: Signals, run: Run, times: list[EngineTime]) -> Ledger | None:
    """Return the ledger of a request's first token: queue and prefill, against what the client waited for it."""
    client = signals.client
    requests = math.fsum(engine.requests for engine in signals.engines)
    tokens = math.fsum(time.tokens for time in times)
    inside = [row for row in rows if row.phase in ("queue", PREFILL)]
    if not inside or requests <= 0 or tokens <= 0:
        return None
    ledger = Ledger(unit=PER_REQUEST)
    told = [engine.first_token_seconds for engine in signals.engines if engine.first_token_seconds]
    if client is not None and client.requests and client.first_token_seconds > 0:
        ledger.total = client.first_token_seconds / client.requests
        ledger.source, source = "client: time to first token", "client timings minus the engine's queue and prefill"
    elif told:
        ledger.total = math.fsum(told) / requests
        ledger.source, source = "engine: time_to_first_token", "time_to_first_token minus queue and prefill"
    else:
        return None
    scale = tokens / requests
    inside = [_scaled(row, scale) for row in inside]
    front = math.fsum(told) / requests - math.fsum(row.part.seconds for row in inside)
    if len(told) == len(signals.engines) and front > 0:
        words = "engine: time_to_first_token minus queue and prefill"
        inside.append(_Row("client", Part("front", front, words, signals.engines[0].head or None)))
    ledger.entries = _entries(_fit(inside, ledger, source), ledger.total, run)
    return ledger


def _merged(rows: list[_Row]) -> list[_Row]:
    """Add up the rows of one phase, resource and place, whatever kind of steps they were lived through in."""
    found: dict[tuple[str, str, str | None, str | None], _Row] = {}
    for row in rows:
        part = row.part
        key = (row.phase, part.resource, part.node, part.link)
        known = found[key].part.seconds if key in found else 0.0
        source = found[key].part.source if key in found and known >= part.seconds else part.source
        found[key] = _Row(row.phase, Part(part.resource, known + part.seconds, source, part.node, part.link))
    return list(found.values())


def _rows(time: EngineTime, tokens: float) -> list[_Row]:
    """Turn an engine's request time into rows per output token."""
    rows = []
    if time.queue_seconds > 0:
        rows.append(_Row("queue", Part("queue", time.queue_seconds / tokens, time.source, time.group.head or None)))
    if time.step_wait_seconds > 0:
        source = "engine: e2e_request_latency minus its phases: a step was running when the request came"
        rows.append(_Row("queue", Part("step_wait", time.step_wait_seconds / tokens, source, time.group.head or None)))
    stalled = time.decode_seconds * time.stalled_share
    lived = {
        PREFILL: {PREFILL: time.prefill_seconds},
        DECODE: {PREFILL: stalled, DECODE: time.decode_seconds - stalled},
    }
    for phase, kinds in lived.items():
        for kind, seconds in kinds.items():
            work = time.work[kind]
            if seconds <= 0:
                continue
            scale = seconds / tokens / work.wall_seconds if work.wall_seconds > 0 else 0.0
            parts = [
                Part(part.resource, part.seconds * scale, part.source, part.node, part.link) for part in work.parts
            ]
            # Not below zero: rounding of a sum that fills the whole time.
            left = max(0.0, seconds / tokens - math.fsum(part.seconds for part in parts))
            parts.append(Part("unexplained", left, "what the parts leave of the measured phase"))
            rows += [_Row(phase, part, kind) for part in parts if part.seconds > 0]
    return rows


def _fit(rows: list[_Row], ledger: Ledger, source: str) -> list[_Row]:
    """Make the rows sum to the total: the rest is the client's; too much is scaled down and said."""
    known = math.fsum(row.part.seconds for row in rows)
    if known > ledger.total:
        if known > 1.02 * ledger.total:
            ledger.notes.append(
                f"the engine's phases come to {known / ledger.total:.2f} times what the client waited "
                "and are scaled down to it (it also counts requests that are not the client's)"
            )
        scale = ledger.total / known
        return [_scaled(row, scale) for row in rows]
    rest = ledger.total - known
    if rest > 1e-9 * ledger.total:
        rows = [*rows, _Row("client", Part("unexplained", rest, source))]
    return rows


def _scaled(row: _Row, scale: float) -> _Row:
    part = row.part
    return _Row(row.phase, Part(part.resource, part.seconds * scale, part.source, part.node, part.link), row.kind)


def _check_counts(signals: Signals, ledger: Ledger) -> None:
    client = signals.client
    counted = math.fsum(engine.requests for engine in signals.engines)
    if (
        client is not None
        and client.requests
        and counted
        and abs(counted - client.requests) > 0.1 * client.requests + 1
    ):
        ledger.notes.append(
            f"the engine finished {counted:g} requests, the client {client.requests}: the ledger takes the engine's "
            "phases per output token of all of them"
        )
