"""The list of bottlenecks is whole and says what it must."""

from __future__ import annotations

import re

from bottleneck.diagnosis.rules import SCORERS
from bottleneck.diagnosis.taxonomy import CLASSES, DECIDED, fill, title

CONTRACT = {
    "prefill_compute",
    "decode_memory_bandwidth",
    "host_overhead",
    "kv_cache_capacity",
    "sequence_limit",
    "link_bandwidth",
    "link_latency",
    "pipeline_bubble",
    "straggler",
    "api_server",
    "client_limited",
    "weight_loading",
    "thermal_throttling",
    "numa_pcie",
    "memory_capacity",
    "balanced",
    "inconclusive",
}


def test_every_class_is_described() -> None:
    assert set(CLASSES) >= CONTRACT
    for name, item in CLASSES.items():
        assert item.name == name
        assert item.title and item.meaning.endswith(".") and item.signals and item.advice
        assert item.tried in ("lab", "recorded", "synthetic")
        assert item.neighbours and all(neighbour in CLASSES and words for neighbour, words in item.neighbours)


def test_every_class_that_is_measured_has_a_scorer() -> None:
    scored = {scorer.__name__.removeprefix("score_") for scorer in SCORERS}
    assert scored == set(CLASSES) - DECIDED


def test_gaps_are_filled_and_an_unknown_one_shows() -> None:
    assert title("straggler", {"node": "node1"}) == "Straggler node1"
    assert title("straggler", {"node": "node1", "kind": "slow CPU"}) == "Straggler node1 (slow CPU)"
    assert title("link_bandwidth", {"link": None}) == "Bandwidth of link ?"
    for item in CLASSES.values():
        for text in (item.title, *item.advice):
            assert not re.search(r"\{\w+\}", fill(text, {}))
