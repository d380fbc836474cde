"""Cost of watching, worked out from blocks and requests: no lab, no load."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import sampler_cost

    return sampler_cost


def block(arm: str, start: float, control: float = 0.02) -> dict[str, Any]:
    return {"arm": arm, "start": start, "end": start + 15.0, "samplers": 0.01, "control": control}


def back_to_back(start: float, end: float, latency: float) -> list[tuple[float, float]]:
    count = int((end - start) / latency)
    return [(start + index * latency, start + (index + 1) * latency) for index in range(count)]


def test_slower_requests_while_watched_are_less_throughput(bench: ModuleType) -> None:
    blocks = [block("on", 0.0, 0.03), block("off", 15.0), block("off", 30.0), block("on", 45.0, 0.03)]
    requests = back_to_back(0.0, 15.0, 1.02) + back_to_back(15.0, 45.0, 1.0) + back_to_back(45.0, 70.0, 1.02)
    found = bench.result(bench.pairs_of(blocks, requests))
    assert found["throughput_ratio"]["pairs"] == 2
    assert found["throughput_ratio"]["ratio"] == pytest.approx(1 / 1.02)
    assert (found["samplers"], found["control"]) == (pytest.approx(0.01), pytest.approx(0.01))


def test_a_request_that_saw_both_arms_counts_for_neither(bench: ModuleType) -> None:
    blocks = [block("on", 0.0), block("off", 15.0)]
    requests = [*back_to_back(0.0, 14.0, 1.0), (14.0, 24.0), *back_to_back(24.0, 40.0, 1.0)]
    (pair,) = bench.pairs_of(blocks, requests)
    assert {arm: (found["requests"], found["latency_seconds"]) for arm, found in pair.items()} == {
        "on": (14, 1.0),
        "off": (6, 1.0),
    }


def test_a_block_that_the_load_does_not_fill_is_left_out(bench: ModuleType) -> None:
    blocks = [block("off", -15.0), block("on", 0.0), block("on", 15.0), block("off", 30.0), block("on", 45.0)]
    pairs = bench.pairs_of(blocks, back_to_back(-5.0, 46.0, 1.0))
    assert len(pairs) == 1, "the first pair began before the load, the last block has no partner"
