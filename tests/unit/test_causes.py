"""Every cause is found, described whole, and stands in a file of its own."""

from __future__ import annotations

import re
from pathlib import Path

import bottleneck.diagnosis.causes as causes
from bottleneck.diagnosis.causes import CAUSES, DECIDED, Tier, fill, title
from bottleneck.diagnosis.causes.base import GAPS

# Names that others read in JSON: a cause may be added, none goes away.
CONTRACT = {
    "prefill_compute",
    "decode_memory_bandwidth",
    "decode_compute",
    "host_overhead",
    "kv_cache_capacity",
    "sequence_limit",
    "token_budget",
    "engine_stalled",
    "unwatched_link",
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


def test_every_cause_is_described() -> None:
    assert set(CAUSES) >= CONTRACT
    for name, item in CAUSES.items():
        assert item.name == name
        assert item.title and item.meaning.endswith(".") and item.signals and item.advice
        assert item.tried in ("lab", "recorded", "synthetic")
        assert item.similar and all(other in CAUSES and words for other, words in item.similar)


def test_a_cause_is_one_file_of_its_name() -> None:
    files = {path.stem for path in Path(causes.__file__).parent.glob("*.py")} - {"__init__", "base", "context"}
    assert {stem for stem in files if not stem.startswith("_")} == set(CAUSES)
    for name in CAUSES:
        others = [path for path in Path(causes.__file__).parents[1].rglob("*.py") if path.stem != name]
        # Who names another cause in code weighs them: arbitration alone, and answers.
        naming = [path.name for path in others if re.search(rf'CAUSES\["{name}"\]', path.read_text())]
        assert naming in ([], ["arbitration.py"])


def test_only_answers_are_found_by_nothing() -> None:
    assert {name for name, cause in CAUSES.items() if cause.find is None} == DECIDED
    assert {name for name, cause in CAUSES.items() if cause.tier is Tier.ANSWER} == DECIDED


def test_gaps_are_filled_and_an_unknown_one_shows() -> None:
    assert title("straggler", {"node": "node1"}) == "Straggler node1"
    assert title("straggler", {"node": "node1", "kind": "slow CPU"}) == "Straggler node1 (slow CPU)"
    assert title("link_bandwidth", {"link": None}) == "Bandwidth of link ?"
    for item in CAUSES.values():
        for text in (item.title, *item.advice):
            assert not re.search(r"\{\w+\}", fill(text, {}))
            assert set(re.findall(r"\{(\w+)\}", text)) <= {*GAPS, "kind"}
