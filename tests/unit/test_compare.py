"""Two sides of runs: what is beyond noise is said to be, what is not is not."""

from __future__ import annotations

import pytest

from bottleneck.runs.compare import Comparison, compare
from bottleneck.runs.run import Run

from .simulator import simulate


def by_name(found: list[Comparison]) -> dict[str, Comparison]:
    return {item.metric: item for item in found}


def test_the_same_world_twice_is_within_noise() -> None:
    found = by_name(compare([simulate(seed=1).run()], [simulate(seed=2).run()]))
    assert set(found) == {"ttft", "tpot", "itl", "e2e", "throughput"}
    assert {item.word for item in found.values()} == {"within noise"}
    assert all(item.better is None for item in found.values())


@pytest.mark.slow
def test_false_alarms_are_rare() -> None:
    words = [
        item.word
        for seed in range(10, 15)
        for item in compare([simulate(seed=seed).run()], [simulate(seed=seed + 50).run()])
    ]
    assert words.count("beyond noise") <= 2


def test_a_slower_link_is_beyond_noise_and_worse() -> None:
    found = by_name(compare([simulate().run()], [simulate(link_bytes_per_second=3e7).run()]))
    for metric in ("ttft", "e2e", "throughput"):
        assert found[metric].word == "beyond noise"
        assert found[metric].better == "a"
    ttft, throughput = found["ttft"], found["throughput"]
    assert ttft.difference is not None and ttft.low is not None and 0 < ttft.low < ttft.difference
    assert throughput.difference is not None and throughput.high is not None and throughput.high < 0
    assert ttft.a is not None and ttft.a.samples == 16


def test_faster_is_better_for_the_other_side() -> None:
    found = by_name(compare([simulate().run()], [simulate(prefill_token_seconds=0.0006).run()]))
    assert found["ttft"].better == "b"
    assert found["throughput"].better == "b"


@pytest.mark.slow
def test_several_runs_a_side_count_the_noise_between_runs() -> None:
    slow, fast = [0.0016, 0.0011, 0.0013], [0.0012, 0.0015, 0.0011]
    sides = [[simulate(prefill_token_seconds=seconds).run() for seconds in side] for side in (slow, fast)]
    found = by_name(compare(sides[0], sides[1]))
    assert found["ttft"].word == "within noise"
    # One of each alone looks like a difference: only several runs show that it is not.
    assert by_name(compare(sides[0][:1], sides[1][:1]))["ttft"].word == "beyond noise"


def test_too_little_is_not_known() -> None:
    empty = Run()
    assert {item.word for item in compare([empty], [simulate().run()])} == {"not known"}
    assert {item.word for item in compare([], [])} == {"not known"}
    one = simulate(requests=1, concurrency=1).run()
    found = by_name(compare([one], [one]))
    assert found["ttft"].word == "not known" and found["ttft"].difference == 0.0
    assert found["ttft"].to_json()["low"] is None


def test_the_same_runs_give_the_same_numbers() -> None:
    a, b = simulate(seed=1).run(), simulate(seed=2).run()
    assert compare([a], [b]) == compare([a], [b])
