"""Inconclusive: the measurements do not carry a verdict."""

from __future__ import annotations

from bottleneck.diagnosis.causes.base import LAB, Cause, Tier

CAUSE = Cause(
    name="inconclusive",
    title="Inconclusive",
    meaning="The measurements do not carry a verdict; what they do carry is in the evidence.",
    signals=("measurements are missing, contradict each other, or leave most of the time unexplained",),
    similar=(("balanced", "there the measurements are good and the shares about equal"),),
    advice=(
        "Where it is between two, slowing each a little while the load runs tells: cluster bottleneck --causal",
        "Record a longer run: cluster bench --requests 32",
        "See which part does not report: cluster status",
    ),
    fault=False,
    tried=LAB,
    tier=Tier.ANSWER,
)
