"""Decode memory bandwidth: steps of decoding whose reads outlast their arithmetic."""

from __future__ import annotations

from bottleneck.diagnosis.attribution.parts import DECODE
from bottleneck.diagnosis.causes._own_work import own_work
from bottleneck.diagnosis.causes.base import RECORDED, Cause, Family, Finding, Tier
from bottleneck.diagnosis.causes.context import Context


def find(context: Context) -> Finding | None:
    """Find steps of decoding that reads take the time of.

    Parameters
    ----------
    context : Context
        Supplies the reads of weights and cache of decoding steps in the ledger.

    Returns
    -------
    Finding or None
        As `own_work` scores it; None without reads of decoding.
    """
    return own_work(context, DECODE, ("memory",), "decoding, bound by reads")


CAUSE = Cause(
    name="decode_memory_bandwidth",
    title="Decode: memory bandwidth and kernels of {node}",
    meaning="Every step of decoding reads all weights and the cache of all sequences; that read sets the pace.",
    signals=(
        "most of the engine's busy time goes to steps of decoding only",
        (
            "bytes read in a step, divided by the node's memory ceiling, are a large part of the step, and more "
            "than its operations divided by the arithmetic ceiling"
        ),
        "requests do not wait for a slot or for cache",
    ),
    similar=(
        ("decode_compute", "there so many sequences decode together that arithmetic outlasts the read"),
        ("host_overhead", "there the step is many times the read: the accelerator waits for its host"),
        ("client_limited", "there steps are missing, not slow: the engine has no request for much of the time"),
    ),
    advice=(
        "Read less: fewer bits per weight, keys and values in fewer bits, shorter contexts.",
        "Share the read among more sequences at a time: cluster bench --concurrency {concurrency}",
        "Split the read: tensor parallel over more nodes, if the link's latency allows it.",
        "Compare with what the node can read at most: cluster probe --only nodes",
    ),
    fault=False,
    tried=RECORDED,
    tier=Tier.LIMIT,
    find=find,
    family=Family.NODE,
    rests_on_steps=True,
    host_or_kernels=True,
)
