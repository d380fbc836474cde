"""Carrying a calibration to another split, link, precision or accelerator; the physics against reference arithmetic."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bottleneck.performance.calibration import Calibration, calibrate
from bottleneck.performance.collectives import Link
from bottleneck.performance.model import FORMATS, Split
from bottleneck.performance.served import Accelerator, Served
from bottleneck.performance.step import PARAMETERS
from bottleneck.performance.workpoints import WorkPoints
from bottleneck.plan.nodes import deployment_record
from bottleneck.prediction.break_even import break_even
from bottleneck.prediction.deployment import CannotTell, Scenario, compare, forecast, outcome
from bottleneck.prediction.recorded import recorded
from bottleneck.prediction.sweep import SweepError, read_accelerator, read_sweep
from bottleneck.profile import load_profile
from bottleneck.runs.ceilings import Ceilings
from bottleneck.runs.run_folder import load_run
from tests.models import MISTRAL_SMALL

TESTS = Path(__file__).resolve().parents[1]
DATA = TESTS / "data" / "h200"
ACCELERATOR = read_accelerator(DATA / "ceilings.json")

# Mistral-Small-Instruct-2409 in 4 bit, as the design's reference arithmetic has it.
FOUR_BIT = Served(MISTRAL_SMALL.model_shape(), FORMATS["w4a16"], 8192)
A770 = Accelerator("A770", 560e9, 137.6e12, 0.0)
FAST = 1e15
IDEAL = np.log([{"overlap": 200.0}.get(name, 1e-30 if name.endswith("seconds") else 1.0) for name in PARAMETERS])
"""Every ceiling reached, nothing spent beside it: what the reference arithmetic takes for granted."""


def tokens_per_second(accelerator: Accelerator, split: Split) -> float:
    at = WorkPoints.of(FOUR_BIT, accelerator, [(1, 1)], 2, split)
    return 1 / float(at.seconds(IDEAL)[1])


@pytest.mark.parametrize(("allreduce", "expected"), [(7e-6, 89), (65e-6, 56), (100e-6, 46), (200e-6, 30)])
def test_tensor_parallel_over_two_a770(allreduce: float, expected: float) -> None:
    # Of two ranks NCCL's takes two trips.
    assert tokens_per_second(A770, Split(2, 1, Link(allreduce / 2, FAST))) == pytest.approx(expected, rel=0.01)


def test_one_accelerator_and_a_pipeline_read_every_weight_once() -> None:
    assert tokens_per_second(A770, Split()) == pytest.approx(47.7, rel=0.01)
    assert tokens_per_second(A770, Split(1, 2, Link(1e-9, FAST))) == pytest.approx(47.7, rel=0.01)
    assert tokens_per_second(Accelerator("Ryzen AI Max", 256e9, 59e12, 0.0), Split()) == pytest.approx(21.8, rel=0.01)


def test_tensor_and_pipeline_parallel_break_even_at_94_microseconds() -> None:
    scenario = Scenario(FOUR_BIT, A770, Split(2, 1, Link(32e-6, FAST)), 1, 1, 1, 2)
    found = break_even(scenario, IDEAL, 2)
    # An all-reduce of 94 us is two trips; the reference leaves out activations, which ranks have in full.
    assert found.latency_seconds == pytest.approx(47e-6, rel=0.02)
    assert found.faster == "tensor parallel"
    slow = break_even(replace(scenario, split=Split(2, 1, Link(200e-6, FAST))), IDEAL, 2)
    assert slow.faster == "pipeline parallel" and slow.bytes_per_second is None


def test_at_the_break_even_rate_both_take_equally_long() -> None:
    scenario = Scenario(FOUR_BIT, A770, Split(2, 1, Link(20e-6, 1e9)), 1, 16, 1, 2)
    found = break_even(scenario, IDEAL, 2)
    assert found.bytes_per_second is not None
    link = Link(20e-6, found.bytes_per_second)
    again = break_even(replace(scenario, split=Split(2, 1, link)), IDEAL, 2)
    assert again.tensor_step_seconds == pytest.approx(again.pipeline_step_seconds, rel=1e-6)


def test_more_ranks_share_the_work_and_send_more() -> None:
    link = Link(10e-6, 1e10)
    assert link.allreduce_seconds(0.0, 2) == pytest.approx(20e-6)
    assert link.allreduce_seconds(0.0, 4) == pytest.approx(40e-6)
    assert link.allreduce_seconds(1e6, 2) == pytest.approx(20e-6 + 1e-4)
    assert link.allreduce_seconds(1e6, 4) == pytest.approx(40e-6 + 1.5e-4)
    assert tokens_per_second(A770, Split(4, 1, Link(1e-9, FAST))) == pytest.approx(4 * 47.7, rel=0.01)


def test_a_pipeline_serves_as_many_batches_as_it_has_stages() -> None:
    link = Link(1e-9, FAST)
    one, two = (
        float(WorkPoints.of(FOUR_BIT, A770, [(batch, 1)], 2, Split(1, 2, link)).seconds(IDEAL)[1]) for batch in (1, 2)
    )
    # Two sequences take turns on the two stages: each of them waits no longer than alone.
    assert two == pytest.approx(one, rel=0.01)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    sweep = read_sweep(DATA / "sweep_bf16.json")
    return calibrate(sweep.served, ACCELERATOR, sweep.points[::4], sweep.output_tokens)


def base(calibration: Calibration) -> Scenario:
    return Scenario(calibration.served, ACCELERATOR, Split(), 1, 8, 1024, 49)


def test_another_precision_is_predicted_within_its_interval(calibration: Calibration) -> None:
    inside = []
    for name in ("w4a16", "fp8"):
        measured = read_sweep(DATA / f"sweep_{name}.json")
        for point in measured.points:
            scenario = replace(base(calibration), served=measured.served, batch=point.batch, input_tokens=point.prompt)
            found = outcome(forecast(calibration, scenario), scenario)
            inside += [
                found.ttft_seconds.low <= point.prefill_seconds <= found.ttft_seconds.high,
                found.itl_seconds.low <= point.decode_step_seconds <= found.itl_seconds.high,
            ]
    assert np.mean(inside) >= 0.8


def test_the_parts_add_up_to_the_prediction(calibration: Calibration) -> None:
    scenario = base(calibration)
    found = forecast(calibration, scenario)
    ttft, itl = found.at.seconds(found.parameters)
    result = outcome(found, scenario)
    assert sum(result.prefill_parts.values()) == pytest.approx(ttft)
    assert sum(result.decode_parts.values()) == pytest.approx(itl)
    assert result.decode_binds == "weight bytes" and result.prefill_binds == "FLOPs"


def test_what_is_uncertain_about_both_cancels_in_the_ratio(calibration: Calibration) -> None:
    scenario = base(calibration)
    link = Link(10e-6, 50e9)
    one, two = (replace(scenario, split=Split(2, 1, replace(link, latency_seconds=value))) for value in (9e-6, 10e-6))
    found = compare(calibration, one, two)
    alone = found.changed.itl_seconds
    assert found.itl_ratio.low < found.itl_ratio.median < found.itl_ratio.high
    assert math.log(found.itl_ratio.high / found.itl_ratio.low) < 0.5 * math.log(alone.high / alone.low)


def test_a_prediction_far_from_everything_has_a_wider_interval(calibration: Calibration) -> None:
    near = outcome(forecast(calibration, base(calibration)), base(calibration)).itl_seconds
    there = replace(base(calibration), batch=1024, input_tokens=8000)
    far = outcome(forecast(calibration, there), there).itl_seconds
    assert far.high / far.low > near.high / near.low


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"split": Split(3, 1, Link(1e-5, 1e9))}, "tensor parallel 3; expected a divisor"),
        ({"split": Split(1, 57, Link(1e-5, 1e9))}, "pipeline parallel 57; expected at most one stage a layer, 56"),
        ({"split": Split(2, 1)}, "no link between them"),
        ({"input_tokens": 32768}, "context length"),
        ({"memory_bytes": 16 * 2**30}, "a rank needs .* the memory of"),
        ({"batch": 0}, "batch 0; expected 1"),
    ],
)
def test_what_cannot_be_is_refused(calibration: Calibration, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(CannotTell, match=expected):
        forecast(calibration, replace(base(calibration), **change))


def test_a_guess_is_refused() -> None:
    sweep = read_sweep(DATA / "sweep_bf16.json")
    little = calibrate(sweep.served, ACCELERATOR, sweep.points[:1], sweep.output_tokens, loose=4.0)
    far = Scenario(sweep.served, ACCELERATOR, Split(), 1, 512, 16000, 49)
    with pytest.raises(CannotTell, match=r"too wide to say anything: measured were batch 1 to 1"):
        forecast(little, far)


def test_a_recorded_run_predicts_the_link_it_did_not_have() -> None:
    known = recorded([load_run(TESTS / "data" / "runs" / "throttled-link-busy")])
    assert known.base.split.tensor_parallel == 2 and known.base.batch == 4
    point = known.points[0]
    assert point.prefill_seconds > 10 * point.decode_step_seconds
    link = known.base.split.link
    assert link is not None
    quick = replace(known.base, split=replace(known.base.split, link=replace(link, bytes_per_second=1e9)))
    found = compare(known.calibration(), known.base, quick)
    assert found.base.prefill_binds == "messages"
    # A base that was measured is predicted as measured.
    assert found.base.ttft_seconds.median == pytest.approx(point.prefill_seconds, rel=0.1)
    assert found.base.itl_seconds.median == pytest.approx(point.decode_step_seconds, rel=0.1)
    assert found.ttft_ratio.high < 0.5


def test_a_run_with_changed_settings_is_read_as_it_ran(tmp_path: Path) -> None:
    """A deployment with --set max_num_seqs=1 answers one request at a time, whatever the profile says."""
    folder = shutil.copytree(TESTS / "data" / "runs" / "healthy", tmp_path / "run")
    profile = load_profile(folder / "profile.yaml")
    changed = {"max_num_seqs": 1, "max_num_batched_tokens": 64, "link": "ethernet"}
    record = deployment_record(profile, "tp2", changed)
    (folder / "plan.json").write_text(json.dumps({"schema": 2, **record}))
    before = recorded([load_run(TESTS / "data" / "runs" / "healthy")]).base
    assert before.batch == 4 and before.split.link is not None
    run = load_run(folder)
    assert run.overrides == changed
    base = recorded([run]).base
    assert base.batch == 1 and base.served.max_num_batched_tokens == 64
    assert base.split.link is not None and base.split.link.latency_seconds != before.split.link.latency_seconds


def test_a_run_without_ceilings_names_the_next_command() -> None:
    run = replace(load_run(TESTS / "data" / "runs" / "healthy"), ceilings=Ceilings())
    with pytest.raises(SweepError, match=r"ceilings.json: .*run cluster probe"):
        recorded([run])


def test_a_run_without_requests_says_so() -> None:
    run = replace(load_run(TESTS / "data" / "runs" / "healthy"), client=None)
    with pytest.raises(SweepError, match=r"client.json: no request that finished"):
        recorded([run])


def test_a_run_of_an_unknown_deployment_names_the_known_ones() -> None:
    run = replace(load_run(TESTS / "data" / "runs" / "healthy"), deployment="tp9")
    with pytest.raises(SweepError, match=r"deployment 'tp9'; expected one of tp2"):
        recorded([run])
