"""Requests that wait for a slot are seen by the settings and the load, too, where no reading shows them."""

from __future__ import annotations

import pytest

from bottleneck.diagnosis.attribution.ledger import Entry, Ledger
from bottleneck.diagnosis.causes.context import context_of
from bottleneck.diagnosis.causes.sequence_limit import find
from bottleneck.diagnosis.observations.client import ClientFacts
from bottleneck.diagnosis.observations.engine import EngineFacts
from bottleneck.diagnosis.observations.observed import Observations
from bottleneck.plan.workers import ServerSettings
from bottleneck.runs.topology import Group, Topology

LEDGER = Ledger(1.0, (Entry("queue", "queue", 0.5, 0.5, "engine"), Entry("decode", "memory", 0.5, 0.5, "samples")))


def observed(clients: int | None, slots: int | None, open_loop: bool = False) -> Observations:
    """Return a run none of whose readings has a request that waits."""
    return Observations(
        Topology((Group("node0", ("node0",)),), ServerSettings(max_num_seqs=slots)),
        (EngineFacts("node0", requests=16.0, readings=3),),
        client=ClientFacts(requests=16, concurrency=clients, open_loop=open_loop),
    )


@pytest.mark.parametrize(("clients", "share"), [(8, 3 / 8), (40, 0.5)])
def test_more_clients_than_slots_need_no_reading_with_requests_that_wait(clients: int, share: float) -> None:
    found = find(context_of(observed(clients, 5), LEDGER))
    assert found is not None and found.node == "node0"
    assert found.score == pytest.approx(share), "no more than the queue took"
    assert f"{clients} requests at a time were sent to 5 slots" in [each.statement for each in found.evidence]


@pytest.mark.parametrize(
    ("clients", "slots", "open_loop"), [(5, 5, False), (8, 5, True), (None, 5, False), (8, None, False)]
)
def test_without_that_nothing_says_so(clients: int | None, slots: int | None, open_loop: bool) -> None:
    assert find(context_of(observed(clients, slots, open_loop), LEDGER)) is None
