"""`cluster whatif` at the command line: predictions, refusals, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app

TESTS = Path(__file__).resolve().parents[1]
DATA = TESTS / "data" / "h200"
SWEEP = ["--sweep", str(DATA / "sweep_bf16.json"), "--ceilings", str(DATA / "ceilings.json"), "--base", "8x1024"]
RUN = str(TESTS / "data" / "runs" / "throttled-link-busy")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["whatif", *arguments], env={"COLUMNS": "100"})


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_a_sweep_predicts_another_batch_with_an_interval() -> None:
    found = document(*SWEEP, "--batch", "32", "--input-tokens", "1024")
    assert found["base_scenario"]["batch"] == 8 and found["changed_scenario"]["batch"] == 32
    step = found["changed"]["itl_seconds"]
    assert step["low"] < step["median"] < step["high"]
    # What the sweep measured there.
    assert step["median"] == pytest.approx(0.01489, rel=0.03)
    assert found["changed"]["ttft_seconds"]["median"] == pytest.approx(2.303, rel=0.03)
    assert found["break_even"] is None
    assert found["calibration_points"] == 23


@pytest.mark.parametrize(
    ("arguments", "direction"),
    [
        (["--bits", "4"], -1),
        (["--quantization", "fp8"], -1),
        (["--accelerator", "a100"], 1),
        (["--tensor-parallel", "2", "--link-rate", "400 GB/s", "--link-latency", "3 us"], -1),
        (["--tensor-parallel", "2", "--link-rate", "1 Gbit/s", "--link-latency", "500 us"], 1),
        (["--replicas", "2"], -1),
        (["--output-tokens", "500"], 1),
    ],
)
def test_each_change_moves_the_time_between_tokens_the_right_way(arguments: list[str], direction: int) -> None:
    ratio = document(*SWEEP, *arguments)["itl_ratio"]["median"]
    assert (ratio - 1) * direction > 0


def test_a_split_gives_the_break_even_link() -> None:
    found = document(*SWEEP, "--tensor-parallel", "2", "--link-rate", "100 Gbit/s", "--link-latency", "10 us")
    even = found["break_even"]
    assert even["ranks"] == 2 and even["latency_seconds"] > 10e-6
    assert even["faster"] == "tensor parallel"


def test_a_run_is_its_own_base() -> None:
    found = document(RUN, "--link-rate", "1 Gbit/s")
    assert found["base_scenario"]["split"]["tensor_parallel"] == 2
    assert found["base"]["prefill_binds"] == "messages"
    assert found["ttft_ratio"]["high"] < 0.5


def test_people_read_what_binds() -> None:
    result = run(*SWEEP, "--quantization", "w4a16", "--accelerator", str(DATA / "ceilings_second.json"))
    assert result.exit_code == 0, result.stderr
    assert "FLOPs bind the first token" in result.stdout
    assert "weight bytes each further one" in result.stdout
    assert "calibrated on 23 measured points" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ([*SWEEP], 2, "nothing changes"),
        ([*SWEEP, "--quantization", "ternary"], 2, "--quantization ternary; expected one of bf16"),
        ([*SWEEP, "--bits", "3"], 2, "--bits 3; expected one of 4, 8, 16"),
        ([*SWEEP, "--bits", "8", "--quantization", "w4a16"], 2, "--bits 8 and --quantization w4a16"),
        ([*SWEEP, "--accelerator", "abacus"], 2, "--accelerator abacus; expected a file of ceilings or one of h200"),
        ([*SWEEP, "--tensor-parallel", "2"], 2, "need a link between them"),
        ([*SWEEP, "--tensor-parallel", "2", "--link-rate", "fast", "--link-latency", "1 us"], 2, "--link-rate: 'fast'"),
        ([*SWEEP, "--link-rate", "1 Gbit/s"], 2, "both --link-rate and --link-latency"),
        ([*SWEEP[:4], "--base", "8", "--batch", "2"], 2, "--base '8'; expected batch x input"),
        ([*SWEEP[:2], "--batch", "2"], 2, "--sweep needs --ceilings"),
        ([*SWEEP, "--batch", "0"], 2, "Invalid value"),
        ([*SWEEP, "--input-tokens", "40000"], 1, "cannot tell: 40000 input and 49 output tokens"),
        ([*SWEEP, "--accelerator", "arc-a770"], 1, "cannot tell: a rank needs 41.4 GiB of weights"),
        (["no-such-run", "--batch", "2"], 2, "no"),
    ],
)
def test_what_cannot_be_distinguished_is_reported(arguments: list[str], code: int, expected: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert expected in " ".join(result.stderr.split())
    assert result.stdout == ""
