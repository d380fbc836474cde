"""Thermal throttling: a processor or accelerator lowered its clock for heat or power."""

from __future__ import annotations

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.causes.base import SYNTHETIC, Cause, Finding, Tier
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.evidence import line, percent
from bottleneck.diagnosis.observations.node import NodeFacts


def find(context: Context) -> Finding | None:
    """Find the node whose clock fell most.

    Parameters
    ----------
    context : Context
        Supplies every node's clock, temperature and power.

    Returns
    -------
    Finding or None
        Scored by the share of its speed that the node lost; None when none lost any to heat or power.
    """
    found = [(*_lost(facts, context), facts.node) for facts in context.seen.nodes.values()]
    share, words, node = max(found, default=(0.0, "", ""))
    if share <= 0:
        return None
    evidence = line(f"{node} lowered its clock: {words}", share, "1", "samples: clock, temperature, power")
    return Finding(share, node, evidence=(evidence,))


def _lost(facts: NodeFacts, context: Context) -> tuple[float, str]:
    """Return the share of a node's speed that heat or power took, and how it is known."""
    by_time = context.seen.busy_share_of(facts.thermal_seconds)
    if by_time > 0:
        return by_time, f"its processor's own counter says {percent(by_time)} of the busy time"
    lost = facts.clock_lost_share or 0.0
    if facts.temperature_celsius is not None and facts.temperature_celsius >= thresholds.HOT_CELSIUS:
        return lost, f"its clock fell by {percent(lost)} at {facts.temperature_celsius:.0f} degrees Celsius"
    if facts.power_share is not None and facts.power_share >= thresholds.POWER_LIMIT:
        return lost, f"its clock fell by {percent(lost)} at {percent(facts.power_share)} of its power limit"
    return 0.0, ""


CAUSE = Cause(
    name="thermal_throttling",
    title="Thermal or power throttling on {node}",
    meaning="The processor or accelerator lowers its own clock because it is too hot or at its power limit.",
    signals=(
        "the clock falls below its base under load, with the temperature or the power at the limit",
        "the throttle counters of the processor or accelerator grow during the run",
    ),
    similar=(
        ("straggler", "there one node is slow for any reason; here the hardware itself says why, on one or all"),
        ("prefill_compute", "there the clock is what it was when the ceilings were measured"),
    ),
    advice=(
        (
            "Cool {node} (fans, dust, air), or raise its power limit if the supply allows; then probe again: "
            "cluster probe --only nodes"
        ),
        "Or live with the clock it can hold: a lower fixed limit is steadier than one that saws.",
    ),
    fault=True,
    tried=SYNTHETIC,
    tier=Tier.MENDABLE,
    find=find,
    rests_on_steps=True,
)
