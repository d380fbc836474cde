"""Build the ledger of a run from its observations: a pure function, whose doubts come back beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.attribution.ledger import PER_REQUEST, Entry, Ledger
from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL, Part, total
from bottleneck.diagnosis.attribution.steps import EngineTime, engine_time
from bottleneck.diagnosis.observations.issues import Issue
from bottleneck.diagnosis.observations.observed import Observations

Interval = tuple[float, float]


@dataclass(frozen=True)
class Attribution:
    """A ledger and what came up while it was built.

    Attributes
    ----------
    issues : tuple of Issue
        Measurements that contradict each other.
    host_or_kernels : bool
        Whether the host's share of decode steps cannot be told from slow kernels.
    """

    ledger: Ledger
    issues: tuple[Issue, ...] = ()
    host_or_kernels: bool = False


@dataclass(frozen=True)
class _Row:
    phase: str
    part: Part
    kind: str = ""

    def scaled(self, factor: float) -> _Row:
        return replace(self, part=self.part.scaled(factor))


def attribute(seen: Observations, interval: Interval) -> Attribution:
    """Build a run's ledger.

    The whole is what the client waited (sum of request latencies / sum of output tokens); without client timings it
    is the engine's own account (queue, prefill and decode time of the finished requests / their tokens). The engine's
    phases fill it, each taken apart by `steps.engine_time`; what the client waited beyond them is phase `client`.

    Parameters
    ----------
    seen : Observations
        The facts of the run.
    interval : (float, float)
        Of the run, unix seconds.

    Returns
    -------
    Attribution
        The ledger is empty with a note when no output token or no request time is known. Its entries sum to `total`.
    """
    times = [
        found
        for group, facts in zip(seen.topology.groups, seen.engines, strict=True)
        if (found := engine_time(seen, group, facts)) is not None
    ]
    client, tokens = seen.client, math.fsum(time.tokens for time in times)
    inside = math.fsum(time.total_seconds for time in times) / tokens if tokens > 0 else math.nan
    if client is not None and client.output_tokens > 0 and client.latency_seconds > 0:
        whole, source = client.latency_seconds / client.output_tokens, "client: latency / output tokens"
    elif math.isfinite(inside) and inside > 0:
        # What the server has beyond its engine's phases; that of requests which wait at the end is not in it.
        latencies = [engine.latency_seconds or 0.0 for engine in seen.engines]
        whole, source = max(inside, math.fsum(latencies) / tokens), times[0].source
    else:
        return Attribution(Ledger(notes=("no output token with a known time: there is no ledger",)))
    rest = "engine: e2e_request_latency minus its phases"
    if client is not None:
        rest = "client timings minus the engine's phases" if times else "client timings"
    rows, notes = _fit([row for time in times for row in _rows(time, tokens)], whole, rest)
    kinds: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.kind:
            key = (row.kind, row.part.resource)
            kinds[key] = kinds.get(key, 0.0) + row.part.seconds / whole
    ledger = Ledger(
        whole,
        _entries(rows, whole, interval),
        (*(note for time in times for note in time.notes), *notes, *_count_notes(seen)),
        source,
        kinds,
        tuple(work for time in times for work in time.work),
        first_token=_first_token(rows, seen, interval, times),
    )
    issues = tuple(issue for time in times for issue in time.issues)
    return Attribution(ledger, issues, any(time.host_or_kernels for time in times))


def _entries(rows: Iterable[_Row], whole: float, interval: Interval) -> tuple[Entry, ...]:
    """Make rows into entries, the largest first."""
    start, end = interval
    end = end if math.isfinite(end) else start
    found = [
        Entry(
            row.phase,
            row.part.resource,
            row.part.seconds,
            row.part.seconds / whole,
            row.part.source,
            row.part.node,
            row.part.link,
            start,
            end,
        )
        for row in _merged(rows)
    ]
    return tuple(sorted(found, key=lambda entry: -entry.seconds))


def _first_token(
    rows: Sequence[_Row], seen: Observations, interval: Interval, times: Sequence[EngineTime]
) -> Ledger | None:
    """Return the ledger of a request's first token: queue and prefill, against what the client waited for it."""
    client = seen.client
    requests = math.fsum(engine.requests for engine in seen.engines)
    tokens = math.fsum(time.tokens for time in times)
    inside = [row for row in rows if row.phase in ("queue", PREFILL)]
    if not inside or requests <= 0 or tokens <= 0:
        return None
    measured = [engine.first_token_seconds for engine in seen.engines if engine.first_token_seconds]
    if client is not None and client.requests and client.first_token_seconds > 0:
        whole = client.first_token_seconds / client.requests
        source, rest = "client: time to first token", "client timings minus the engine's queue and prefill"
    elif measured:
        whole = math.fsum(measured) / requests
        source, rest = "engine: time_to_first_token", "time_to_first_token minus queue and prefill"
    else:
        return None
    inside = [row.scaled(tokens / requests) for row in inside]
    api_server = math.fsum(measured) / requests - total(row.part for row in inside)
    if len(measured) == len(seen.engines) and api_server > 0:
        words = "engine: time_to_first_token minus queue and prefill"
        inside.append(_Row("client", Part("api_server", api_server, words, seen.engines[0].head or None)))
    fitted, notes = _fit(inside, whole, rest)
    return Ledger(whole, _entries(fitted, whole, interval), notes, source, unit=PER_REQUEST)


