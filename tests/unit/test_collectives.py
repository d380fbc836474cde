"""Seconds of a message between ranks, there and back from what was probed."""

from __future__ import annotations

import pytest

from bottleneck.performance.collectives import ALGORITHMS, Link, algorithm, link_of, moved_bytes, probed_seconds


def test_two_ranks_over_gloo_take_four_trips() -> None:
    # Recorded: 17 all-reduces a step over a link of 5.317 ms took (402 - 49) ms (tests/data/runs/delayed-link).
    link = Link(5.317e-3, 125e6, "gloo")
    assert 17 * link.latency_of_allreduce(2) == pytest.approx(0.402 - 0.049, rel=0.03)


@pytest.mark.parametrize(
    ("backend", "ranks", "trips"),
    [("gloo", 1, 0), ("gloo", 4, 12), ("nccl", 2, 2), ("nccl", 4, 4), ("nccl", 8, 6), ("xccl", 2, 2), ("other", 3, 4)],
)
def test_trips_of_an_allreduce(backend: str, ranks: int, trips: int) -> None:
    assert algorithm(backend).all_trips(ranks) == trips


@pytest.mark.parametrize("backend", sorted(ALGORITHMS))
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_link_is_found_from_what_it_took(backend: str, ranks: int) -> None:
    link = Link(50e-6, 1e9, backend)
    probes = {size: link.allreduce_seconds(size, ranks) for size in (2048.0, 65536.0, 4e6)}
    found = link_of(probes, ranks, backend)
    assert found is not None and found.backend == backend
    assert found.latency_seconds == pytest.approx(link.latency_seconds)
    assert found.bytes_per_second == pytest.approx(link.bytes_per_second)


def test_probes_of_one_size_or_none() -> None:
    assert link_of({}, 2, "gloo") is None
    only = link_of({2048.0: 4e-3}, 2, "gloo")
    assert only is not None and only.latency_seconds == pytest.approx(1e-3)


def test_the_bytes_that_leave_a_rank() -> None:
    assert moved_bytes(1000.0, 2) == 1000
    assert moved_bytes(1000.0, 4) == 1500


def test_between_probes_the_time_follows_their_logarithms() -> None:
    probes = {1000.0: 1e-3, 100_000.0: 4e-3}
    assert probed_seconds(probes, 10.0) == 1e-3
    assert probed_seconds(probes, 10_000.0) == pytest.approx(2e-3)
    assert probed_seconds(probes, 200_000.0) == pytest.approx(8e-3)
    assert probed_seconds({}, 10.0) is None
