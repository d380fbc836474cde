"""The table of efficiencies: read by name and format, and what of it can be counted again from the recorded sweeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bottleneck.performance.efficiencies import TABLE, efficiency
from bottleneck.performance.formats import FORMATS
from bottleneck.performance.roofline import step_floor
from bottleneck.performance.workpoints import WorkPoints
from bottleneck.prediction.sweep import read_accelerator, read_sweep

CARDS = Path(__file__).resolve().parents[1] / "data"
SWEEPS = {
    "bf16": ("h200/sweep_bf16", "h200/sweep_7b_bf16", "h100/sweep_nemo_bf16"),
    "fp8": ("h200/sweep_fp8", "h100/sweep_nemo_fp8", "h100/sweep_24b_fp8"),
    "w4a16": ("h200/sweep_w4a16", "h200/sweep_7b_w4a16", "h100/sweep_nemo_w4a16", "h100/sweep_24b_w4a16"),
}
SECOND = ("h100/sweep_nemo_bf16", "h100/sweep_24b_fp8", "h100/sweep_24b_w4a16")
LARGE_PREFILL = 4096


def reached(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of the floor that each decode step and each large prefill of a sweep reached."""
    sweep = read_sweep(CARDS / f"{name}.json")
    ceilings = "ceilings_second" if name in SECOND else "ceilings"
    accelerator = read_accelerator((CARDS / name).parent / f"{ceilings}.json")
    at = WorkPoints.of(sweep.served, accelerator, [(p.batch, p.prompt) for p in sweep.points], sweep.output_tokens)
    rates = accelerator.flops_per_second, accelerator.memory_bytes_per_second
    runs = np.add.reduceat(step_floor(at.steps, sweep.served, *rates).total, at.starts)
    whole, first, last = (runs[index::3] for index in range(3))
    decode = (last - first) / (sweep.output_tokens - 1) / np.array([p.decode_step_seconds for p in sweep.points])
    large = at.batch * at.prompt >= LARGE_PREFILL
    return decode, (whole / np.array([p.prefill_seconds for p in sweep.points]))[large]


@pytest.mark.parametrize("weights", sorted(SWEEPS))
def test_what_decode_steps_reach_is_counted_again(weights: str) -> None:
    entry = efficiency("decode_step", weights)
    shares = np.concatenate([reached(name)[0] for name in SWEEPS[weights]])
    assert entry.measurements == shares.size
    assert entry.value == pytest.approx(float(np.median(shares)), abs=0.01)
    assert entry.spread == pytest.approx(float(np.std(np.log(shares))), abs=0.01)


def test_what_prefills_reach_is_counted_again() -> None:
    shares = np.concatenate([reached(name)[1] for names in SWEEPS.values() for name in names])
    entry = efficiency("prefill_step")
    assert entry.measurements == shares.size
    assert entry.value == pytest.approx(float(np.median(shares)), abs=0.01)
    assert entry.spread == pytest.approx(float(np.std(np.log(shares))), abs=0.01)


def test_an_entry_is_found_by_its_format_or_for_any() -> None:
    assert efficiency("weight_efficiency", FORMATS["fp16"].kernels).value == 0.94
    assert efficiency("layer_launches", "fp8").value == efficiency("layer_launches").value == 4.5
    with pytest.raises(KeyError, match="no efficiency weight_efficiency of ternary; expected one of bf16"):
        efficiency("weight_efficiency", "ternary")


def test_every_entry_says_where_it_is_from_and_stands_once() -> None:
    keys = [(entry.name, entry.weights) for entry in TABLE]
    assert len(keys) == len(set(keys))
    assert all(entry.source and entry.unit and entry.value > 0 for entry in TABLE)
    assert all(entry.measurements or "assumed" in entry.source for entry in TABLE)