def _merged(rows: Iterable[_Row]) -> list[_Row]:
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
    head = time.group.head or None
    if time.queue_seconds > 0:
        rows.append(_Row("queue", Part("queue", time.queue_seconds / tokens, time.source, head)))
    if time.step_wait_seconds > 0:
        source = "engine: e2e_request_latency minus its phases: a step was running when the request came"
        rows.append(_Row("queue", Part("step_wait", time.step_wait_seconds / tokens, source, head)))
    stalled = time.decode_seconds * time.stalled_share
    lived = (
        (PREFILL, PREFILL, time.prefill_seconds),
        (DECODE, PREFILL, stalled),
        (DECODE, DECODE, time.decode_seconds - stalled),
    )
    for phase, kind, seconds in lived:
        work = next(each for each in time.work if each.kind == kind)
        if seconds <= 0:
            continue
        scale = seconds / tokens / work.wall_seconds if work.wall_seconds > 0 else 0.0
        parts = [part.scaled(scale) for part in work.parts]
        left = seconds / tokens - total(parts)
        if left > seconds / tokens * 1e-9:  # less is rounding of a sum that fills the whole time
            parts.append(Part("unexplained", left, "what the parts leave of the measured phase"))
        rows += [_Row(phase, part, kind) for part in parts if part.seconds > 0]
    return rows


def _fit(rows: Sequence[_Row], whole: float, source: str) -> tuple[list[_Row], tuple[str, ...]]:
    """Return rows that sum to the whole, and a note: the rest is the client's; too much is scaled down and said."""
    known = total(row.part for row in rows)
    if known > whole:
        notes: tuple[str, ...] = ()
        if known > thresholds.BEYOND * whole:
            notes = (
                f"the engine's phases come to {known / whole:.2f} times what the client waited "
                "and are scaled down to it (it also counts requests that are not the client's)",
            )
        return [row.scaled(whole / known) for row in rows], notes
    rest = Part("unexplained", whole - known, source)
    return [*rows, *([_Row("client", rest)] if whole - known > whole * 1e-9 else [])], ()


def _count_notes(seen: Observations) -> tuple[str, ...]:
    client = seen.client
    counted = math.fsum(engine.requests for engine in seen.engines)
    if client is None or not client.requests or not counted:
        return ()
    if abs(counted - client.requests) <= (thresholds.BEYOND - 1.0) * client.requests + 1:
        return ()
    return (
        f"the engine finished {counted:g} requests, the client {client.requests}: the ledger takes the engine's "
        "phases per output token of all of them",
    )
