"""Prefill compute: the arithmetic of prompts."""

from __future__ import annotations

from bottleneck.diagnosis.attribution.parts import PREFILL
from bottleneck.diagnosis.causes._own_work import own_work
from bottleneck.diagnosis.causes.base import LAB, Cause, Family, Finding, Tier
from bottleneck.diagnosis.causes.context import Context


def find(context: Context) -> Finding | None:
    """Find steps with prompts in them that take the time.

    Parameters
    ----------
    context : Context
        Supplies arithmetic and reads of the steps with prompts in the ledger.

    Returns
    -------
    Finding or None
        As `own_work` scores it; None without steps that have prompts.
    """
    return own_work(context, PREFILL, ("compute", "memory"), "computing prompts")


CAUSE = Cause(
    name="prefill_compute",
    title="Prefill compute on {node}",
    meaning="Reading the prompts is what takes the time: their arithmetic runs as fast as the node can.",
    signals=(
        "most of the engine's busy time goes to steps with prompts in them",
        "the operations of those steps, divided by the node's matrix-multiply ceiling, are a large part of them",
        "requests that wait do so behind the prompts of others, not for a slot or for cache",
    ),
    similar=(
        ("decode_memory_bandwidth", "there the time goes to steps of decoding only: long answers, short prompts"),
        ("sequence_limit", "there arithmetic idles: more sequences would use it. Here it has no room left"),
        ("link_bandwidth", "there the workers sleep during prefill and the link is near its ceiling"),
    ),
    advice=(
        (
            "Send less to read: shorter prompts, or let prompts that begin alike share their cache (prefix caching "
            "in the deployment's server settings)."
        ),
        "Or add arithmetic: more nodes in the deployment, or a model with fewer parameters.",
        "Compare with what the node can do at most: cluster probe --only nodes",
        (
            "Confirm by slowing the node a little and watching the first token follow: cluster lab slow {node} "
            "--cores 0.8, then cluster lab slow {node} --restore"
        ),
    ),
    fault=False,
    tried=LAB,
    tier=Tier.LIMIT,
    find=find,
    family=Family.NODE,
    rests_on_steps=True,
)
