"""Batches as series: rates, gaps, resets, missing fields, copies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bottleneck.telemetry.batches import read_batches
from bottleneck.telemetry.samples import node_samples


def batch(sequence: Any, times: list[float], sent: list[Any], node: str = "a", boot: str = "x") -> dict[str, Any]:
    samples = [
        {"t": time, "links": {"direct": [0, value, 0, 0, 0, 0, 0, 0]}, "cpu": {"0": [time, time, 0, 0, 0, 0]}}
        for time, value in zip(times, sent, strict=True)
    ]
    return {"node": node, "boot": boot, "sequence": sequence, "samples": samples, "sampler": {"dropped": 2}}


def test_rates_in_order_whatever_the_order_of_arrival() -> None:
    batches = [batch(2, [2.0, 3.0], [30, 60]), batch(1, [0.0, 1.0], [0, 10]), batch(2, [2.0, 3.0], [30, 60])]
    series = node_samples(batches)["a"]
    steps = series.link("direct", "transmit_bytes")
    np.testing.assert_allclose(steps.rate, [10, 20, 30])
    assert series.missing_batches == 0
    assert series.dropped == 2
    assert steps.increase() == 60
    assert series.cores("busy", 0, 3) == pytest.approx(3.0)


def test_increase_shares_out_steps_across_the_border() -> None:
    steps = node_samples([batch(1, [0.0, 2.0, 4.0], [0, 20, 60])])["a"].link("direct", "transmit_bytes")
    assert steps.increase(1.0, 3.0) == pytest.approx(10 + 20)
    assert steps.increase(10.0, 11.0) is None
    assert steps.covered(-4.0, 4.0) == pytest.approx(0.5)
    assert steps.covered(4.0, 4.0) == 0.0


def test_a_gap_keeps_its_mean_rate_and_is_counted() -> None:
    series = node_samples([batch(1, [0.0, 1.0], [0, 10]), batch(4, [5.0, 6.0], [50, 60])])["a"]
    assert series.missing_batches == 2
    assert series.link("direct", "transmit_bytes").increase() == 60


def test_a_counter_that_goes_backwards_says_nothing_about_that_step() -> None:
    series = node_samples([batch(1, [0.0, 1.0, 2.0, 3.0], [100, 110, 5, 15])])["a"]
    steps = series.link("direct", "transmit_bytes")
    assert steps.increase() == 20
    assert steps.resets == series.resets == 1


def test_counters_are_not_subtracted_across_boots() -> None:
    batches = [batch(1, [0.0, 1.0], [0, 10]), batch(1, [2.0, 3.0], [500, 507], boot="y")]
    steps = node_samples(batches)["a"].link("direct", "transmit_bytes")
    assert steps.increase() == 17
    assert steps.resets == 0


def test_missing_and_strange_fields() -> None:
    odd: dict[str, Any] = {
        "node": "a",
        "boot": "x",
        "sequence": None,
        "samples": [None, 3, {"t": "soon"}, {"t": math.nan}, {"t": 4.0}, {"t": 5.0, "links": {"direct": [1]}}],
        "sampler": None,
    }
    series = node_samples([odd, {**odd, "samples": None}, batch(1, [0.0, 1.0], [0, None])])["a"]
    assert series.times.tolist() == [0.0, 1.0, 4.0, 5.0]
    assert series.link("direct", "transmit_bytes").increase() is None
    assert series.link("direct", "receive_errors").increase() == 0
    assert series.workers("run_delay_s", 0, 9) is None
    assert series.last("cgroup", "quota_cores") is None
    assert series.keys("links") == ("direct",)


def test_the_latest_value_is_the_one_of_the_time_asked_for() -> None:
    samples = [
        {"t": float(second), "cgroup": {"quota_cores": quota}} for second, quota in ((1, 0.5), (2, None), (3, 1))
    ]
    series = node_samples([{"node": "a", "boot": "x", "sequence": 1, "samples": samples}])["a"]
    assert series.last("cgroup", "quota_cores") == 1.0
    assert series.last("cgroup", "quota_cores", until=2.5) == 0.5, "the next run's quota is not this one's"
    assert series.last("cgroup", "quota_cores", until=0.0) == 0.5, "rarely sampled: the first that is known"


def test_workers_are_chosen_by_deployment() -> None:
    samples = [
        {"t": time, "workers": {"tp2-0": {"cpu_user_s": time}, "old-0": {"cpu_user_s": 9 * time}}}
        for time in (0.0, 1.0, 2.0)
    ]
    series = node_samples([{"node": "a", "boot": "x", "sequence": 1, "samples": samples}])["a"]
    assert series.workers("cpu_user_s", 0, 2, "tp2-") == 2.0
    assert series.workers("cpu_user_s", 0, 2) == 20.0


def test_keys_of_an_older_version_are_read_by_their_present_names(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(
        '{"samples":[{"workers":{"tp2-0":{"front_cpu_s":1.5,"front_run_delay_s":0.5,"cpu_user_s":2.0}}}]}\n'
    )
    (found,), problems = read_batches(path)
    assert not problems
    worker = {"api_server_cpu_s": 1.5, "api_server_run_delay_s": 0.5, "cpu_user_s": 2.0}
    assert found["samples"][0]["workers"]["tp2-0"] == worker
