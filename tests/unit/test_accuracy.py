"""Cost of a fault, measured beside healthy runs, and when an answer is right by that."""

import dataclasses
import math
from typing import Any

import pytest

from bottleneck.accuracy.answers import FIRST, MISSED, RUNNER_UP, Answer, Judged, Named, judge
from bottleneck.accuracy.figures import COSTS, Rate, figures
from bottleneck.accuracy.trials import DEVELOPMENT, FAULTS, HELD_OUT, Put, Trial
from bottleneck.accuracy.truth import Truth, truths
from bottleneck.diagnosis.causes import CAUSES

QUOTA = Put("quota", 0.5, "node1")
LINK = Put("link_rate", 5e6, link="direct")


def trial(number: int, seconds: float, *faults: Put, **changes: Any) -> Trial:
    values: dict[str, Any] = {
        "case": f"g/0.0/{number:02d}", "run": f"run-{number}", "group": "g", "deployment": "tp2", "settings": "{}",
        "load": ("mixed", 4, 128, 16), "requests": 32, "faults": faults, "began": float(number),
        "seconds_per_token": seconds,
    }  # fmt: skip
    return Trial(**{**values, **changes})


def answer(name: str, share: float = 0.5, runners: tuple[Named, ...] = (), **changes: Any) -> Answer:
    first = Named(name, changes.pop("node", None), changes.pop("link", None), share)
    return Answer(
        first, changes.pop("fault", name in CAUSES and CAUSES[name].fault), 0.7, runners_up=runners, **changes
    )


# Truth ---------------------------------------------------------------------------------


def test_a_cost_is_measured_beside_the_healthy_runs_before_and_after() -> None:
    slow_drift = [trial(0, 0.010), trial(1, 0.0154, QUOTA), trial(2, 0.012), trial(3, 0.012), trial(4, 0.03, QUOTA)]
    found = truths(slow_drift)
    first = found["g/0.0/01"]
    assert first.cost and first.cost.value == pytest.approx(0.0154 / math.sqrt(0.010 * 0.012) - 1)
    assert first.cost.low < first.cost.value < first.cost.high
    assert first.beside == ("g/0.0/00", "g/0.0/02"), "not the ones further away"
    (relief,) = first.reliefs
    assert relief and relief.value == pytest.approx(1 - 1 / (1 + first.cost.value))
    assert found["g/0.0/00"].healthy and found["g/0.0/00"].cost is None
    assert found["g/0.0/04"].beside == ("g/0.0/02", "g/0.0/03"), "none came after it: the last two"


def test_the_interval_is_the_scatter_of_healthy_runs() -> None:
    steady = [trial(number, 0.010 * (1 + 0.001 * (number % 2))) for number in range(6)]
    shaken = [trial(number, 0.010 * (1 + 0.3 * (number % 2))) for number in range(6)]
    widths = []
    for healthy in (steady, shaken):
        cost = truths([*healthy, trial(9, 0.02, QUOTA)])["g/0.0/09"].cost
        assert cost
        widths.append(cost.high - cost.low)
    assert widths[1] > 20 * widths[0]


def test_of_two_faults_each_has_the_relief_that_taking_it_alone_away_gives() -> None:
    runs = [trial(0, 0.01), trial(1, 0.02, QUOTA), trial(2, 0.015, LINK), trial(3, 0.03, LINK, QUOTA), trial(4, 0.01)]
    both = truths(runs)["g/0.0/03"]
    assert [relief and round(relief.value, 3) for relief in both.reliefs] == [round(1 - 2 / 3, 3), 0.5]
    assert both.cost and both.cost.value == pytest.approx(2.0)
    alone = truths([run for run in runs if run.faults != (LINK,)])["g/0.0/03"]
    assert alone.reliefs[1] is None, "what the quota gives back was not measured"


def test_a_setting_is_compared_with_the_roomy_deployment_and_only_under_the_same_load() -> None:
    slots = Put("slots", 2.0)
    limited = trial(5, 0.02, slots, settings='{"max_num_seqs": 2}')
    other = trial(1, 0.5, load=("crowd", 8, 64, 16))
    found = truths([trial(0, 0.01), other, limited])
    cost = found["g/0.0/05"].cost
    assert cost and cost.value == pytest.approx(1.0)
    assert cost.high - cost.low > 0.1, "a start lies between them"
    assert truths([other, limited])["g/0.0/05"].cost is None
    fewer = dataclasses.replace(trial(2, 0.01), requests=8)
    assert truths([fewer, limited])["g/0.0/05"].cost is None, "over other requests"


