"""Share what the causes of queueing show: how many waited, and how much of a token's time that is."""

from __future__ import annotations

from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import Evidence, line, percent
from bottleneck.diagnosis.observations.engine import EngineFacts


def waiting_share(engine: EngineFacts) -> float:
    """Return how many of the requests that were there waited, on average, 0 to 1 (Little's law).

    Parameters
    ----------
    engine : EngineFacts
        Facts of one engine; without gauges nothing waited.

    Returns
    -------
    float
        Waiting over waiting and running requests: in a steady state the share of a request's stay that it waits
        (Little, "A proof for the queuing formula L = lambda W", 1961).
    """
    waiting, running = engine.waiting_mean or 0.0, engine.running_mean or 0.0
    return waiting / (waiting + running) if waiting > 0 else 0.0


def queue_line(context: Context) -> list[Evidence]:
    """Return the line about the queue's share of an output token's time, where there is one.

    Parameters
    ----------
    context : Context
        Supplies the share of the queue.

    Returns
    -------
    list[Evidence]
        One line or none.
    """
    share = context.queue_share
    if share <= 0:
        return []
    words = f"queueing takes {percent(share)} of an output token's time"
    return [line(words, share, "1", "ledger: engine's request_queue_time")]
