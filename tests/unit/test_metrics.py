"""Prometheus text: parsing, sums, differences with resets, histograms."""

from __future__ import annotations

import math

import pytest

from bottleneck.telemetry.exposition import parse_line
from bottleneck.telemetry.prometheus_text import MetricsText, delta, histogram_delta

TEXT = """# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
up 1
odd{path="C:\\\\dir \\"x\\"",text="a,b}c\\nd"} 2.5e-3 1700000000
bad{label=unquoted} 1
nothing
vllm:broken NaN
"""


def test_parse_reads_samples_and_passes_over_the_rest() -> None:
    metrics = MetricsText.parse(TEXT)
    assert metrics.value("vllm:num_requests_running") == 7.0
    assert metrics.value("vllm:num_requests_running", engine="1") == 4.0
    assert metrics.value("up") == 1.0
    assert metrics.value("bad") is None
    assert metrics.value("nothing") is None
    odd = metrics.select("odd")[0]
    assert odd.label("path") == 'C:\\dir "x"'
    assert odd.label("text") == "a,b}c\nd"
    assert odd.value == 2.5e-3


def test_values_that_are_not_numbers_are_missing_and_counted() -> None:
    metrics = MetricsText.parse(TEXT)
    assert metrics.value("vllm:broken") is None
    assert metrics.unusable == 1


def test_flat_form_is_the_same_reading() -> None:
    metrics = MetricsText.parse(TEXT)
    again = MetricsText.from_flat(metrics.to_flat())
    assert again.points == metrics.points
    strange = MetricsText.from_flat({"a": None, "b": float("nan"), "c": 1, "d": "2", "{": 1, "e": True})
    assert strange.names() == {"c", "d"}
    assert strange.unusable == 4


@pytest.mark.parametrize("line", ["", "   ", "# comment", 'x{a="1" 2', 'x{a="1"}', "x one", "{} 1"])
def test_lines_that_are_not_samples(line: str) -> None:
    assert parse_line(line) is None


def test_delta_sums_series_and_counts_new_ones_from_zero() -> None:
    before = MetricsText.parse('c_total{k="a"} 5\n')
    after = MetricsText.parse('c_total{k="a"} 8\nc_total{k="b"} 2\n')
    grown = delta(before, after, "c_total")
    assert grown is not None and grown.value == 5.0 and not grown.reset
    assert delta(before, after, "missing_total") is None
    assert delta(None, after, "c_total") is None


def test_delta_sees_a_reset_by_value_and_by_creation_time() -> None:
    before = MetricsText.parse("c_total 50\nd_total 5\nd_created 100\n")
    after = MetricsText.parse("c_total 4\nd_total 9\nd_created 200\n")
    backwards, restarted = delta(before, after, "c_total"), delta(before, after, "d_total")
    assert backwards is not None and backwards.value == 4.0 and backwards.reset
    assert restarted is not None and restarted.value == 9.0 and restarted.reset


def test_histogram_mean_and_quantiles_of_a_difference() -> None:
    before = MetricsText.parse('h_bucket{le="1.0"} 10\nh_bucket{le="+Inf"} 10\nh_sum 5\nh_count 10\n')
    after = MetricsText.parse(
        'h_bucket{le="1.0"} 12\nh_bucket{le="2.0"} 6\nh_bucket{le="+Inf"} 20\nh_sum 25\nh_count 20\n'
    )
    found = histogram_delta(before, after, "h")
    assert found is not None
    assert found.mean == 2.0
    assert found.bounds == (1.0, 2.0, math.inf)
    assert found.counts == (2.0, 6.0, 10.0)
    assert found.quantile(0.1) == pytest.approx(0.5)
    assert found.quantile(0.4) == pytest.approx(1.5)
    assert found.quantile(0.9) == 2.0
    empty = histogram_delta(after, after, "h")
    assert empty is not None and empty.mean is None and empty.quantile(0.5) is None
