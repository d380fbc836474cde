"""Link latency: many small messages, one after the other."""

from __future__ import annotations

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes.base import LAB, Cause, Family, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent


def find(context: Context) -> Finding | None:
    """Find small messages that take a share of the steps: on the wire, in the kernel, in waking up.

    Parameters
    ----------
    context : Context
        Supplies the ledger's shares of messages: on the wire, in the kernels, and in waking up.

    Returns
    -------
    Finding or None
        Scored by the share of messages in steps; None without a link or messages on it.
    """
    link = context.seen.link
    if link is None:
        return None
    names = ("link_latency", "message_handling", "message_wait")
    wire, handling, waking = (context.share(name) for name in names)
    score = min(1.0, wire + handling + waking)
    if score <= 0:
        return None
    evidence = [
        line(
            f"messages over {link.name} take {percent(score)} of the time in steps: {percent(wire)} on the wire, "
            f"{percent(handling)} in the nodes' kernels, {percent(waking)} until the waiting worker runs again",
            score,
            "1",
            context.sources(*names),
        )
    ]
    if link.message_latency_seconds:
        words = f"one message between the nodes takes {link.message_latency_seconds * 1e6:.3g} us on {link.name}"
        evidence.append(line(words, link.message_latency_seconds, "s", link.message_latency_source))
    if link.full_share is not None and link.full_share < thresholds.LEAST_SCORE:
        words = (
            f"{link.name} was near its capacity only {percent(link.full_share)} of the busy time: it is not the bytes"
        )
        evidence.append(line(words, link.full_share, "1", "samples: bytes sent"))
    return Finding(
        score,
        link=link.name,
        evidence=tuple(evidence),
        terms=(
            Term("messages of a step x time on the wire", wire),
            Term("messages in the nodes' kernels", handling),
            Term("until the waiting worker runs again", waking),
        ),
    )


CAUSE = Cause(
    name="link_latency",
    title="Latency of messages over link {link}",
    meaning="Each step exchanges many small messages, one after the other; their number times their latency rules.",
    signals=(
        "messages of a step times the measured time of a collective of that size are the largest share of decode",
        "the link is nearly empty: bytes / ceiling are small",
        "workers sleep in short naps; on a busy machine the wait for a core after each message is part of it",
    ),
    similar=(
        ("link_bandwidth", "there the link is full, in prefill first"),
        ("host_overhead", "there a single node without messages has the same cost"),
        ("straggler", "there one node's own evidence says that it comes late"),
    ),
    advice=(
        "Send fewer messages: pipeline instead of tensor parallel, or replicas where the model fits on a node.",
        "Or let each message serve more tokens: a larger batch (cluster bench --concurrency {concurrency}).",
        "Or make a message cheaper: a direct link, interrupts without delay, cores of their own for the workers.",
        "Measure it again: cluster probe --only allreduce",
    ),
    fault=False,
    tried=LAB,
    tier=Tier.LIMIT,
    find=find,
    family=Family.LINK,
    rests_on_steps=True,
)
