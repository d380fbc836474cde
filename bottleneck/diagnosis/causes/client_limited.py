"""Client: the load is too small to find what limits the engine."""

from __future__ import annotations

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes.base import LAB, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import Evidence, line, percent


def find(context: Context) -> Finding | None:
    """Find an engine that idles while nothing waits; or requests that are slow at the client alone.

    Parameters
    ----------
    context : Context
        Supplies the idle time, the gauges of waiting requests, the client's phase of the ledger, and the load.

    Returns
    -------
    Finding or None
        Scored by the share of the time without any request, or by that of the client alone; None below both thresholds.
    """
    seen, spare = context.seen, 1.0 - context.api_server_saturation
    waiting = max((engine.waiting_share or 0.0 for engine in seen.engines), default=0.0)
    queued = max(waiting, context.slots_share + context.cache_share) > thresholds.LEAST_SCORE
    idle = None if seen.idle_share is None else seen.idle_share * spare
    # What an engine lost of its counts looks as if it had passed at the client.
    reset = any(engine.reset for engine in seen.engines)
    counted = seen.client is not None and context.engine_reported and not reset
    outside = context.ledger.phase("client") * spare if counted else 0.0
    if idle is not None and idle >= thresholds.IDLE and not queued and idle >= outside:
        words = f"no request was under way for {percent(idle)} of the {seen.span_seconds:.3g} s watched"
        evidence = (
            line(words, idle, "1", seen.time.source),
            *_load_lines(context),
            line("hardly anything waited for a slot or for cache", waiting, "1", "engine metrics"),
        )
        return Finding(idle, evidence=evidence, terms=(Term("time without any request", idle),))
    room = _room(context) * spare
    if room > outside and not queued:
        words = f"requests come at their own pace and the engine keeps up: batches could win {percent(room)} of a token"
        evidence = (line(words, room, "1", "engine metrics: num_requests_running; ledger"), *_load_lines(context))
        return Finding(room, evidence=evidence, terms=(Term("free slots x what a step does not grow by", room),))
    if outside <= thresholds.LEAST_SHOWN:
        return None
    words = (
        f"{percent(outside)} of an output token's time passes at the client or on the way to the server: "
        "the server's own account of the same requests is that much shorter"
    )
    evidence = (line(words, outside, "1", "client timings minus engine: e2e_request_latency"),)
    return Finding(outside, evidence=evidence, terms=(Term("client timings minus the engine's", outside),))


def _room(context: Context) -> float:
    """Return what a token would win in full batches, where requests come whatever the engine does; else 0."""
    seen, limit = context.seen, context.seen.topology.max_num_seqs
    running = [engine.running_mean for engine in seen.engines]
    if seen.client is None or not seen.client.open_loop or not limit or None in running or not running:
        return 0.0
    busy = 1.0 - (seen.idle_share or 0.0)
    used = max(mean or 0.0 for mean in running) * busy / limit
    return max(0.0, 1.0 - used) * (1.0 - context.growing_share * busy)


def _load_lines(context: Context) -> list[Evidence]:
    seen, found = context.seen, []
    running = max((engine.running_mean or 0.0 for engine in seen.engines), default=0.0)
    limit, client = seen.topology.max_num_seqs, seen.client
    if running and limit:
        words = f"{running:.3g} requests ran while any did; {limit} are allowed"
        found.append(line(words, running / limit, "1", "engine metrics: num_requests_running"))
    if client is not None and client.open_loop and client.request_rate is not None:
        words = f"requests came at {client.request_rate:.3g}/s whatever the engine did"
        found.append(line(words, client.request_rate, "1/s", "workload"))
    return found


CAUSE = Cause(
    name="client_limited",
    title="Limited by the client: the load is too small",
    meaning="The engine is idle for much of the time: requests come too slowly to find what limits it.",
    signals=(
        "the engine has no request for much of the time",
        "nothing waits",
        "or: requests take much longer at the client than at the API server, which idles",
    ),
    similar=(
        ("decode_memory_bandwidth", "there a request is always under way, if only one at a time"),
        ("api_server", "there the API server is busy"),
    ),
    advice=(
        "Send more: cluster bench --concurrency {concurrency} (or a higher --rate), then ask again.",
        "If requests are slow at the client alone, look at the client's machine and its way to the server.",
    ),
    fault=False,
    tried=LAB,
    tier=Tier.MENDABLE,
    find=find,
)
