"""Two real cards over a link, 28 cases: what was put in is named, and traces of both ranks agree with the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import trace_judge
from cli.gpu_lab.again import judged_again
from cli.gpu_lab.scores import Score, scores, summary

DATA = Path(__file__).parents[1] / "data" / "h200_cases"
# Kernels of another program slow ranks that spin by a tenth; nothing that is sampled shows what they cost.
UNNAMED = {"tp2-kernels-30-chat", "tp2-kernels-70-chat", "pp2-kernels-50-writers", "replicas-kernels-70-eight"}


@pytest.fixture(scope="module")
def judged() -> dict[str, Score]:
    return {score.case: score for score in scores(judged_again(DATA))}


def test_every_case_is_named_but_other_kernels_on_a_card(judged: dict[str, Score]) -> None:
    assert len(judged) == 28
    assert {case for case, score in judged.items() if not score.is_right} == UNNAMED
    assert all((judged[case].cost or 0.0) < 0.2 for case in UNNAMED)


def test_the_figures_of_the_page(judged: dict[str, Score]) -> None:
    found = summary(list(judged.values()))
    assert found["large"] == {"right": 18, "of": 18}
    assert found["controls"] == {"false_names": 0, "of": 6}
    assert found["gain_within_5_points"] == {"right": 6, "of": 18}


@pytest.mark.parametrize(("case", "within"), [("tp2-paused-follower", 0.06), ("tp2-paused-head", 0.03)])
def test_a_rank_that_is_stopped_for_a_fifth_of_the_time_stands_behind_the_link_with_its_gain(
    judged: dict[str, Score], case: str, within: float
) -> None:
    score = judged[case]
    assert score.named == "link_latency" and not score.is_first
    assert score.gain == pytest.approx(score.relief, abs=within)


@pytest.mark.parametrize(
    ("name", "within"),
    [("tp2-alone", 0.01), ("tp2-chat", 0.05), ("tp2-kernels-70-chat", 0.14), ("tp2-prompts", 0.24)],
)
def test_the_ledgers_link_is_as_near_to_a_trace_as_the_page_says(name: str, within: float) -> None:
    document = trace_judge.read(DATA / "traces" / f"trace-{name}.json.xz")
    found = trace_judge.judge_record(document)
    assert trace_judge.steps_share(document["verdicts"]["traced"].ledger) == pytest.approx(found.link, abs=within)
    assert found.mean(lambda rank: rank.work + rank.transfer + rank.waiting + rank.idle) == pytest.approx(1.0)
