"""The late one among ranks on cards, by made-up samples.

What they look like: a rank that waits spins in the collective and looks busy, memory traffic and power tell (two H200
over a veth pair, 2026-11-27: a foreign kernel 70 % of the time on one card cost 17 %, a rank paused a fifth of it 24 to
29 %).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bottleneck.diagnosis.attribution.ledger import Entry, Ledger
from bottleneck.diagnosis.causes import straggler
from bottleneck.diagnosis.causes.context import Context
from bottleneck.diagnosis.observations.cards import CardFacts, card_facts
from bottleneck.diagnosis.observations.node import NodeFacts
from bottleneck.diagnosis.observations.observed import BusyTime, Observations
from bottleneck.plan.workers import ServerSettings
from bottleneck.runs.topology import Group, Topology
from bottleneck.telemetry.samples import node_samples

# A decoding H200 of two, over sockets: most of a step is messages, in which both spin.
ALIKE = CardFacts(busy_share=0.97, memory_busy_share=0.2, power_watts=230.0, power_limit_watts=700.0)
BUSY_SECONDS = 20.0


def context(cards: dict[str, CardFacts | None], parallel: tuple[int, int] = (2, 1), **late: Any) -> Context:
    """Return two nodes with these cards; `late` are more facts of node1."""
    settings = ServerSettings(tensor_parallel=parallel[0], pipeline_parallel=parallel[1])
    nodes = {name: NodeFacts(name, cores=12.0, card=card) for name, card in cards.items()}
    nodes["node1"] = replace(nodes["node1"], **late)
    seen = Observations(
        Topology((Group("node0", tuple(cards)),), settings),
        nodes=nodes,
        time=BusyTime(BUSY_SECONDS, BUSY_SECONDS, "made up"),
    )
    parts = {"memory": 0.3, "link_latency": 0.4, "throttled": 0.2, "unexplained": 0.1}
    entries = tuple(Entry("decode", name, share, share, "made up") for name, share in parts.items())
    return Context(seen, Ledger(1.0, entries))


@pytest.mark.parametrize("node", ["node0", "node1"])
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"power_watts": 520.0}, straggler.FOREIGN),
        ({"memory_busy_share": 0.8}, straggler.FOREIGN),
        ({"busy_share": 0.7}, straggler.LATE_HOST),
    ],
)
def test_the_card_that_differs_is_named_with_its_cause(node: str, change: dict[str, float], kind: str) -> None:
    cards: dict[str, CardFacts | None] = {"node0": ALIKE, "node1": ALIKE}
    cards[node] = replace(ALIKE, **change)
    found = straggler.find(context(cards))
    assert found is not None and (found.node, found.kind) == (node, kind)
    assert any(f"card of {node}" in line.statement for line in found.evidence)


def test_an_idle_card_whose_engine_had_too_little_cpu_is_the_quota_s() -> None:
    seen = context({"node0": ALIKE, "node1": replace(ALIKE, busy_share=0.72)}, throttled_seconds=5.0, quota_cores=0.7)
    found = straggler.find(seen)
    assert found is not None and (found.node, found.kind) == ("node1", straggler.QUOTA)
    assert found.score == pytest.approx(0.25)


def test_other_work_costs_its_part_of_the_nodes_own_work() -> None:
    found = straggler.find(context({"node0": ALIKE, "node1": replace(ALIKE, power_watts=230 + 0.7 * 470)}))
    assert found is not None and found.score == pytest.approx(0.7 * 0.3)


def test_mended_the_card_is_like_its_peer_s() -> None:
    seen = context({"node0": ALIKE, "node1": replace(ALIKE, busy_share=0.6)})
    found = straggler.find(seen)
    assert found is not None
    assert straggler.find(straggler.mended(seen, found)) is None


@pytest.mark.parametrize(
    "cards",
    [
        {"node0": ALIKE, "node1": ALIKE},
        {"node0": ALIKE, "node1": replace(ALIKE, busy_share=0.9, power_watts=260.0, memory_busy_share=0.25)},
        {"node0": ALIKE, "node1": None},
        {"node0": CardFacts(), "node1": CardFacts()},
    ],
)
def test_cards_that_differ_little_or_were_not_watched_name_nobody(cards: dict[str, CardFacts | None]) -> None:
    assert straggler.find(context(cards)) is None


def test_a_stage_without_a_kernel_may_be_one_whose_turn_it_is_not() -> None:
    assert straggler.find(context({"node0": ALIKE, "node1": replace(ALIKE, busy_share=0.5)}, (1, 2))) is None


def test_facts_of_cards_are_means_over_the_interval() -> None:
    def sample(moment: float, busy: float, watts: float) -> dict[str, Any]:
        return {"t": moment, "accelerator": {"card0": {"busy_ratio": busy, "power_watts": watts}}}

    samples = [sample(0.0, 0.0, 70.0), sample(1.0, 1.0, 200.0), sample(2.0, 0.5, 300.0), {"t": 2.5}]
    batches = [{"node": "node0", "boot": "a", "sequence": 1, "samples": samples}]
    found = card_facts(node_samples(batches)["node0"], (1.0, 3.0))
    assert found == CardFacts(busy_share=0.75, power_watts=250.0)
    nothing = [{"node": "node0", "boot": "a", "sequence": 1, "samples": [{"t": 1.0}]}]
    assert card_facts(node_samples(nothing)["node0"], (0.0, 3.0)) is None
