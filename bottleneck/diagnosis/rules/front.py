"""Rules for what is before the engine: the client, the API server."""

from __future__ import annotations

from bottleneck.diagnosis.evidence import Candidate, Case, front_need, percent

# Idle for this share of the time: the load does not find the limit.
IDLE = 0.3


def score_client_limited(case: Case) -> Candidate:
    """The engine is idle and nothing waits; or requests are slow at the client alone."""
    found, signals = Candidate("client_limited"), case.signals
    idle = signals.idle_share
    waiting = max((engine.waiting_share or 0.0 for engine in signals.engines), default=0.0)
    held = case.slots_share + case.cache_share
    outside = case.ledger.phase("client") * (1.0 - case.front_saturation)
    idle = None if idle is None else idle * (1.0 - case.front_saturation)
    if waiting <= 0.2 and held <= 0.2 and idle is not None and idle >= IDLE:
        found.score = 0.5 + 0.5 * idle
        found.say(
            f"no request was under way for {percent(idle)} of the {signals.span_seconds:.3g} s watched",
            idle,
            "1",
            signals.busy_source,
        )
        _say_load(found, case)
        found.say("hardly anything waited for a slot or for cache", waiting, "1", "engine metrics")
    if outside > max(found.score, 0.05) and case.engine_told:
        found.score = outside
        found.say(
            f"{percent(outside)} of an output token's time passes at the client or on the way to the server: "
            "the server's own account of the same requests is that much shorter",
            outside,
            "1",
            "client timings minus engine: e2e_request_latency",
        )
    found.gain_share = outside if found.score == outside else None
    return found


def _say_load(found: Candidate, case: Case) -> None:
    signals = case.signals
    running = max((engine.running_mean or 0.0 for engine in signals.engines), default=0.0)
    limit = signals.topology.max_num_seqs
    if running and limit:
        found.say(
            f"{running:.3g} requests ran while any did; {limit} are allowed",
            running / limit,
            "1",
            "engine metrics: num_requests_running",
        )
    client = signals.client
    if client is not None and client.open_loop and client.request_rate is not None:
        statement = f"requests came at {client.request_rate:.3g}/s whatever the engine did"
        found.say(statement, client.request_rate, "1/s", "workload")


def score_api_server(case: Case) -> Candidate:
    """The process in front of the engine is saturated, and requests wait there."""
    found = Candidate("api_server")
    saturated = case.front_saturation
    if saturated <= 0:
        return found
    lost = case.ledger.phase("client") + case.step_wait_share
    # A full front process also leaves the engine idle.
    found.score = found.gain_share = saturated * max(lost, case.signals.idle_share or 0.0)
    if found.score <= 0:
        return found
    seen = max(case.signals.engines, key=front_need)
    found.node = seen.head or None
    found.say(
        f"the server's front process used {seen.front_cpu_share or 0:.2f} of a core; it does its work on one",
        seen.front_cpu_share,
        "cores",
        "engine metrics: process_cpu_seconds_total",
    )
    if seen.front_wait_share:
        found.say(
            f"it was ready to run but not let for {percent(seen.front_wait_share)} of the time, longer than the other "
            "processes of its node: something holds this process back",
            seen.front_wait_share,
            "1",
            "samples: run delay of the front process",
        )
    found.say(
        f"{percent(lost)} of an output token's time is spent before or after the engine's queue, prefill and decode",
        lost,
        "1",
        "ledger: client timings and e2e_request_latency minus the engine's phases",
    )
    return found
