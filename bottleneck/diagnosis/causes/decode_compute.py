"""Decode compute: steps of decoding whose arithmetic outlasts their reads."""

from __future__ import annotations

from bottleneck.diagnosis.attribution.parts import DECODE
from bottleneck.diagnosis.causes._own_work import own_work
from bottleneck.diagnosis.causes.base import SYNTHETIC, Cause, Family, Finding, Tier
from bottleneck.diagnosis.causes.context import Context


def find(context: Context) -> Finding | None:
    """Find steps of decoding that arithmetic takes the time of.

    Parameters
    ----------
    context : Context
        Supplies the arithmetic of decoding steps in the ledger.

    Returns
    -------
    Finding or None
        As `own_work` scores it; None without arithmetic of decoding.
    """
    return own_work(context, DECODE, ("compute",), "decoding, bound by arithmetic")


CAUSE = Cause(
    name="decode_compute",
    title="Decode compute on {node}",
    meaning="So many sequences decode together, or the cores are so slow, that arithmetic outlasts the reads.",
    signals=(
        "most of the engine's busy time goes to steps of decoding only",
        "a step's operations, divided by the arithmetic ceiling, outlast its bytes divided by the memory ceiling",
    ),
    similar=(
        ("decode_memory_bandwidth", "there a larger batch costs next to nothing; here the step grows with it"),
        ("prefill_compute", "there prompts take the time"),
    ),
    advice=(
        "A larger batch gains nothing any more: add replicas or nodes instead.",
        "Compare with what the node can do at most: cluster probe --only nodes",
        (
            "Confirm by slowing the node a little: cluster lab slow {node} --cores 0.8, then cluster lab slow "
            "{node} --restore"
        ),
    ),
    fault=False,
    tried=SYNTHETIC,
    tier=Tier.LIMIT,
    find=find,
    family=Family.NODE,
    rests_on_steps=True,
    host_or_kernels=True,
)
