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

from bottleneck.client import number
from bottleneck.run import Run
from bottleneck.signals import Signals
from bottleneck.steps import DECODE, PREFILL, EngineTime, Part, engine_time

UNIT = "seconds per output token"


@dataclass(frozen=True)
class Entry:
    """One part of an output token's time.

    Attributes
    ----------
    phase : str
        `queue`, `prefill`, `decode`, or `client` for what happened outside the engine.
    resource : str
        `compute`, `link_transfer`, `link_latency`, `cpu_wait`, `throttled`, `queue`, `step_wait` or `unexplained`.
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
    """The whole and its parts."""

    total: float = 0.0
    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: str = ""

    def share(self, chosen: Callable[[Entry], bool]) -> float:
        """Return the share of the total that the chosen entries have together."""
        return math.fsum(entry.share for entry in self.entries if chosen(entry))

    def of(self, *resources: str) -> float:
        """Return the share of some resources inside prefill and decode."""
        return self.share(lambda entry: entry.resource in resources and entry.phase in (PREFILL, DECODE))

    def phase(self, name: str) -> float:
        """Return the share of a phase."""
        return self.share(lambda entry: entry.phase == name)

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as JSON-able data."""
        return {
            "unit": UNIT,
            "total": self.total,
            "source": self.source,
            "entries": [entry.to_json() for entry in self.entries],
            "notes": self.notes,
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
        return cls(
            total if math.isfinite(total) else 0.0,
            entries,
            [str(note) for note in document.get("notes") or []],
            str(document.get("source", "")),
        )


@dataclass(frozen=True)
class _Row:
    phase: str
    part: Part


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
    start, end = run.interval
    for row in rows:
        seconds = row.part.seconds
        ledger.entries.append(
            Entry(
                row.phase,
                row.part.resource,
                seconds,
                seconds / ledger.total,
                row.part.source,
                row.part.node,
                row.part.link,
                start,
                end if math.isfinite(end) else start,
            )
        )
    ledger.entries.sort(key=lambda entry: -entry.seconds)
    return ledger


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
        found: dict[tuple[str, str | None, str | None], Part] = {}
        for kind, seconds in kinds.items():
            work = time.work[kind]
            if seconds <= 0:
                continue
            scale = seconds / tokens / work.wall_seconds if work.wall_seconds > 0 else 0.0
            parts = [(part, part.seconds * scale) for part in work.parts]
            # Not below zero: rounding of a sum that fills the whole time.
            left = max(0.0, seconds / tokens - math.fsum(amount for _, amount in parts))
            parts.append((Part("unexplained", left, "what the parts leave of the measured phase"), left))
            for part, amount in parts:
                key = (part.resource, part.node, part.link)
                known = found[key].seconds if key in found else 0.0
                found[key] = Part(part.resource, known + amount, part.source, part.node, part.link)
        rows += [_Row(phase, part) for part in found.values() if part.seconds > 0]
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
        return [
            _Row(
                row.phase,
                Part(row.part.resource, row.part.seconds * scale, row.part.source, row.part.node, row.part.link),
            )
            for row in rows
        ]
    rest = ledger.total - known
    if rest > 1e-9 * ledger.total:
        rows = [*rows, _Row("client", Part("unexplained", rest, source))]
    return rows


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
