"""The bubble of a pipeline and the straggler among its stages: no second is both."""

from __future__ import annotations

import pytest

from bottleneck.diagnosis.attribution.ledger import Entry, Ledger
from bottleneck.diagnosis.causes import pipeline_bubble, straggler
from bottleneck.diagnosis.causes.context import Context, context_of
from bottleneck.diagnosis.observations.engine import EngineFacts
from bottleneck.diagnosis.observations.node import NodeFacts
from bottleneck.diagnosis.observations.observed import BusyTime, Observations
from bottleneck.plan.workers import ServerSettings
from bottleneck.runs.topology import Group, Topology


def crowded(waits: float) -> Context:
    """Return ten seconds of two stages: the second computes for three, sleeps or waits for its core for the rest."""
    entries = [Entry("decode", "cpu_wait", waits / 10, waits / 10, "samples", "node1")] if waits else []
    ledger = Ledger(1.0, (*entries, Entry("decode", "memory", 1 - waits / 10, 1 - waits / 10, "samples", "node1")))
    topology = Topology((Group("node0", ("node0", "node1")),), ServerSettings(pipeline_parallel=2))
    nodes = {
        "node0": NodeFacts("node0", spins=True, cpu_wait_seconds=0.0),
        "node1": NodeFacts("node1", cpu_wait_seconds=waits, asleep_share=0.7 - waits / 10),
    }
    return context_of(
        Observations(topology, (EngineFacts("node0"),), nodes, time=BusyTime(10.0, 10.0, "client timings")), ledger
    )


@pytest.mark.parametrize(("waits", "bubble"), [(0.0, 1.0), (2.0, 0.8), (6.0, 0.4)])
def test_the_same_second_is_not_two_causes(waits: float, bubble: float) -> None:
    context = crowded(waits)
    found, slow = pipeline_bubble.find(context), straggler.find(context)
    assert found is not None and found.score == pytest.approx(bubble)
    assert (slow.score if slow else 0.0) + found.score == pytest.approx(1.0)
