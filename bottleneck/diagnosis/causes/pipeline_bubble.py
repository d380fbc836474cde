"""Pipeline bubble: stages take turns with too few batches in flight."""

from __future__ import annotations

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes._restraint import common_wait, standing_out
from bottleneck.diagnosis.causes.base import LAB, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent

SIDE_BY_SIDE = (
    "Keep more sequences in flight: cluster bench --concurrency {concurrency}.",
    (
        "For one sequence at a time a pipeline cannot be faster than its stages in a row: use tensor parallel "
        "if the link's latency allows it."
    ),
)
IN_TURN = (
    (
        "Where the engine takes one batch at a time through its stages, more sequences fill none of them: if the model "
        "fits on one node, serve a copy on each (replicas), and all of them work at once."
    ),
    (
        "If it does not fit, use as few nodes as hold it, and give faster ones more of the layers: cluster "
        "plan-deployment weighs both."
    ),
)


def find(context: Context) -> Finding | None:
    """Find stages that sleep for want of a turn.

    Parameters
    ----------
    context : Context
        Supplies the number of stages, the time in which each node's worker slept, and the running requests.

    Returns
    -------
    Finding or None
        Scored by the share of the time that stages sleep; None with one stage, or where none sleeps.
    """
    seen = context.seen
    stages = seen.topology.pipeline_parallel
    if stages < 2 or not context.ledger.entries:
        return None
    # A wait for a core is no work either: a stage that waits for its turn has its core taken more easily, but where all
    # of them wait for cores alike it is no wait for a turn. One that a
    # quota restrains waits for nothing else; and for what one slow stage takes longer, the others would not wait.
    slow, crowded = standing_out(context), common_wait(context)
    asleep = {}
    for facts in seen.nodes.values():
        if facts.asleep_share is not None:
            away = facts.asleep_share + max(0.0, seen.busy_share_of(facts.cpu_wait_seconds) - crowded)
            waits_for_it = slow.node is not None and (slow.node.node != facts.node or facts.restricted)
            asleep[facts.node] = away - (slow.total if waits_for_it else 0.0)
    running = max((engine.running_mean or 0.0 for engine in seen.engines), default=0.0)
    overlapping = seen.topology.overlapping_stages
    filled = overlapping and running > 2 * 2 * stages
    if not asleep or min(asleep.values()) < thresholds.BUBBLE_ASLEEP or filled:
        return None
    # What the link takes is no turn of another stage.
    link = context.share("link_transfer", "link_latency")
    turns = max(0.0, min(asleep.values()) - link)
    if link >= turns:
        return None  # the stages wait for the link rather than for one another
    # One batch in flight leaves every stage idle for all turns but its own: that is the most a bubble can be. It is a
    # share of the time in steps; a request that waits before them waits for something else.
    score = min(1.0, turns * stages / (stages - 1)) * context.steps_share
    # What holds one stage back beyond its peers delays the whole step: the same second is no turn of another's.
    restrained = min(slow.restrained * context.steps_share, context.share("throttled", "cpu_wait"))
    score = min(score, 1.0 - restrained)
    if score <= 0:
        return None
    least = min(asleep, key=lambda node: asleep[node])
    words = (
        f"even the busiest watched stage, on {least}, was off its core {percent(asleep[least])} of the busy time, for "
        "want of a turn"
    )
    ran = f"{running:.3g} requests ran on average over {stages} stages"
    return Finding(
        score,
        evidence=(
            line(words, asleep[least], "1", "samples: CPU time of the worker"),
            line(ran, running, "requests", "engine metrics: num_requests_running"),
        ),
        terms=(Term("turns of other stages x share of the time in steps", score),),
        advice=SIDE_BY_SIDE if overlapping else IN_TURN,
    )


CAUSE = Cause(
    name="pipeline_bubble",
    title="Pipeline bubble",
    meaning=(
        "The stages of a pipeline take turns: too few batches are in flight to keep all of them busy, or the engine "
        "takes one at a time through them."
    ),
    signals=(
        "pipeline parallel, and workers of every stage sleep a large part of the busy time",
        "few sequences run for so many stages, or the engine's stages do not work side by side",
        "the link between the stages is nearly empty",
    ),
    similar=(
        ("straggler", "there one stage is always busy and the others wait for it"),
        ("link_latency", "there the naps are as short as a message, and as many"),
        ("client_limited", "there no request is under way at all for part of the time"),
    ),
    advice=(*SIDE_BY_SIDE, *IN_TURN),
    fault=False,
    tried=LAB,
    tier=Tier.MENDABLE,
    find=find,
    rests_on_steps=True,
)
