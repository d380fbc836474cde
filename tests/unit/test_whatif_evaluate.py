"""The calibrated step model against measured sweeps and against a known truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bottleneck.performance.calibration import calibrate, efficiencies, prior
from bottleneck.performance.served import Point
from bottleneck.performance.step import PARAMETERS
from bottleneck.performance.workpoints import WorkPoints
from bottleneck.prediction.evaluate import evaluate
from bottleneck.prediction.sweep import Sweep, SweepError, read_accelerator, read_sweep
from cli.main import app

pytestmark = pytest.mark.slow

CARDS = Path(__file__).resolve().parents[1] / "data"
DATA = CARDS / "h200"
EVALUATE_BF16 = ["whatif", "--evaluate", str(DATA / "sweep_bf16.json"), "--ceilings", str(DATA / "ceilings.json")]
ACCELERATOR = read_accelerator(DATA / "ceilings.json")


def sweep(name: str) -> Sweep:
    return read_sweep(DATA / f"sweep_{name}.json")


# Margins over what 200 draws gave (doc/reference/what-if-accuracy.md): these fail when it gets worse.
@pytest.mark.parametrize(
    ("file", "ceilings", "decode", "prefill"),
    [
        ("h200/sweep_bf16", "ceilings", (0.015, 0.02), (0.02, 0.025)),
        ("h200/sweep_w4a16", "ceilings", (0.032, 0.045), (0.03, 0.04)),
        ("h200/sweep_fp8", "ceilings", (0.048, 0.06), (0.048, 0.065)),
        ("h200/sweep_7b_bf16", "ceilings", (0.036, 0.048), (0.032, 0.04)),
        ("h200/sweep_7b_w4a16", "ceilings", (0.04, 0.055), (0.03, 0.04)),
        # Another card; its prefill is the weak side (doc/reference/what-if-unseen.md).
        ("h100/sweep_nemo_bf16", "ceilings_second", (0.035, 0.045), (0.08, 0.105)),
        ("h100/sweep_nemo_w4a16", "ceilings", (0.04, 0.06), (0.057, 0.075)),
        ("h100/sweep_nemo_fp8", "ceilings", (0.035, 0.043), (0.12, 0.165)),
        ("h100/sweep_24b_w4a16", "ceilings_second", (0.028, 0.038), (0.022, 0.027)),
        ("h100/sweep_24b_fp8", "ceilings_second", (0.032, 0.042), (0.05, 0.065)),
    ],
)
def test_errors_on_held_out_points(
    file: str, ceilings: str, decode: tuple[float, float], prefill: tuple[float, float]
) -> None:
    accelerator = read_accelerator((CARDS / file).parent / f"{ceilings}.json")
    overall = evaluate(read_sweep(CARDS / f"{file}.json"), accelerator, points=6, seeds=30).to_json()["overall"]
    assert overall["decode_mape"]["median"] < decode[0]
    assert overall["decode_mape"]["p90"] < decode[1]
    assert overall["prefill_mape"]["median"] < prefill[0]
    assert overall["prefill_mape"]["p90"] < prefill[1]
    assert overall["coverage"]["mean"] > 0.8


def synthetic(seed: int, error: float, truth: np.ndarray) -> Sweep:
    """Return a sweep whose times follow the model exactly but for a log-normal error."""
    real = sweep("bf16")
    at = WorkPoints.of(real.served, ACCELERATOR, [(p.batch, p.prompt) for p in real.points], real.output_tokens)
    times = at.seconds(truth) * np.exp(np.random.default_rng(seed).normal(0, error, 2 * len(real.points)))
    points = tuple(
        Point(point.batch, point.prompt, float(prefill), float(step))
        for point, prefill, step in zip(real.points, times[: len(real.points)], times[len(real.points) :], strict=True)
    )
    return Sweep("synthetic", real.served, real.output_tokens, points)


def test_known_efficiencies_are_recovered_inside_their_intervals() -> None:
    middle, spread = prior(sweep("bf16").served.weights, ACCELERATOR)
    inside = []
    for seed in range(12):
        truth = middle + np.random.default_rng(100 + seed).normal(0, 1, middle.size) * spread
        made = synthetic(seed, 0.005, truth)
        found = efficiencies(calibrate(made.served, ACCELERATOR, made.points, made.output_tokens))
        inside.append(
            [
                found[name].low <= np.exp(value) <= found[name].high
                for name, value in zip(PARAMETERS, truth, strict=True)
            ]
        )
        # What dominates is pinned down: reading weights at small batches, products in prefill.
        assert found["gemm_efficiency"].median == pytest.approx(np.exp(truth[1]), rel=0.1)
    assert np.mean(inside) > 0.85


def test_intervals_hold_on_a_synthetic_truth() -> None:
    middle, spread = prior(sweep("bf16").served.weights, ACCELERATOR)
    covered = []
    for seed in range(8):
        truth = middle + np.random.default_rng(200 + seed).normal(0, 1, middle.size) * spread
        document = evaluate(synthetic(seed, 0.012, truth), ACCELERATOR, 6, 5).to_json()
        covered.append(document["overall"]["coverage"]["mean"])
    assert np.mean(covered) >= 0.85


def test_six_small_batches_still_extrapolate_to_large_ones() -> None:
    whole = sweep("bf16")
    small = [point for point in whole.points if point.batch <= 2]
    large = [point for point in whole.points if point.batch >= 32]
    calibration = calibrate(whole.served, ACCELERATOR, small[:6], whole.output_tokens)
    prefill, decode = calibration.predict([(point.batch, point.prompt) for point in large])
    pairs = [
        *((found, point.prefill_seconds) for found, point in zip(prefill, large, strict=True)),
        *((found, point.decode_step_seconds) for found, point in zip(decode, large, strict=True)),
    ]
    assert np.median([abs(found.median / measured - 1) for found, measured in pairs]) < 0.1
    assert np.mean([found.low <= measured <= found.high for found, measured in pairs]) >= 0.8


def test_the_same_seed_gives_the_same_numbers() -> None:
    one, two = (evaluate(sweep("bf16"), ACCELERATOR, 6, 2).to_json() for _ in range(2))
    assert one == two


def test_the_command_prints_every_seed_and_all_of_them() -> None:
    result = CliRunner().invoke(
        app,
        [*EVALUATE_BF16, "--points", "6", "--seeds", "4", "--json"],
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [draw["seed"] for draw in document["per_seed"]] == [0, 1, 2, 3]
    for draw in document["per_seed"]:
        assert len(draw["calibrated_on"]) == 6 and draw["held_out"] == 17
        assert 0 < draw["decode_mape"] < 0.2 and 0 < draw["prefill_mape"] < 0.2
        assert 0 <= draw["decode_coverage"] <= 1 and 0 <= draw["prefill_coverage"] <= 1
    assert document["overall"]["decode_mape"]["median"] == pytest.approx(
        np.median([draw["decode_mape"] for draw in document["per_seed"]])
    )


def test_the_command_prints_a_table_for_people() -> None:
    result = CliRunner().invoke(
        app,
        [*EVALUATE_BF16, "--seeds", "2"],
    )
    assert result.exit_code == 0 and "decode MAPE" in result.stdout


def changed(folder: Path, change: Any) -> Path:
    document = json.loads((DATA / "sweep_bf16.json").read_text(encoding="utf-8"))
    change(document)
    path = folder / "bad.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def set_point(key: str, value: object) -> Any:
    return lambda document: document["points"][3].update({key: value})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_point("decode_step_s", float("nan")), r"bad.json: points\[3\].decode_step_s: nan"),
        (set_point("prefill_s", -1.0), r"bad.json: points\[3\].prefill_s: -1.0; input should be greater than 0"),
        (set_point("batch", 0), r"bad.json: points\[3\].batch: 0"),
        (set_point("batch", 2.5), r"bad.json: points\[3\].batch: 2.5"),
        (set_point("batch", True), r"bad.json: points\[3\].batch: true"),
        (set_point("decode_step_s", 0.5), r"points\[3\].decode_step_s: 0.5 is .*; expected"),
        (set_point("batch", 2**22), r"points\[3\]: batch 4194304 x prompt 128; expected at most"),
        (set_point("batch", 4), r"points\[3\]: batch 4 x prompt 128 is there twice"),
        (lambda document: document["points"][3].pop("prefill_s"), r"bad.json: points\[3\].prefill_s: field required"),
        (lambda document: document.pop("config"), r"bad.json: config: field required"),
        (lambda document: document["config"].pop("num_hidden_layers"), r"config: num_hidden_layers: missing"),
        (lambda document: document.update(points=[]), r"bad.json: points"),
        (lambda document: document.update(weights="ternary"), r"bad.json: weights: 'ternary' names no known quant"),
    ],
)
def test_a_bad_sweep_is_named_with_its_file_and_key(tmp_path: Path, change: Any, expected: str) -> None:
    with pytest.raises(SweepError, match=expected):
        read_sweep(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("w4a16 (11.26 GiB loaded)", "w4a16"),
        ("AWQ, 4-bit", "w4a16"),
        ("bfloat16 activations, int4 weights, group 128 (11.3 GiB loaded)", "w4a16"),
        ("bfloat16", "bf16"),
        ("FP8 (21.15 GiB loaded)", "fp8"),
        # A checkpoint that says 4 bit and is loaded as something else.
        ("gptq 4 bit (41.45 GiB loaded)", "bf16"),
    ],
)
def test_weights_are_what_was_loaded_rather_than_what_they_are_called(
    tmp_path: Path, weights: str, expected: str
) -> None:
    found = read_sweep(changed(tmp_path, lambda document: document.update(weights=weights)))
    assert found.served.weights.name == expected
    assert bool(found.notes) == weights.startswith("gptq")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "read_Bps: missing"),
        ('{"read_Bps": 1e12}', "gemm_bf16_8192_flops: missing"),
        ('{"read_Bps": NaN, "gemm_bf16_8192_flops": 1e12}', "read_Bps: nan"),
        ('{"read_Bps": 1e12, "gemm_bf16_8192_flops": -1}', "gemm_bf16_8192_flops: -1"),
    ],
)
def test_bad_ceilings_are_named_with_their_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "ceilings.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SweepError, match=expected):
        read_accelerator(path)


def test_too_few_points_end_the_command_with_usage(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda document: document.update(points=document["points"][:6]))
    result = CliRunner().invoke(
        app, ["whatif", "--evaluate", str(path), "--ceilings", str(DATA / "ceilings.json"), "--json"]
    )
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "6 of them; expected more than the 6" in result.stderr


def test_a_missing_file_fails_with_the_next_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["whatif", "--evaluate", str(tmp_path / "none.json"), "--ceilings", str(DATA / "ceilings.json")]
    )
    assert result.exit_code == 1 and "no such file" in result.stderr and "next:" in result.stderr
