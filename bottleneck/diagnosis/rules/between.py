"""Rules for what lies between nodes: the link's bandwidth, the latency of its messages, turns of pipeline stages."""

from __future__ import annotations

from bottleneck.diagnosis.evidence import Candidate, Case, percent
from bottleneck.diagnosis.rules.straggler import standing_out

# The sleepiest stage must sleep at least this share of the busy time for a bubble.
BUBBLE = 0.25


def score_link_bandwidth(case: Case) -> Candidate:
    """Bytes between the nodes take a large share of the steps."""
    found, link = Candidate("link_bandwidth"), case.signals.link
    if link is None:
        return found
    found.link, found.score = link.name, case.share("link_transfer")
    found.gain_share = case.ledger.of("link_transfer")
    found.say(f"bytes over {link.name} take {percent(found.score)} of the time in steps", found.score, "1", "ledger")
    if link.busiest_bytes is not None and link.capacity_bytes_per_second:
        found.say(
            f"{link.busiest_bytes / 1e6:.4g} MB crossed {link.name} one way, which carries "
            f"{link.capacity_bytes_per_second / 1e6:.4g} MB/s",
            link.busiest_bytes,
            "B",
            f"samples; capacity: {link.capacity_source}",
        )
    if link.full_share is not None:
        found.say(
            f"{link.name} ran at 80 % of its capacity or more for {percent(link.full_share)} of the busy time",
            link.full_share,
            "1",
            "samples: bytes sent",
        )
    asleep = [facts for facts in case.signals.nodes.values() if facts.asleep_share is not None]
    for facts in asleep:
        found.say(
            f"the worker on {facts.node} slept {percent(facts.asleep_share or 0)} of the busy time",
            facts.asleep_share,
            "1",
            "samples: CPU time of the worker",
        )
    # A wait for a core may pass while the bytes do: it is no sign of work.
    idle = max(
        ((facts.asleep_share or 0.0) + case.busy_share_of(facts.cpu_wait_seconds) for facts in asleep), default=1.0
    )
    if found.score >= 0.2 and idle < 0.5 * found.score:
        # Workers that compute all the time do not wait for a link: the two measurements contradict each other.
        found.score *= 0.6
        found.say("yet no worker was off its core that long, which speaks against the link", None, "", "samples")
    return found


def score_link_latency(case: Case) -> Candidate:
    """Small messages take a large share of the steps: on the wire, in the kernel, in waking up."""
    found, link = Candidate("link_latency"), case.signals.link
    if link is None:
        return found
    wire, handling, waking = (case.share(name) for name in ("link_latency", "message_handling", "message_wait"))
    found.link, found.score = link.name, min(1.0, wire + handling + waking)
    if found.score <= 0:
        return found
    found.gain_share = case.ledger.of("link_latency", "message_handling", "message_wait")
    sources = sorted(
        {
            entry.source
            for entry in case.ledger.entries
            if entry.resource in ("link_latency", "message_handling", "message_wait")
        }
    )
    found.say(
        f"messages over {link.name} take {percent(found.score)} of the time in steps: {percent(wire)} on the wire, "
        f"{percent(handling)} in the nodes' kernels, {percent(waking)} until the waiting worker runs again",
        found.score,
        "1",
        "ledger: " + "; ".join(sources),
    )
    if link.message_latency_seconds:
        found.say(
            f"one message between the nodes takes {link.message_latency_seconds * 1e6:.3g} us on {link.name}",
            link.message_latency_seconds,
            "s",
            link.message_latency_source,
        )
    if link.full_share is not None and link.full_share < 0.3:
        found.say(
            f"{link.name} was near its capacity only {percent(link.full_share)} of the busy time: it is not the bytes",
            link.full_share,
            "1",
            "samples: bytes sent",
        )
    return found


def score_pipeline_bubble(case: Case) -> Candidate:
    """Stages take turns with too few batches in flight."""
    found, signals = Candidate("pipeline_bubble"), case.signals
    stages = signals.topology.pipeline_parallel
    if stages < 2 or not case.ledger.entries:
        return found
    # A wait for a core is no work either: a stage that waits for its turn has its core taken more easily. One that a
    # quota holds waits for nothing else; and for what one slow stage takes longer, the others would not wait.
    held, slower, slow = standing_out(case)
    asleep = {}
    for facts in signals.nodes.values():
        if facts.asleep_share is not None:
            asleep[facts.node] = facts.asleep_share + case.busy_share_of(facts.cpu_wait_seconds)
            if slow is not None and (slow is not facts or facts.restricted):
                asleep[facts.node] -= held + slower
    running = max((engine.running_mean or 0.0 for engine in signals.engines), default=0.0)
    if not asleep or min(asleep.values()) < BUBBLE or running > 4 * stages:
        return found
    # What the link takes is no turn of another stage.
    turns = max(0.0, min(asleep.values()) - case.share("link_transfer", "link_latency"))
    # One batch in flight leaves every stage idle for all turns but its own: that is the most a bubble can be. It is a
    # share of the time in steps; a request that waits before them waits for something else.
    steps = min(1.0, (case.ledger.phase("prefill") + case.ledger.phase("decode")) / case.norm)
    found.score = min(1.0, turns * stages / (stages - 1)) * steps
    if found.score <= 0:
        return found
    found.gain_share = turns * steps
    least = min(asleep, key=lambda node: asleep[node])
    found.say(
        f"even the busiest watched stage, on {least}, was off its core {percent(asleep[least])} of the busy time, for "
        "want of a turn",
        asleep[least],
        "1",
        "samples: CPU time of the worker",
    )
    found.say(
        f"{running:.3g} requests ran on average over {stages} stages",
        running,
        "requests",
        "engine metrics: num_requests_running",
    )
    return found
