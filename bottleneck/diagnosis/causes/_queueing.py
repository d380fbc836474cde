"""Share what the causes of queueing show: how many waited, and how much of a token's time that is."""

from __future__ import annotations

from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import Evidence, line, percent
from bottleneck.diagnosis.observations.engine import EngineFacts


def waiting_share(engine: EngineFacts) -> float:
    """Return how many of the requests that were there waited, on average, 0 to 1 (Little's law)."""
    waiting, running = engine.waiting_mean or 0.0, engine.running_mean or 0.0
    return waiting / (waiting + running) if waiting > 0 else 0.0


def queue_line(context: Context) -> list[Evidence]:
    """Return the line about the queue's share of an output token's time, where there is one."""
    share = context.queue_share
    if share <= 0:
        return []
    words = f"queueing takes {percent(share)} of an output token's time"
    return [line(words, share, "1", "ledger: engine's request_queue_time")]