def test_the_lines_of_a_record_are_read_and_what_failed_is_left_out() -> None:
    line = {
        "case": "g/0.0/01", "run": "r", "group": "g", "deployment": "tp2", "settings": {"b": 1, "a": 2}, "seed": 1,
        "load": {"kind": "long", "concurrency": 4, "input_tokens": 500, "output_tokens": 64, "rate_per_second": None},
        "requests": 8, "faults": [{"kind": "bursts", "strength": 0.3, "node": "node1", "burst_seconds": 0.4}],
        "began": 12.0, "measured": {"output_tokens_per_second": 50.0}, "error": "",
    }  # fmt: skip
    found = Trial.from_json(line)
    assert found and found.seconds_per_token == 0.02 and found.faults == (Put("bursts", 0.3, "node1"),)
    assert found.settings == '{"a": 2, "b": 1}' and found.split == HELD_OUT
    assert Trial.from_json({**line, "error": "the lab is down"}) is None
    assert Trial.from_json({"case": "g/done", "done": True}) is None
    with pytest.raises(ValueError, match="expected one of link_rate"):
        Trial.from_json({**line, "faults": [{"kind": "gremlins", "strength": 1}]})


def test_what_is_held_out_is_named_before_and_every_fault_has_a_class_of_the_diagnosis() -> None:
    assert trial(0, 1.0, QUOTA).split == DEVELOPMENT
    assert trial(0, 1.0, QUOTA, LINK).split == HELD_OUT, "two at once"
    assert trial(0, 1.0, Put("budget", 64)).split == HELD_OUT
    assert trial(0, 1.0, load=("long", 4, 500, 64)).split == HELD_OUT
    assert {kind.cause for kind in FAULTS.values()} <= set(CAUSES)


# Answers -------------------------------------------------------------------------------


def judged(cost: float, given: Answer, *faults: Put, healthy_share: float = 0.6, noise: float = 0.001) -> Judged:
    """Judge an answer to a run that costs so much, beside healthy ones that scatter by `noise`."""
    faults = faults or (QUOTA,)
    healthy = [trial(number, 0.01 * (1 + noise * (number % 2))) for number in (0, 1, 3, 4)]
    truth = truths([*healthy, trial(2, 0.01 * (1 + cost), *faults)])["g/0.0/02"]
    return judge(truth, given, [answer("prefill_compute", healthy_share)] * 2)


def test_a_large_fault_has_to_be_named_first_at_its_place() -> None:
    right = answer("straggler", node="node1")
    assert judged(1.6, right).right and judged(1.6, right).places == (FIRST,)
    assert not judged(1.6, answer("straggler", node="node0")).right
    assert not judged(1.6, answer("straggler")).right, "no place where the case has one"
    second = answer("prefill_compute", runners=(Named("straggler", "node1"),))
    assert judged(1.6, second).places == (RUNNER_UP,) and not judged(1.6, second).right
    assert not judged(1.6, answer("inconclusive")).right


def test_a_small_fault_stands_among_the_runners_up() -> None:
    second = answer("prefill_compute", runners=(Named("straggler", "node1", None, 0.1),))
    assert judged(0.15, second).right
    assert not judged(0.15, answer("prefill_compute")).right, "it is missed"
    assert not judged(0.15, answer("prefill_compute", runners=(Named("straggler", "node0"),))).right
    assert not judged(0.15, answer("straggler", node="node1")).right, "half of the work gives back far more"
    # Between what the next step of the hardware gives and all of what the work takes, both will do.
    assert judged(0.4, second).right and judged(0.4, answer("straggler", node="node1")).right


def test_below_a_twentieth_nothing_is_a_fault() -> None:
    assert judged(0.02, answer("prefill_compute")).right
    named = judged(0.02, answer("straggler", node="node1"))
    assert named.false_name and not named.right
    healthy = judge(Truth(trial(0, 0.01), None, (), ("g/0.0/00",)), answer("straggler", node="node0"), [])
    assert healthy.false_name and not healthy.right and healthy.cost == 0.0
    assert judge(Truth(trial(0, 0.01), None, (), ("g/0.0/00",)), answer("pipeline_bubble"), []).right


def test_what_was_measured_poorly_is_judged_mildly() -> None:
    assert judged(0.08, answer("prefill_compute"), noise=0.2).right, "it may well be nothing"
    assert not judged(0.08, answer("prefill_compute"), noise=0.001).right


def test_a_balance_between_two_properties_of_one_link_names_the_link() -> None:
    undecided = answer("balanced", link="direct", undecided=("link_bandwidth", "link_latency"))
    assert judged(1.6, undecided, LINK).places == (FIRST,)
    elsewhere = answer("balanced", link="ethernet", undecided=("link_bandwidth", "link_latency"))
    assert judged(1.6, elsewhere, LINK).places == (MISSED,)
    assert judged(1.6, answer("balanced", undecided=("straggler", "link_bandwidth"))).places == (MISSED,)


