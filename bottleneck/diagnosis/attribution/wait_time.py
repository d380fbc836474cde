"""What a worker that sleeps waits for, beyond bytes and wires: the next message to wake it, the head to go on.

A worker of tensor or pipeline parallel sleeps whenever it waits for another. How long it slept is measured; what the
link takes of that is known. The rest of a step's unexplained time, as far as the worker slept it, is the time from a
message's arrival until it runs again, as the all-reduce probe of that size finds it; beyond that it waited for the
head's loop.
"""

from __future__ import annotations

import math

from bottleneck.diagnosis.attribution.step_parts import Part, Work
from bottleneck.diagnosis.observations.signals import Signals
from bottleneck.performance.collectives import moved_bytes, probed_seconds
from bottleneck.performance.messages import allreduces
from bottleneck.performance.model import Split
from bottleneck.runs.topology import Group


def asleep_parts(signals: Signals, group: Group, both: tuple[Work, Work]) -> dict[str, list[Part]]:
    """Return, by kind of work, the parts of its unexplained time that the workers slept.

    Parameters
    ----------
    both : tuple of Work
        With the parts of nodes and link filled in.
    """
    found: dict[str, list[Part]] = {work.kind: [] for work in both}
    asleep = [facts.asleep_share for name in group.nodes if (facts := signals.nodes.get(name)) is not None]
    known = [share for share in asleep if share is not None]
    link = signals.link
    if len(group.nodes) < 2 or not known or link is None or not link.capacity_bytes_per_second or not link.sent_bytes:
        # Without the link's part of the sleep nobody can say what the rest of it was for.
        return found
    if signals.topology.tensor_parallel > 1 and not link.allreduce_seconds:
        return found
    taken = math.fsum(part.seconds for work in both for part in work.parts if part.link is not None)
    if signals.topology.pipeline_parallel > 1:
        # A stage also sleeps while the head's stage takes its turn.
        taken += math.fsum(part.seconds for work in both for part in work.parts if part.node == group.head)
    spare = max(known) * signals.busy_seconds - taken
    left = {work.kind: max(0.0, work.wall_seconds - work.explained_seconds) for work in both}
    whole = math.fsum(left.values())
    if spare <= 0 or whole <= 0:
        return found
    share = min(1.0, spare / whole)
    for work in both:
        slept = left[work.kind] * share
        waking, source = _waking_seconds(signals, work)
        messages = min(slept, waking)
        if messages > 0:
            found[work.kind].append(Part("message_wait", messages, source, None, signals.topology.link))
        if slept - messages > 0:
            words = "its peer slept beyond what link and messages take: it waited for the head's loop"
            found[work.kind].append(Part("host", slept - messages, f"samples: {words}", group.head or None))
    return found


def _waking_seconds(signals: Signals, work: Work) -> tuple[float, str]:
    """Return how long the messages of some work take beyond bytes and wire, by the all-reduce probe of their size."""
    profile, ranks, link = signals.topology.profile, signals.topology.tensor_parallel, signals.link
    if profile is None or link is None or ranks < 2 or work.steps <= 0:
        return 0.0, ""
    messages = allreduces(profile.model.model_shape(), Split(ranks, signals.topology.pipeline_parallel))
    size = work.tokens / work.steps * messages.bytes_per_token
    probed = probed_seconds(link.allreduce_seconds, size)
    if probed is None:
        return 0.0, ""
    count = messages.count
    wire = moved_bytes(size, ranks) / (link.probe_bytes_per_second or math.inf)
    beyond = max(0.0, probed - wire - (link.message_latency_seconds or 0.0))
    source = f"{count} messages a step x all-reduce probe at {size:.0f} B less bytes and wire, while the worker slept"
    return work.steps * count * beyond, source
