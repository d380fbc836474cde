"""Ranks are paused one at a time: which one everything waits for, and how much slack the others have."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bottleneck.experiment.blocks import Block, Measurement
from bottleneck.experiment.model import Interval
from bottleneck.experiment.predict import Circumstances, conclude, report
from bottleneck.experiment.resources import CPU, LARGEST_PAUSED_SHARE, RANK, Resource, candidates, paused_share
from bottleneck.experiment.session import Session
from bottleneck.experiment.slack import RankSlack, rank_slack, statement, waited_for
from bottleneck.plan.nodes import deployment_record
from bottleneck.plan.workers import DeploymentRecord
from bottleneck.profile import find_profile, load_profile
from bottleneck.runs.ceilings import Ceilings
from cli.causal import show_result, straggler_of
from cli.output import out

PROFILE = load_profile(find_profile("embedded"))
ENGINE = {"cores": 1, "quota_cores": None}


def rank(node: str, replica: int = 0) -> Resource:
    change = {"actuator": "rank_pause", "name": f"tp2-{replica}/VLLM::Worker_TP0"}
    return Resource(
        f"rank:{node}",
        RANK,
        1.0,
        "of the time",
        1 / (1 - LARGEST_PAUSED_SHARE),
        (node,),
        {"node": node, "link": None},
        replica=replica,
        changes={node: change},
    )


def paused(node: str, slack: float, reach: float = 0.1, replica: int = 0) -> RankSlack:
    """A rank of which the slack is known so far each way."""
    found = Interval(slack, slack - reach, slack + reach)
    lost = Interval(*(0.1 * (1 - value) for value in (slack, slack + reach, slack - reach)))
    return RankSlack(rank(node, replica), 0.1, lost, found)


class Ranks:
    """A cluster whose ranks are paused: each costs a share of its pause, with noise and drift."""

    def __init__(self, seed: int, costs: dict[str, float], noise: float = 0.005) -> None:
        self.random, self.costs, self.noise, self.now = np.random.default_rng(seed), costs, noise, 0.0

    def measure(self, block: Block) -> Measurement:
        more = self.costs[block.resource.nodes[0]] * (block.slowdown - 1) if block.resource else 0.0
        burst = 2.0 * (1 + more) * math.exp(self.random.normal(0, self.noise) + 0.2 * self.now / 180)
        started, self.now = self.now, self.now + burst
        return Measurement(block, started, burst, burst / 128, burst / 4, burst / 100, 4)


def experiment(costs: dict[str, float], seed: int = 1) -> Session:
    world, session = Ranks(seed, costs), Session([rank(node) for node in costs], [], seed=seed)
    while (block := session.next_block(world.now)) is not None:
        session.add(world.measure(block))
    return session


def test_a_rank_that_costs_its_pause_has_no_slack_and_one_that_costs_nothing_has_all() -> None:
    slowdown = 1 / (1 - 0.1)
    for cost, lost, slack in ((1.0, 0.1, 0.0), (0.0, 0.0, 1.0), (0.5, 1 - 1 / (1 + 0.5 / 9), 1 - 10 / 19)):
        found = rank_slack(rank("node0"), Interval(cost, cost - 0.2, cost + 0.2), slowdown)
        assert found.put_in == pytest.approx(0.1)
        assert found.lost.value == pytest.approx(lost) and found.slack.value == pytest.approx(slack)
        assert found.slack.low < found.slack.value < found.slack.high
        assert found.slack.low == pytest.approx(1 - found.lost.high / 0.1), "the most that is lost is the least slack"
    with pytest.raises(ValueError, match="expected more than 1"):
        rank_slack(rank("node0"), Interval(1, 0, 2), 1.0)


def test_the_paused_share_and_the_slowdown_are_two_ways_to_say_the_same() -> None:
    assert paused_share(1.0) == 0.0 and paused_share(1 / (1 - 0.05)) == pytest.approx(0.05)
    assert rank("node1").changes_at(1.25)["node1"]["share"] == pytest.approx(0.2)


def test_an_experiment_finds_the_rank_that_is_waited_for() -> None:
    session = experiment({"node0": 0.05, "node1": 1.0})
    assert session.stopped == "every interval is narrow enough"
    found = report(session, Circumstances())
    slack = {each["node"]: each["slack"] for each in found["slack"]}
    assert slack["node1"]["value"] == pytest.approx(0.0, abs=0.2)
    assert slack["node0"]["value"] == pytest.approx(0.95, abs=0.2)
    assert found["waited_for"] == "rank:node1" and found["sensitivity"] == []
    assert all(each["put_in"] <= LARGEST_PAUSED_SHARE + 1e-9 for each in found["slack"]), "a few percent"
    assert found["conclusion"]["class"] == "straggler" and found["conclusion"]["confirmed"]
    assert found["conclusion"]["where"]["node"] == "node1"


@pytest.mark.parametrize(("cost", "words"), [(1.0, "no rank has slack"), (0.0, "every rank has slack")])
def test_ranks_that_are_alike_make_no_straggler(cost: float, words: str) -> None:
    session = experiment({"node0": cost, "node1": cost})
    found = report(session, Circumstances())
    assert found["waited_for"] is None and words in found["slack_statement"]
    assert conclude(session, Circumstances()).name == "inconclusive"
    assert not conclude(session, Circumstances()).confirmed


def test_a_rank_stands_out_beyond_the_intervals_only() -> None:
    late, early = paused("node1", 0.1), paused("node0", 0.9)
    assert waited_for([early, late]) is late
    assert waited_for([early, paused("node1", 0.1, reach=0.6)]) is None, "too little is known of it"
    assert waited_for([paused("node0", 0.45), late]) is None, "its peer has little slack itself"
    assert waited_for([late]) is None and waited_for([]) is None
    assert "more time" in statement([early, paused("node1", 0.1, reach=0.6)])
    with pytest.raises(ValueError, match="no rank was paused"):
        statement([])


def test_ranks_of_different_replicas_do_not_wait_for_each_other() -> None:
    alike = [
        paused("node0", 0.9),
        paused("node1", 0.9),
        paused("node2", 0.1, replica=1),
        paused("node3", 0.1, replica=1),
    ]
    assert waited_for(alike) is None
    late = [*alike[:3], paused("node3", 0.9, replica=1)]
    found = waited_for(late)
    assert found is not None and found.resource.name == "rank:node2"
    assert "node3" in statement(late) and "node0" not in statement(late)


def test_every_rank_of_a_replica_with_several_is_paused_on_its_node() -> None:
    record = DeploymentRecord.model_validate(deployment_record(PROFILE, "tp2"))
    seen = {
        "node0": {**ENGINE, "ranks": ["tp2-0/VLLM::Worker_TP0", "other-0/VLLM::Worker_TP0"]},
        "node1": {**ENGINE, "ranks": ["tp2-0/VLLM::Worker_TP1"]},
    }
    found = [each for each in candidates(PROFILE, record, seen, Ceilings(), None) if each.kind == RANK]
    assert [each.name for each in found] == ["rank:node0", "rank:node1"] and {each.replica for each in found} == {0}
    assert found[1].changes_at(1 / 0.95)["node1"] == {
        "actuator": "rank_pause",
        "name": "tp2-0/VLLM::Worker_TP1",
        "share": pytest.approx(0.05),
    }
    seen["node1"]["ranks"] = ["tp2-0/VLLM::Worker_TP1", "tp2-0/VLLM::Worker_TP2"]
    found = [each for each in candidates(PROFILE, record, seen, Ceilings(), None) if each.kind == RANK]
    assert [each.name for each in found] == ["rank:node0", "rank:node1/Worker_TP1", "rank:node1/Worker_TP2"]
    alone = DeploymentRecord.model_validate(deployment_record(PROFILE, "replicas"))
    single = {node: {**ENGINE, "ranks": [f"replicas-{at}/VLLM::EngineCore"]} for at, node in enumerate(alone.nodes)}
    assert not [each for each in candidates(PROFILE, alone, single, Ceilings(), None) if each.kind == RANK]


def test_pauses_are_a_few_percent_and_other_resources_keep_their_least_slowdown() -> None:
    core = Resource("cpu:node0", CPU, 1.0, "cores", 1.2, ("node0",))
    session = Session([rank("node0"), rank("node1"), core], [])
    assert session.left_out == [core]
    first = [block for _ in range(3) if (block := session.next_block(0.0)) is not None and block.resource]
    assert first and all(0.01 < paused_share(block.slowdown) < 0.06 for block in first)


VERDICT = {"class": "straggler", "where": {"node": "node1", "link": None}, "kind": "CPU quota", "undecided": []}
CARDS = {"node0": "card A", "node1": "card B"}


def result(*ranks: RankSlack) -> dict[str, object]:
    late = waited_for(ranks)
    return {
        "slack": [each.to_json() for each in ranks],
        "waited_for": late.resource.name if late else None,
        "slack_statement": statement(ranks) if ranks else None,
    }


def test_a_straggler_is_confirmed_with_its_node_card_and_cause() -> None:
    found = straggler_of(VERDICT, result(paused("node0", 0.9), paused("node1", 0.1)), CARDS)
    assert found is not None and found["confirmed"] is True
    assert (found["node"], found["card"], found["kind"]) == ("node1", "card B", "CPU quota")
    assert found["statement"].startswith("confirmed: node1 (card B, CPU quota)")
    other = straggler_of(VERDICT, result(paused("node0", 0.1), paused("node1", 0.9)), CARDS)
    assert other is not None and other["confirmed"] is False and "waited for but node0" in other["statement"]
    alike = straggler_of(VERDICT, result(paused("node0", 0.9), paused("node1", 0.9)), CARDS)
    assert alike is not None and alike["confirmed"] is None and "every rank has slack" in alike["statement"]
    assert straggler_of({**VERDICT, "class": "link_latency"}, result(paused("node0", 0.9)), CARDS) is None
    assert straggler_of(VERDICT, result(), CARDS) is None, "no rank was paused"


def test_what_may_be_a_straggler_is_confirmed_as_well() -> None:
    candidates_of = [{"class": "host_overhead", "node": None}, {"class": "straggler", "node": "node1"}]
    undecided = {
        "class": "inconclusive",
        "where": {"node": None, "link": None},
        "kind": None,
        "undecided": ["straggler", "host_overhead"],
        "candidates": candidates_of,
    }
    found = straggler_of(undecided, result(paused("node0", 0.9), paused("node1", 0.1)), {})
    assert found is not None and found["confirmed"] and found["statement"].startswith("confirmed: node1 is waited for")


def test_more_noise_makes_a_wider_interval_not_another_answer() -> None:
    def reach(noise: float) -> float:
        world, session = Ranks(3, {"node0": 1.0}, noise), Session([rank("node0")], [], seed=3, budget_seconds=120)
        while (block := session.next_block(world.now)) is not None:
            session.add(replace(world.measure(block)))
        (found,) = report(session, Circumstances())["slack"]
        return float(found["slack"]["high"] - found["slack"]["low"])

    assert reach(0.03) > reach(0.003)


def test_the_ranks_are_shown_with_the_share_put_in_what_it_cost_and_their_slack(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "width", 200)
    found = report(experiment({"node0": 0.0, "node1": 1.0}), Circumstances())
    straggler = straggler_of(VERDICT, found, CARDS)
    show_result({**found, "experiment_seconds": 60.0, "problems": [], "straggler": straggler})
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.split()[:1] == ["rank:node1"])
    assert "12%" in row and "throughput lost" in printed and "share of the time" not in printed
    assert "confirmed: node1 (card B, CPU quota)" in " ".join(printed.split())
