"""Link bandwidth: bytes that ranks exchange take longer than their arithmetic."""

from __future__ import annotations

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes.base import LAB, Cause, Family, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent


def find(context: Context) -> Finding | None:
    """Find bytes between the nodes that take a share of the steps; a link far below its promise works wrong.

    Parameters
    ----------
    context : Context
        Supplies the link's transfers in the ledger, the bytes that crossed it, and its capacity as probed and as
        promised.

    Returns
    -------
    Finding or None
        Scored by the share of transfers in steps; None without a link or bytes on it.
    """
    link = context.seen.link
    if link is None:
        return None
    share = context.share("link_transfer")
    if share <= 0:
        return None
    evidence = [line(f"bytes over {link.name} take {percent(share)} of the time in steps", share, "1", "ledger")]
    capacity, promised = link.capacity_bytes_per_second, link.promised_bytes_per_second
    if link.busiest_bytes is not None and capacity:
        words = (
            f"{link.busiest_bytes / 1e6:.4g} MB crossed {link.name} one way, which carries {capacity / 1e6:.4g} MB/s"
        )
        evidence.append(line(words, link.busiest_bytes, "B", f"samples; capacity: {link.capacity_source}"))
    # By a probe, or by what crossed while workers waited for it; the highest rate that was seen is no such measurement.
    probed = link.probe_bytes_per_second is not None and (capacity or 0.0) <= link.probe_bytes_per_second
    short = bool(probed and capacity and promised and capacity < promised / 2)
    if short and capacity and promised:
        words = f"by the profile {link.name} carries {promised / 1e6:.4g} MB/s, {promised / capacity:.2g} times as much"
        evidence.append(line(words, capacity / promised, "1", "profile; " + link.capacity_source))
    if link.full_share is not None:
        words = (
            f"{link.name} ran at {percent(thresholds.FULL)} of its capacity or more for "
            f"{percent(link.full_share)} of the busy time"
        )
        evidence.append(line(words, link.full_share, "1", "samples: bytes sent"))
    asleep = [facts for facts in context.seen.nodes.values() if facts.asleep_share is not None]
    for facts in asleep:
        words = f"the worker on {facts.node} slept {percent(facts.asleep_share or 0)} of the busy time"
        evidence.append(line(words, facts.asleep_share, "1", "samples: CPU time of the worker"))
    # Workers that compute all the time do not wait for a link. A wait for a core may pass while the bytes do.
    off = [(facts.asleep_share or 0.0) + context.seen.busy_share_of(facts.cpu_wait_seconds) for facts in asleep]
    score = min(share, 2 * max(off, default=1.0))
    if score < share:
        words = "yet no worker was off its core that long, which speaks against the link"
        evidence.append(line(words, max(off), "1", "samples"))
    return Finding(
        score,
        link=link.name,
        fault=short,
        evidence=tuple(evidence),
        terms=(
            Term("bytes sent / capacity", share),
            Term("limited by how long workers were off their core", score - share),
        ),
    )


CAUSE = Cause(
    name="link_bandwidth",
    title="Bandwidth of link {link}",
    meaning="Bytes that the nodes must exchange in every step take longer over the link than the arithmetic.",
    signals=(
        "bytes sent divided by the link's ceiling are the largest share of the ledger",
        "the link runs near its ceiling while it is active",
        "workers sleep while the engine is busy; it shows in prefill first, whose messages are large",
    ),
    similar=(
        ("link_latency", "there messages are small and the link is nearly empty: it shows in decode first"),
        ("prefill_compute", "there no worker sleeps long in prefill"),
        ("straggler", "there only the fast node sleeps"),
    ),
    advice=(
        "Use a faster link for the deployment, or pipeline instead of tensor parallel: it sends less.",
        "If the link was slowed on purpose: cluster lab throttle {link} --restore",
        "Measure the link again: cluster probe --only links",
    ),
    fault=True,
    tried=LAB,
    tier=Tier.LIMIT,
    find=find,
    family=Family.LINK,
    rests_on_steps=True,
)
