"""Predictions over links against recorded figures, and campaigns made of a lab's records."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.links import page, predictions
from bench.links.campaign import Campaign, campaigns, rate_name
from bench.links.chart import chart
from bench.links.predictions import Predictor, errors
from bench.links.records import RecordsError, campaign_of
from bottleneck.performance.collectives import Link, Shaper, link_of
from bottleneck.performance.model import FORMATS, Split
from bottleneck.performance.roofline import demand
from bottleneck.performance.scheduler import Steps
from bottleneck.performance.served import Served
from bottleneck.prediction.sweep import read_sweep
from bottleneck.runs.run_folder import load_run
from cli.verify import archive

DATA = Path(__file__).resolve().parents[1] / "data"
BY_HAND = DATA / "links" / "two-h200-by-hand.json"
CAMPAIGN = Campaign.model_validate_json(BY_HAND.read_bytes())


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(CAMPAIGN, BY_HAND)


# Margins over what the page says: these fail when predictions get worse.
def test_errors_over_links(predictor: Predictor) -> None:
    tensor = [row for row in predictor.rows if row.measured.parallel == "tensor"]
    assert errors(tensor)[0] < 0.065 and errors(tensor)[1] < 0.1
    assert errors(predictor.rows)[0] < 0.075 and errors(predictor.rows)[1] < 0.2
    median, high, count = errors(predictor.rows, pair=True)
    assert count == 17 and median < 0.03 and high < 0.095


def test_the_page_has_every_figure_and_names_the_faster(predictor: Predictor) -> None:
    text = page.page([predictor])
    assert text.count("| TP=2 | ") + text.count("| PP=2 | ") == len(predictor.rows)
    assert "- NVIDIA H200: between tokens of one client PP=2" in text
    assert "never" in text


def test_tensor_parallelism_crosses_at_the_latency_that_break_even_finds(predictor: Predictor) -> None:
    machine = next(each for each in page.machines(predictor) if each.name.startswith("Intel"))
    cable = Link(26e-6, 2.4e9, "xccl")
    latency = page.crossing(machine, cable, page.ALONE).latency_seconds
    assert latency is not None
    for factor, name in ((0.9, "TP"), (1.1, "PP")):
        found = page.crossing(machine, replace(cable, latency_seconds=factor * latency), page.ALONE)
        assert (found.tensor_step_seconds < found.pipeline_step_seconds) == (name == "TP")


def test_the_chart_has_both_lines(predictor: Predictor) -> None:
    known = dict.fromkeys(("tensor", "pipeline"), predictor.card_calibrations[0])
    drawn = chart(page.panels(predictor, known), "a title")
    assert drawn.count("<polyline") == 6 and "<title>a title</title>" in drawn


def test_what_probes_between_took_beyond_latency_and_bytes_comes_back() -> None:
    probes = {12288.0: 61.4e-6, 196608.0: 205e-6, 6.3e6: 2.7e-3, 134e6: 50e-3}
    link = link_of(probes, 2, "nccl")
    assert link is not None
    for size, seconds in probes.items():
        assert link.allreduce_seconds(size, 2) == pytest.approx(seconds)
    assert 61.4e-6 < link.allreduce_seconds(98304.0, 2) < 205e-6


def test_small_messages_of_nccl_travel_twice() -> None:
    # Measured between two H200 at 1 Gbit/s: 208 us of 12 KiB, back to back, and 1.65 ms of 196 KB.
    link = Link(0.0, 125e6 * CAMPAIGN.goodput, "nccl")
    assert link.allreduce_seconds(12288, 2) == pytest.approx(208e-6, rel=0.03)
    assert link.allreduce_seconds(196608, 2) == pytest.approx(1.65e-3, rel=0.02)
    assert replace(link, backend="gloo").allreduce_seconds(12288, 2) == pytest.approx(103e-6, rel=0.03)


def test_a_bucket_lets_pass_at_once_what_a_pause_let_in() -> None:
    shape = read_sweep(DATA / "h200" / "sweep_w4a16.json").served.shape
    served = Served(shape, FORMATS["w4a16"], 8192)
    step = Steps.one(1, 1, 128)

    def waited(burst_bytes: float, own_seconds: float) -> float:
        split = Split(2, 1, Link(0.0, 1e12, "gloo", Shaper(125e6, burst_bytes)))
        return float(demand(step, served, split).waited_transfer(np.array([own_seconds]))[0])

    whole = 113 * 12288 / 125e6
    assert waited(0.0, 1.0) == pytest.approx(whole)
    assert waited(6144.0, 1.0) == pytest.approx(whole / 2)
    assert waited(6144.0, whole / 10) == pytest.approx(0.9 * whole)
    assert waited(1e9, 1.0) == pytest.approx(113 * 12288 / 1e12)


def test_rates_as_people_say_them() -> None:
    assert [rate_name(rate) for rate in (None, 1e8, 2.5e9)] == ["as it is", "100 Mbit/s", "2.5 Gbit/s"]


def records(folder: Path) -> Path:
    """Make a folder as `cluster gpu-lab` leaves it, of runs that are recorded here."""
    runs = {name: DATA / "runs" / name for name in ("healthy", "throttled-link", "pipeline", "one-slot-each")}
    lines = []
    for name, rate in (("healthy", None), ("throttled-link", 12.5e6), ("pipeline", None), ("one-slot-each", None)):
        run = load_run(runs[name])
        assert run.client is not None
        first = run.client.good[0]
        put = {"kind": "link_rate", "strength": rate} if rate else None
        load = {
            "kind": "x",
            "concurrency": run.client.concurrency or 1,
            "input_tokens": first.input_tokens,
            "output_tokens": first.output_tokens,
            "rate_per_second": None,
        }
        line = {"case": name, "run": name, "put": put, "settings": {}, "load": load, "error": ""}
        lines.append(line | {"began": 1.8e9, "seconds_per_token": 0.01})
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    archive.pack(list(runs.values()), folder / "runs" / "all.tar.xz")
    (folder / "01-machine.json.xz").write_bytes(lzma.compress(json.dumps({"cards": [{"name": "A card"}]}).encode()))
    return folder


def test_a_lab_s_records_become_a_campaign(tmp_path: Path) -> None:
    found = campaign_of([records(tmp_path)])
    # Copies side by side share their host: no point of a card alone.
    assert found.card.name == "A card" and not found.card.points and "No card was measured alone" in found.notes[0]
    by_split = {(each.parallel, each.bits_per_second): each for each in found.measured}
    assert set(by_split) == {("tensor", None), ("tensor", 1e8), ("pipeline", None)}
    assert by_split["tensor", 1e8].first_seconds and found.all_reduce and found.bucket_seconds
    assert Campaign.model_validate_json(found.model_dump_json(by_alias=True, exclude_defaults=True)) == found


def test_records_without_a_pair_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="no lines; expected the record of cluster gpu-lab"):
        campaign_of([tmp_path])


def test_all_campaigns_are_read() -> None:
    assert next(iter(campaigns())) == BY_HAND and len(campaigns()) > 1
    assert predictions.DRAWS >= 10
