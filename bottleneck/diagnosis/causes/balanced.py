"""Balanced: the two largest limits are within the error of each other."""

from __future__ import annotations

from bottleneck.diagnosis.causes.base import LAB, Cause, Tier

CAUSE = Cause(
    name="balanced",
    title="Balanced: no single bottleneck",
    meaning="Two or more resources take about the same share: mending one alone gains little.",
    signals=(
        "the two largest causes are within the error of each other",
        "or: an engine starts, and its processes compute and hardly wait for storage",
    ),
    similar=(("inconclusive", "there the measurements do not tell; here they do, and the shares are equal"),),
    advice=(
        (
            "Mend the first two together, or find out which one counts by slowing each a little while the load "
            "runs: cluster bottleneck --causal"
        ),
    ),
    fault=False,
    tried=LAB,
    tier=Tier.ANSWER,
    at_start="Storage does not hold the start back: its own work takes the time.",
)
