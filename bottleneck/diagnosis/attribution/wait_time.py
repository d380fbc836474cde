"""Work out what a sleeping worker waits for, beyond bytes and wires: the next message, the head to go on.

A worker of tensor or pipeline parallel sleeps whenever it waits for another. How long it slept is measured; what the
link takes of that is known. The rest of a step's unexplained time, as far as the worker slept it, is the time from a
message's arrival until it runs again, as the all-reduce probe of that size finds it. Beyond that it waited for the
head's loop, once a step and no longer than `HEAD_LOOP`; what even that leaves was the messages' too.
"""

from __future__ import annotations

import math

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.attribution.link_time import split_of
from bottleneck.diagnosis.attribution.parts import Both, Part, Work, total
from bottleneck.diagnosis.observations.observed import Observations
from bottleneck.performance.collectives import moved_bytes, probed_seconds
from bottleneck.performance.messages import allreduces
from bottleneck.runs.topology import Group


def asleep_parts(seen: Observations, group: Group, both: Both) -> dict[str, list[Part]]:
    """Return, by kind of work, the parts of its unexplained time that the workers slept.

    Parameters
    ----------
    seen : Observations
        Everything observed of a run.
    group : Group
        One engine's nodes.
    both : (Work, Work)
        With the parts of nodes and link filled in.
    """
    found: dict[str, list[Part]] = {work.kind: [] for work in both}
    watched = [facts for name in group.nodes if (facts := seen.nodes.get(name)) is not None]
    known = [
        facts.asleep_share
        for facts in watched
        if facts.asleep_share is not None and facts.covered_share >= thresholds.COVERED
    ]
    link = seen.link
    if len(group.nodes) < 2 or not known or link is None or not link.capacity_bytes_per_second or not link.sent_bytes:
        # Without the link's part of the sleep nobody can say what the rest of it was for.
        return found
    if seen.topology.tensor_parallel > 1 and not link.allreduce_seconds:
        return found
    taken = total(part for work in both for part in work.parts if part.link is not None)
    if seen.topology.pipeline_parallel > 1:
        # A stage also sleeps while the head's stage takes its turn.
        taken += total(part for work in both for part in work.parts if part.node == group.head)
    spare = max(known) * seen.busy_seconds - taken
    left = {work.kind: max(0.0, work.wall_seconds - work.explained_seconds) for work in both}
    whole = math.fsum(left.values())
    if spare <= 0 or whole <= 0:
        return found
    share = min(1.0, spare / whole)
    for work in both:
        slept = left[work.kind] * share
        waking, source = _waking_seconds(seen, work)
        loop = min(max(0.0, slept - waking), work.steps * thresholds.HEAD_LOOP)
        # Ranks wait for the head once a step, for messages dozens of times: what is left was theirs.
        messages = slept - loop if seen.topology.tensor_parallel > 1 else 0.0
        if messages > waking:
            words = "the rest by elimination: the peer slept beyond the head's loop"
            source = "; ".join(filter(None, (source, words)))
        if messages > 0:
            found[work.kind].append(Part("message_wait", messages, source, None, seen.topology.link))
        if loop > 0:
            words = "its peer slept beyond what link and messages take: it waited for the head's loop"
            found[work.kind].append(Part("host", loop, f"samples: {words}", group.head or None))
    return found


def _waking_seconds(seen: Observations, work: Work) -> tuple[float, str]:
    """Return how long the messages of some work take beyond bytes and wire, by the all-reduce probe of their size."""
    profile, ranks, link = seen.topology.profile, seen.topology.tensor_parallel, seen.link
    if profile is None or link is None or ranks < 2 or work.steps <= 0:
        return 0.0, ""
    messages = allreduces(profile.model.model_shape(), split_of(seen))
    size = work.tokens / work.steps * messages.bytes_per_token
    probed = probed_seconds(link.allreduce_seconds, size)
    if probed is None:
        return 0.0, ""
    wire = moved_bytes(size, ranks) / (link.probe_bytes_per_second or math.inf)
    beyond = max(0.0, probed - wire - (link.message_latency_seconds or 0.0))
    source = (
        f"{messages.count} messages a step x all-reduce probe at {size:.0f} B less bytes and wire, "
        "while the worker slept"
    )
    return work.steps * messages.count * beyond, source
