"""API server: the process in front of the engine is saturated, and requests wait there."""

from __future__ import annotations

from bottleneck.diagnosis.causes.base import LAB, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent


def find(context: Context) -> Finding | None:
    """Find a saturated API server, by what is spent before and after the engine's own phases.

    Parameters
    ----------
    context : Context
        Supplies the CPU time and the waits of the engines' API servers, the client's phase of the ledger, and the idle
        time.

    Returns
    -------
    Finding or None
        Scored by the time lost before and after the engine, as far as the server's core is full; None without any.
    """
    saturated = context.api_server_saturation
    lost = context.ledger.phase("client") + context.step_wait_share
    # A full API server also leaves the engine idle.
    score = saturated * max(lost, context.seen.idle_share or 0.0)
    if score <= 0:
        return None
    seen = max(context.seen.engines, key=lambda engine: engine.api_server_need)
    used, waited = seen.api_server_cpu_share, seen.api_server_wait_share
    words = f"the API server used {used or 0:.2f} of a core; it does its work on one"
    evidence = [line(words, used, "cores", "engine metrics: process_cpu_seconds_total")]
    if waited:
        words = (
            f"it was ready to run but not let for {percent(waited)} of the time, longer than the other "
            "processes of its node: something holds this process back"
        )
        evidence.append(line(words, waited, "1", "samples: run delay of the API server"))
    words = f"{percent(lost)} of an output token's time is spent before or after the engine's queue, prefill and decode"
    source = "ledger: client timings and e2e_request_latency minus the engine's phases"
    evidence.append(line(words, lost, "1", source))
    terms = (Term("before and after the engine x how full the API server is", score),)
    return Finding(score, seen.head or None, evidence=tuple(evidence), terms=terms)


CAUSE = Cause(
    name="api_server",
    title="API server or tokenizer",
    meaning="The process in front of the engine (HTTP, tokenizer, detokenizer) is what requests wait for.",
    signals=(
        "the API server uses a whole core",
        "requests are slower at the API server than in its engine: whole latency minus queue, prefill, decode",
    ),
    similar=(
        ("client_limited", "there the API server idles too: the time is lost before the server"),
        ("host_overhead", "there the time is lost inside the engine's steps"),
    ),
    advice=(
        (
            "Run more API server processes (vLLM's --api-server-count), or keep it from work: shorter texts, token ids "
            "instead of text, fewer streamed events."
        ),
        "Give the head's API server a core that the engine's loop does not use.",
    ),
    fault=True,
    tried=LAB,
    tier=Tier.MENDABLE,
    find=find,
)
