"""The comparison with typing by hand: what its interval counts, and several runs put together."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import throughput_vs_by_hand

    return throughput_vs_by_hand


def a_round(*ratios: float) -> dict[str, Any]:
    return {
        "pairs": [
            {arm: {"output_tokens_per_second": rate} for arm, rate in (("cluster", 50.0 * ratio), ("by hand", 50.0))}
            for ratio in ratios
        ]
    }


def test_more_pairs_of_one_start_do_not_narrow_what_starts_differ_by(bench: ModuleType) -> None:
    few = bench.ratio_over_rounds([a_round(0.98), a_round(1.0), a_round(1.02)])
    many = bench.ratio_over_rounds([a_round(*[0.98] * 50), a_round(*[1.0] * 50), a_round(*[1.02] * 50)])

    assert many["low"] == pytest.approx(few["low"]) and many["high"] == pytest.approx(few["high"])
    assert (many["rounds"], many["pairs"]) == (3, 150)


def test_a_round_counts_once_however_many_its_pairs(bench: ModuleType) -> None:
    ratio = bench.ratio_over_rounds([a_round(0.9), a_round(*[1.0] * 9)])
    assert ratio["ratio"] == pytest.approx(0.9**0.5)


def test_of_one_round_there_are_its_pairs(bench: ModuleType) -> None:
    ratio = bench.ratio_over_rounds([a_round(0.98, 1.02)])
    assert 0.6 < ratio["low"] < ratio["ratio"] == pytest.approx((0.98 * 1.02) ** 0.5)


def test_runs_are_put_together_by_what_was_watched(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"a": (True, [0.99, 1.01]), "b": (True, [1.0]), "c": (False, [0.97, 0.98])}
    for name, (watched, ratios) in runs.items():
        bench.write({"watched": watched, "rounds": [a_round(ratio) for ratio in ratios]}, tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["bench", "--pool", *(str(tmp_path / name) for name in runs)])

    bench.main()

    reported = json.loads(capsys.readouterr().out)
    assert reported["watched"]["ratio"] == pytest.approx(1.0, abs=1e-4) and reported["watched"]["rounds"] == 3
    assert reported["unwatched"]["ratio"] == pytest.approx((0.97 * 0.98) ** 0.5)