def test_the_only_node_is_no_slower_than_its_peers() -> None:
    runs = [trial(0, 0.01, deployment="single"), trial(1, 0.03, Put("bursts", 0.5, "node0"), deployment="single")]
    truth = truths(runs)["g/0.0/01"]
    assert judge(truth, answer("host_overhead"), []).places == (FIRST,)


def test_of_two_faults_the_larger_is_first_and_the_other_behind_it() -> None:
    runs = [trial(0, 0.01), trial(1, 0.03, QUOTA), trial(2, 0.012, LINK), trial(3, 0.04, LINK, QUOTA), trial(4, 0.01)]
    truth = truths(runs)["g/0.0/03"]
    healthy = [answer("prefill_compute", 0.6)]
    right = answer("straggler", node="node1", runners=(Named("link_bandwidth", None, "direct"),))
    assert judge(truth, right, healthy).right
    other_way = answer("link_bandwidth", link="direct", runners=(Named("straggler", "node1"),))
    assert not judge(truth, other_way, healthy).right
    assert not judge(truth, answer("straggler", node="node1"), healthy).right, "the link is missed"


def test_a_verdicts_json_is_all_that_is_read() -> None:
    verdict = {
        "class": "balanced", "fault": False, "where": {"node": None, "link": "direct"}, "confidence": 0.41,
        "score": 0.3, "undecided": ["link_bandwidth", "link_latency"], "evidence": [{"statement": "never read"}],
        "runners_up": [{"class": "straggler", "score": 0.2, "confidence": 0.1, "node": "node1", "link": None}],
    }  # fmt: skip
    found = Answer.of_verdict(verdict)
    assert found.first == Named("balanced", None, "direct", 0.3)
    assert found.runners_up == (Named("straggler", "node1", None, 0.2),)
    assert Answer.from_json(found.to_json()) == found


# Figures -------------------------------------------------------------------------------


def test_the_figures_add_up() -> None:
    right, wrong = answer("straggler", node="node1"), answer("prefill_compute")
    behind = answer("prefill_compute", runners=(Named("straggler", "node1"),))
    known = [judged(1.0, right), judged(0.9, wrong), judged(2.0, right), judged(0.12, behind), judged(0.01, right)]
    healthy = [judge(Truth(trial(0, 0.01), None, (), ("g/0.0/00",)), given, []) for given in (wrong, right, wrong)]
    found = figures([*known, *healthy])
    whole = found.splits["all"]
    assert (whole.large, whole.small) == (Rate(2, 3), Rate(1, 1))
    assert whole.false_names == Rate(2, 4), "a fault of 1 % and a healthy run"
    assert whole.runs == 8 and found.splits[HELD_OUT].runs == 0
    row = found.detection["quota"]
    assert len(row) == len(COSTS) + 1
    assert row[2] == Rate(1, 1) and found.first["quota"][2] == Rate(0, 1)
    assert row[5] == Rate(1, 2) and row[6] == Rate(1, 1)
    assert found.confusion["quota"] == {"prefill_compute": 2, "straggler": 2}, "what costs nothing is no confusion"
    assert found.confusion["healthy"] == {"prefill_compute": 2, "straggler": 1}
    assert len(found.wrong) == 3
    (only,) = found.reliability
    assert only.right == Rate(5, 8) and found.calibration_error == pytest.approx(0.7 - 5 / 8)


def test_a_faulty_run_without_a_healthy_one_is_left_out() -> None:
    truth = truths([trial(0, 0.02, QUOTA)])["g/0.0/00"]
    assert figures([judge(truth, answer("straggler", node="node1"), [])]).splits["all"].runs == 0


def test_repeats_say_how_often_the_same_class_was_named() -> None:
    classes = ["straggler", "straggler", "prefill_compute", "straggler", "straggler"]
    same = [judged(1.0, answer(name, node="node1")) for name in classes]
    (found,) = figures([*same, judged(1.0, answer("straggler"), LINK)]).repeats
    assert (found.answered, found.same, found.right) == ("straggler", Rate(4, 5), Rate(4, 5))
    assert found.cost == pytest.approx(1.0, rel=0.01) and found.faults == ("quota",)


def test_nothing_is_no_rate() -> None:
    empty = figures([])
    assert math.isnan(empty.splits["all"].large.value) and not empty.reliability
    low, high = Rate(19, 20).interval
    assert low < 0.95 < high
