"""A link between ranks that is cut, and a rank that computes without end, set apart from a long step."""

from __future__ import annotations

import pytest

from bottleneck.profile import load_profile
from control import hangs, records
from tests import run_builder
from tests.functional.test_recover_runner import IDLE, WORKS, Engine, activity, answer, trouble

LOOP = "process 7 (VLLM::Worker_TP) on node0 computes without end, and nothing passes between the ranks"


@pytest.mark.parametrize(("exchanges", "looks"), [(8, 3), (16, 2), (400, 2)])
def test_a_rank_that_computes_without_end_is_named_after_what_a_layer_of_the_longest_step_takes(
    exchanges: int, looks: int
) -> None:
    ready = {"node0": answer(), "node1": answer()}
    engine = Engine((3, 100))
    found = trouble(ready, engine, activities=WORKS, exchanges=exchanges)
    assert found == f"tp2-0 on node0: 3 requests, and no token: {LOOP}"
    assert len(engine.asked) == 1 + 2 * looks
    # One look less, and then a token: it was a long step.
    works = Engine(*[(3, 100)] * (2 * looks), (3, 101))
    assert trouble(ready, works, activities=WORKS, exchanges=exchanges) is None


def test_what_passes_between_the_ranks_or_is_read_sets_a_long_step_apart_from_a_loop() -> None:
    ready = {"node0": answer(), "node1": answer()}
    for activities, kind in (
        ({**WORKS, "node1": activity(IDLE, sent=1e6)}, "cpu"),
        ({**WORKS, "node1": activity({**IDLE, "state": "D"})}, "cpu"),
        (WORKS, "cuda"),
    ):
        found = trouble(ready, Engine((3, 100)), activities=activities, kind=kind, exchanges=400)
        assert found == "tp2-0 on node0: 3 requests, and no token in 30 s"


@pytest.mark.parametrize(
    ("tensor", "pipeline", "world", "exchanged"), [(2, 1, 2, 8), (4, 2, 4, 4), (1, 2, 2, 0), (2, 2, 2, 0), (2, 1, 1, 0)]
)
def test_ranks_of_several_nodes_that_share_layers_exchange_in_each(
    tensor: int, pipeline: int, world: int, exchanged: int
) -> None:
    settings = {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
    record = records.deployment(
        {"deployment": "x", "settings": settings, "workers": [{"node": "node0", "world": world}]}
    )
    assert hangs.exchanges(load_profile(run_builder.PROFILE), record) == exchanged


CUT = "the link usb4 of the ranks has no carrier"


@pytest.mark.parametrize(
    "engine", [Engine((2, 100)), Engine((0, 100), canary="timed out")], ids=["with requests", "idle"]
)
def test_a_cut_link_is_trouble_when_the_engine_makes_nothing(engine: Engine) -> None:
    cut = {"tp2-0": {"stage": "ready", "reason": None, "cut_links": [CUT]}}
    found = trouble({"node0": answer(), "node1": cut}, engine, settle=True)
    assert found == f"the link between the ranks is cut: of node1, {CUT}"
    assert trouble({"node0": answer(), "node1": cut}, Engine((2, 100), (2, 101)), settle=True) is None
