"""The score of the benchmark of verdicts: what counts as right, unsure, a false alarm."""

import itertools
import math
from typing import Any

import pytest

from bench import verdict_tables
from bottleneck.diagnosis.causes import CAUSES
from bottleneck.diagnosis.scoring import HEALTHY, SPLITS, Outcome, halves, markdown, rate, score
from bottleneck.load.workload import points
from bottleneck.profile import find_profile, load_profile
from cli.verify.cases import NOT_INJECTED, Case, cases
from cli.verify.faults import _KINDS
from cli.verify.record import Record
from cli.verify.upgrades import UPGRADES, summary
from cli.verify.upgrades import markdown as upgrades_markdown


def outcome(**changes: Any) -> Outcome:
    values: dict[str, Any] = {"case": "c", "fault": "straggler", "expected": ("straggler",), "answered": "straggler"}
    return Outcome(**{**values, **changes})


def test_a_right_class_at_a_wrong_place_is_wrong() -> None:
    assert outcome().right
    assert outcome(node="node1", answered_node="node1").right
    assert not outcome(node="node1", answered_node="node0").right
    assert not outcome(answered="link_latency").right
    assert outcome(answered="link_latency", runners_up=("x", "straggler")).among_three
    assert not outcome(answered="link_latency", runners_up=("x", "y", "straggler")).among_three


def test_only_a_fault_named_on_a_healthy_cluster_is_a_false_alarm() -> None:
    healthy = {"fault": HEALTHY, "expected": ("prefill_compute",)}
    assert outcome(**healthy, answered="straggler").false_alarm
    assert not outcome(**healthy, answered="prefill_compute").false_alarm
    assert not outcome(**healthy, answered="inconclusive").false_alarm
    assert not outcome(answered="link_bandwidth").false_alarm, "wrong, but something was there"


def test_the_figures_add_up() -> None:
    told = [
        outcome(case="a", data_seconds=10.0),
        outcome(case="b", answered="link_latency", data_seconds=14.0),
        outcome(case="c", answered="inconclusive", confirmed="straggler"),
        outcome(case="d", answered="inconclusive", confirmed="inconclusive"),
        outcome(case="e", fault=HEALTHY, expected=("prefill_compute",), answered="straggler"),
        outcome(case="f", answered="inconclusive", error="the lab is down"),
    ]
    found = score(told)
    everything = found["all"]
    assert everything["cases"] == 5, "a case that could not be run counts for nothing"
    assert (everything["top1"]["hits"], everything["top1"]["of"]) == (1, 5)
    assert (everything["unsure"]["hits"], everything["settled_by_causal"]["hits"]) == (2, 1)
    assert everything["false_alarms"]["rate"] == 1.0
    assert everything["data_seconds"] == {"median": 14.0, "largest": 14.0}
    assert found["confusion"]["straggler"] == {"inconclusive": 2, "link_latency": 1, "straggler": 1}
    assert found["errors"] == {"f": "the lab is down"}
    assert sum(found["splits"][split]["cases"] for split in SPLITS) == 5
    text = markdown(found)
    assert "| `straggler` | 4 | 25%" in text and "Not run: `f`: the lab is down" in text


def test_nothing_run_is_no_rate() -> None:
    assert rate(0, 0)["rate"] is None
    assert "| all: 0 | - | - | - |" in markdown(score([]))
    exact = rate(19, 20)
    assert exact["low"] < 0.95 < exact["high"]


def test_an_outcome_comes_back_as_it_was_written() -> None:
    whole = outcome(runners_up=("a", "b"), confirmed="straggler", data_seconds=3.0, labels={"load": "normal"})
    assert Outcome.from_json(whole.to_json()) == whole
    assert math.isnan(Outcome.from_json(outcome().to_json()).data_seconds)


def test_the_halves_are_settled_by_name_and_seed_and_have_every_kind_of_case() -> None:
    strata = {f"case {number}": f"kind {number % 5}" for number in range(25)}
    found = halves(strata, 1)
    assert found == halves(dict(reversed(strata.items())), 1), "the order of the cases is no matter"
    assert found != halves(strata, 2)
    for stratum in set(strata.values()):
        sizes = [sum(found[name] == split for name, own in strata.items() if own == stratum) for split in SPLITS]
        assert sorted(sizes) == [2, 3]


def test_both_halves_of_the_benchmark_have_every_fault() -> None:
    for seed in (1, 2, 3):
        faults = {split: {case.stratum for case in cases(seed) if case.split == split} for split in SPLITS}
        assert faults[SPLITS[0]] == faults[SPLITS[1]] != set()


