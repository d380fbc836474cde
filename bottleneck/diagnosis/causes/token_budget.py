"""Token budget: prompts are cut into more steps than they need, each with the costs of a whole step."""

from __future__ import annotations

from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL, Work
from bottleneck.diagnosis.causes.base import LAB, Cause, Finding, Term, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent
from bottleneck.performance.server_limits import server_defaults


def find(context: Context) -> Finding | None:
    """Find steps with prompts that are full to the budget and more than a usual budget would take.

    A step costs something whatever is in it: weights are read, kernels launched, messages sent. A step of decoding
    alone shows how much. With a usual budget prompts take fewer steps, and as many times that cost is won.

    Parameters
    ----------
    context : Context
        Supplies the budget of tokens in force, and tokens and time of the steps with and without prompts.

    Returns
    -------
    Finding or None
        Scored by the steps' fixed cost that a usual budget would win; None with such a budget, or where none is won.
    """
    budget = context.seen.topology.max_num_batched_tokens
    usual = server_defaults().batched_tokens
    if not budget or budget >= usual or not context.ledger.entries:
        return None
    won, whole, steps, tokens = 0.0, 0.0, 0.0, 0.0
    prefills = [work for work in context.ledger.work if work.kind == PREFILL]
    decodes = [work for work in context.ledger.work if work.kind == DECODE]
    for prefill, decode in zip(prefills, decodes, strict=True):
        whole += prefill.wall_seconds
        if prefill.steps <= 0 or prefill.tokens / prefill.steps < budget / 2:
            continue
        spared = prefill.steps - max(prefill.tokens / usual, prefill.steps * budget / usual)
        won += min(spared * _fixed_seconds(decode), prefill.wall_seconds)
        steps, tokens = steps + prefill.steps, tokens + prefill.tokens
    if won <= 0 or whole <= 0:
        return None
    score = won / whole * context.share_of_kind(PREFILL, *_RESOURCES)
    head = context.seen.topology.groups[0].head or None
    return Finding(
        score,
        head,
        evidence=(
            line(
                f"prompts of {tokens:g} tokens took {steps:.3g} steps, of {tokens / steps:.3g} tokens each: the budget "
                f"is {budget}",
                tokens / steps,
                "tokens",
                "engine metrics: prompt_tokens, iteration_tokens; server settings",
            ),
            line(
                f"what a step costs whatever is in it comes to {percent(won / whole)} of the time of these steps; a "
                f"budget of {usual} would spare it",
                won / whole,
                "1",
                "steps of decoding alone x steps that a larger budget spares",
            ),
        ),
        terms=(Term("steps spared x what a step costs whatever is in it", score),),
    )


_RESOURCES = (
    "compute", "memory", "host", "throttled", "cpu_wait", "link_transfer", "link_latency", "message_handling",
    "message_wait", "unwatched", "unexplained",
)  # fmt: skip


def _fixed_seconds(decode: Work) -> float:
    """Return what a step costs whatever is in it: a step of decoding, less what grows with its sequences."""
    if decode.steps <= 0:
        return 0.0
    grows = sum(part.seconds for part in decode.parts if part.resource in ("compute", "link_transfer"))
    return max(0.0, decode.wall_seconds - grows) / decode.steps


CAUSE = Cause(
    name="token_budget",
    title="Token budget too small (max_num_batched_tokens)",
    meaning="Prompts are cut into many small steps, and each pays what a step costs whatever is in it.",
    signals=(
        "steps with prompts are full to max_num_batched_tokens, and many",
        "a step of decoding alone takes a large part of one of them: weights, launches and messages, not prompts",
    ),
    similar=(
        ("prefill_compute", "there the arithmetic of prompts takes the time, however they are cut"),
        ("sequence_limit", "there requests wait for a slot; here they run, in small pieces"),
        ("link_latency", "there the messages of decoding count too"),
    ),
    advice=(
        "Raise max_num_batched_tokens (now {max_num_batched_tokens}): cluster undeploy, "
        "then cluster deploy --set max_num_batched_tokens={more_tokens}, then cluster bench",
        "Longer steps stall those who decode: watch the time between tokens after that.",
    ),
    fault=True,
    tried=LAB,
    tier=Tier.MENDABLE,
    find=find,
    rests_on_steps=True,
)
