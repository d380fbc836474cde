"""Unwatched link: ranks exchange messages over something that nobody watched."""

from __future__ import annotations

from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL
from bottleneck.diagnosis.causes.base import RECORDED, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent


def find(context: Context) -> Finding | None:
    """Find what kernels and host leave of the steps of an engine whose ranks talk over a link without samples.

    Parameters
    ----------
    context : Context
        Supplies the topology, and what the ledger could give to neither kernels nor host.

    Returns
    -------
    Finding or None
        Scored by that share of the time in steps; None where links are watched.
    """
    topology = context.seen.topology
    if not topology.unwatched_link:
        return None
    share = context.share("unwatched")
    if share <= 0:
        return None
    prompts, decoding = (context.share_of_kind(kind, "unwatched") for kind in (PREFILL, DECODE))
    ranks = topology.tensor_parallel * topology.pipeline_parallel
    words = (
        f"{percent(share)} of the time in steps is neither kernels at what they usually reach nor the host's: "
        f"{percent(prompts)} in steps with prompts, {percent(decoding)} in decoding"
    )
    split = f"tensor parallel {topology.tensor_parallel}, pipeline parallel {topology.pipeline_parallel}"
    return Finding(
        share,
        evidence=(
            line(words, share, "1", context.sources("unwatched")),
            line(
                f"{ranks} ranks exchange messages in every step ({split}), and no sample shows their link",
                None,
                "",
                "server settings",
            ),
        ),
        terms=(
            Term("steps with prompts, beyond kernels", prompts),
            Term("decoding, beyond kernels and host", decoding),
        ),
    )


CAUSE = Cause(
    name="unwatched_link",
    title="Link between the ranks, which nobody watched",
    meaning="What kernels and host leave of a step passes between the ranks or waits for one: measure the link.",
    signals=(
        "the server's settings name several nodes or ranks, and no sample shows the link between them",
        "steps take many times what their kernels usually do, though graphs are captured; it shows in prefill first",
    ),
    similar=(
        ("host_overhead", "there a single rank has the same cost"),
        ("link_bandwidth", "there the link's bytes were seen"),
        ("link_latency", "there the link's messages were measured"),
    ),
    advice=(
        "Measure the link: cluster probe --only links, then cluster bench; the verdict then says bandwidth or latency.",
        "Compare pipeline with tensor parallel: over a link of 60 us or more a pipeline sends less (cluster whatif).",
    ),
    fault=False,
    tried=RECORDED,
    tier=Tier.LIMIT,
    find=find,
    rests_on_steps=True,
)
