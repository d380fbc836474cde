"""The newest batches as rates."""

import math
import random

import pytest

from bottleneck.profile import load_profile
from bottleneck.telemetry.recent_rates import recent
from tests import run_builder

SHAPE = run_builder.Shape()


def test_rates_of_nodes_links_workers_and_the_engine() -> None:
    profile = load_profile(run_builder.PROFILE)
    found = run_builder.batches(SHAPE, "m", random.Random(1))
    end = run_builder.STARTED + SHAPE.prefill - 0.5  # in the middle of a prefill
    batches = [batch for batch in found if end - 6 <= batch["t1"] <= end]
    now = recent(batches, profile, end)
    node = now["nodes"]["node0"]
    assert node["up"] is True and 0 <= node["age_seconds"] < 2
    assert node["busy_ratio"] == pytest.approx(0.97, abs=0.05)
    assert node["cores"]["0"] == pytest.approx(node["busy_ratio"])
    direct = node["links"]["direct"]
    assert direct["transmit_bytes_per_second"] == pytest.approx(SHAPE.link_ceiling * 0.985, rel=0.05)
    assert direct["utilization_ratio"] == pytest.approx(direct["transmit_bytes_per_second"] / 1e9)
    assert node["workers"]["tp2-0"]["cpu_cores"] == pytest.approx(node["busy_ratio"], abs=0.03)
    assert node["memory_total_bytes"] == 5 * 2**30
    assert node["quota_cores"] is None
    assert node["engine"]["running"] == SHAPE.concurrency
    assert node["engine"]["preemptions_per_second"] == 0.0
    assert now["nodes"]["node1"]["engine"] is None


def test_a_node_nothing_is_known_of() -> None:
    profile = load_profile(run_builder.PROFILE)
    found = recent([], profile, 1000.0)
    assert found["nodes"] == {name: {"up": False, "age_seconds": None} for name in profile.nodes}


def test_a_silent_node_is_not_up_and_has_no_invented_numbers() -> None:
    profile = load_profile(run_builder.PROFILE)
    batch = run_builder.batches(SHAPE, "m", random.Random(1))[0]
    batch["samples"] = batch["samples"][:1]
    found = recent([batch], profile, batch["t1"] + 60.0)["nodes"][batch["node"]]
    assert found["up"] is False
    assert found["busy_ratio"] is None
    assert math.isfinite(found["age_seconds"])