def test_there_are_cases_enough_and_few_restarts() -> None:
    found = cases(1)
    assert len(found) >= 60 and len({case.name for case in found}) == len(found)
    assert {case.deployment for case in found} == {"tp2", "pp2", "replicas", "single"}
    assert sum(case.fault == HEALTHY for case in found) >= 10
    assert len({case.fault for case in found} - {HEALTHY}) >= 12
    deployed = [case.deployed for case in found]
    restarts = sum(one != other for one, other in itertools.pairwise(deployed)) + 1
    assert restarts == len(set(deployed)), "cases of one deployment follow each other"
    for case in found:
        assert set(case.expected) <= set(CAUSES) and case.expected, case.name
        assert {injection["kind"] for injection in case.injections} <= set(_KINDS), case.name
    named = {name for case in found for name in case.expected}
    assert set(CAUSES) - named - {"inconclusive"} == set(NOT_INJECTED), "every class is put in, or said why not"


def test_the_page_is_what_the_record_says() -> None:
    page = verdict_tables.PAGE.read_text(encoding="utf-8")
    found = verdict_tables.tables(verdict_tables.RECORD)
    assert verdict_tables.filled(page, found) == page, "python bench/verdict_tables.py --write"
    assert found["cases"].count("\n") > 30


def test_a_case_does_not_carry_its_answer_into_the_run() -> None:
    for case in cases(3):
        assert set(case.workload) <= {"concurrency", "rate", "input_tokens", "output_tokens", "requests", "seed"}
        assert case.workload["seed"] == 3
        assert case.fault not in str(case.workload)


def test_a_start_sends_nothing_and_its_healthy_ones_are_of_a_kind_of_their_own() -> None:
    starts = [case for case in cases(1) if case.is_start]
    assert all(not case.settings and set(case.workload) == {"seed"} for case in starts)
    assert {case.fault for case in starts} == {HEALTHY, "weight_loading"}
    assert {case.stratum for case in starts} == {"healthy start", "weight_loading cold_disk start"}
    assert {case.stratum for case in cases(1) if case.fault == HEALTHY and not case.is_start} == {HEALTHY}, (
        "the halves of the recorded cases stay as they were dealt"
    )


def test_a_bench_is_told_a_sweep_of_one_point() -> None:
    profile = load_profile(find_profile("embedded"))
    for case in cases(1):
        told = dict(case.bench)
        (point,) = points(
            profile.workload, concurrency=told.pop("concurrency"), rate_per_second=told.pop("rate"), **told
        )
        assert (point.concurrency is None) == ("client_limited" in case.name)


def test_a_record_goes_on_where_it_stopped(tmp_path: Any) -> None:
    record = Record(tmp_path / "deep" / "verdicts.jsonl")
    assert record.done() == set()
    record.add(outcome(case="a").to_json())
    record.add(outcome(case="b", error="the lab is down").to_json())
    with record.path.open("a") as file:
        file.write('{"case": "c", "ans')
    assert Record(record.path).done() == {"a"}, "what failed or was cut short is run again"


def test_there_are_upgrades_enough_and_they_are_compared() -> None:
    assert len(UPGRADES) >= 12 and len({each.name for each in UPGRADES}) == len(UPGRADES)

    def saved(value: float) -> dict[str, Any]:
        return {"saved": {"value": value, "low": value - 0.03, "high": value + 0.03}}

    lines = {
        name: {
            "case": name,
            "factor": 2.0,
            "error": "",
            "metrics": {"time": {"predicted": saved(0.5), "real": saved(real), "error_points": 100 * (0.5 - real)}},
        }
        for name, real in (("a", 0.5), ("b", 0.52), ("c", 0.4))
    }
    lines["d"] = {"case": "d", "factor": 2.0, "error": "no lab", "metrics": {}}
    found = summary(lines)
    assert found["cases"] == 3 and found["inside_interval"] == 2
    assert found["median_error_points"]["time"] == pytest.approx(2.0)
    assert found["errors"] == {"d": "no lab"}
    assert "| b | x2 | 50.0% (47.0% to 53.0%) | 52.0% (49.0% to 55.0%) | -2.0 |" in upgrades_markdown(found)


def test_a_case_names_what_has_to_be_deployed() -> None:
    case = Case("sequence_limit", "1seqs", "tp2", "crowd", ("sequence_limit",), settings={"max_num_seqs": 1})
    assert case.deployed == ("tp2", '{"max_num_seqs": 1}')
