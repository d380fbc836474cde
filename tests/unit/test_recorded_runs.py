"""Recorded runs of the embedded cluster: what is known to have been done to it is found from measurements alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bottleneck.diagnosis.causes import WORK as WORK_CAUSES
from bottleneck.diagnosis.causes.straggler import QUOTA
from bottleneck.diagnosis.observations.gather import gather
from bottleneck.diagnosis.observations.peers import levelled, slower_by
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import load_run
from tests.unit.simulator import measured_anew

RUNS = Path(__file__).parents[1] / "data" / "runs"


def recorded(name: str) -> Run:
    return load_run(RUNS / name)


def test_a_link_throttled_after_the_probe_is_found_from_the_samples() -> None:
    run = recorded("throttled-link")
    verdict = analyse(run)
    assert (verdict.name, verdict.where["link"]) == ("link_bandwidth", "direct")
    assert verdict.confidence > 0.5
    assert any("ceiling is taken to be old" in note for note in verdict.notes)
    assert verdict.measured["link"]["capacity_bytes_per_second"] == pytest.approx(2.5e6, rel=0.15)
    assert verdict.measured["link"]["probe_bytes_per_second"] > 5e8
    assert verdict.gain is not None and verdict.gain["share"] > 0.5


def test_with_a_fresh_ceiling_it_is_bytes_over_ceiling_and_more_certain() -> None:
    run = recorded("throttled-link")
    doubted = analyse(run)
    rate = {"median": 2.45e6, "low": 2.4e6, "high": 2.6e6, "samples": 3}
    fresh = {"bandwidth_bytes_per_second": rate, "measured": run.interval[0] - 9.0}
    run = measured_anew(run, lambda known: [way.update(fresh) for way in known["links"]["direct"].values()])
    verdict = analyse(run)
    assert (verdict.name, verdict.where["link"]) == ("link_bandwidth", "direct")
    assert verdict.confidence > doubted.confidence
    assert not any("old" in note for note in verdict.notes)
    assert any("probe, 9 s before" in item.source for item in verdict.evidence)


def test_waiting_for_a_core_beside_bytes_on_the_link_is_no_straggler() -> None:
    verdict = analyse(recorded("throttled-link-busy"))
    assert (verdict.name, verdict.where["link"]) == ("link_bandwidth", "direct")
    assert verdict.confidence > 0.5
    assert verdict.ledger.of("link_transfer") > 0.5
    assert all(item["confidence"] < 0.2 for item in verdict.runners_up)


def test_a_machine_full_of_other_work_is_not_called_compute() -> None:
    verdict = analyse(recorded("crowded-machine"))
    assert verdict.name == "host_overhead" and verdict.confidence > 0.5
    assert any("other processes have the nodes' cores" in item.statement for item in verdict.evidence)
    assert verdict.ledger.of("cpu_wait") > 0.5


def test_the_first_record_was_made_beside_other_work_which_had_four_tenths_of_both_cores() -> None:
    verdict = analyse(recorded("healthy"))
    nodes = verdict.measured["nodes"].values()
    assert all(facts["foreign_cpu_seconds"] > 0.35 * verdict.measured["busy_seconds"] for facts in nodes)
    assert verdict.name == "host_overhead" and verdict.fault
    assert not any(item["class"] == "link_bandwidth" for item in verdict.runners_up)


@pytest.mark.parametrize("name", ["disturbed-probe", "disturbed-probe-replicas"])
def test_nothing_is_wrong_with_healthy_ones(name: str) -> None:
    verdict = analyse(recorded(name))
    assert verdict.name in WORK_CAUSES and not verdict.fault


@pytest.mark.parametrize("name", ["healthy", "throttled-link"])
def test_a_noisy_probe_does_not_fill_the_ledger(name: str) -> None:
    run = recorded(name)
    # 17 all-reduces of a step at the probe's 5.8 ms are more than a whole step took.
    assert run.ceilings.allreduce is not None and run.ceilings.allreduce.sizes[2048].median > 0.005
    verdict = analyse(run)
    assert verdict.ledger.of("link_latency") < 0.02
    assert not any("decode" in note and "scaled down" in note for note in verdict.notes)
    assert math.fsum(entry.seconds for entry in verdict.ledger.entries) == pytest.approx(verdict.ledger.total)


@pytest.mark.parametrize("name", ["healthy", "throttled-link", "throttled-link-busy", "slow-node", "pipeline"])
def test_nine_tenths_of_both_tokens_have_a_cause(name: str) -> None:
    ledger = analyse(recorded(name)).ledger
    first = ledger.first_token
    assert first is not None
    for each in (ledger, first):
        assert math.fsum(entry.seconds for entry in each.entries) == pytest.approx(each.total)
        assert each.attributed >= 0.9
        assert all(entry.source and entry.end > entry.start for entry in each.entries)
    assert {entry.phase for entry in first.entries} <= {"queue", "prefill", "client"}


@pytest.mark.parametrize("name", ["healthy", "throttled-link"])
def test_the_wait_for_a_running_step_has_a_name(name: str) -> None:
    ledger = analyse(recorded(name)).ledger
    (waited,) = [entry for entry in ledger.entries if entry.resource == "step_wait"]
    assert (waited.phase, waited.node) == ("queue", "node0") and waited.share > 0.1
    assert ledger.phase("client") < 0.01


@pytest.mark.parametrize("name", ["healthy", "throttled-link"])
def test_a_run_holds_nothing_of_what_the_lab_was_given(name: str) -> None:
    document = json.loads((RUNS / name / "run.json").read_text())
    assert "link_rates" not in document
    assert not hasattr(recorded(name), "link_rates")


def test_the_held_node_is_the_straggler_and_a_quota_is_what_holds_it() -> None:
    verdict = analyse(recorded("slow-node"))
    assert (verdict.name, verdict.where["node"], verdict.kind) == ("straggler", "node1", QUOTA)
    assert verdict.confidence > 0.7


def test_stages_that_take_turns_leave_a_bubble() -> None:
    verdict = analyse(recorded("pipeline"))
    assert verdict.name == "pipeline_bubble" and verdict.confidence > 0.5
    assert not any(item["class"] == "straggler" and item["confidence"] > 0.1 for item in verdict.runners_up)


def test_a_link_that_became_slower_after_collectives_were_probed_is_its_latency_not_the_host() -> None:
    run = recorded("delayed-link")
    verdict = analyse(run)
    assert (verdict.name, verdict.where["link"]) == ("link_latency", "direct")
    assert any("4 trips a message" in item.source for item in verdict.evidence)
    # Collectives that were probed after the link count as they are: then the wire is not what takes the time.
    run = measured_anew(run, lambda known: known["allreduce"].update(measured=run.interval[0]))
    assert analyse(run).ledger.of("link_latency") < 0.1 < verdict.ledger.of("link_latency")


def test_an_api_server_that_is_not_let_run_is_named_though_it_uses_hardly_any_cpu() -> None:
    run = recorded("slow-api-server")
    verdict = analyse(run)
    assert (verdict.name, verdict.where["node"]) == ("api_server", "node0")
    assert verdict.measured["engines"][0]["api_server_cpu_share"] < 0.1
    assert any("ready to run but not let" in item.statement for item in verdict.evidence)
    for batch in run.batches:
        for sample in batch["samples"]:
            for worker in sample.get("workers", {}).values():
                worker.pop("api_server_run_delay_s", None)
    assert analyse(run).name != "api_server", "the engine's own count of its CPU time does not show it"


def test_who_lost_its_place_in_the_cache_waits_for_it_again_while_it_decodes() -> None:
    run = recorded("full-cache")
    verdict = analyse(run)
    assert verdict.name == "kv_cache_capacity" and verdict.confidence > 0.5
    (engine,) = verdict.measured["engines"]
    assert engine["queue_seconds"] < 0.2 * engine["latency_seconds"], "the queue's own time does not show it"
    assert engine["preemptions"] == 2 and engine["waiting_mean"] > 1


def test_other_programs_on_every_node_are_neither_small_nodes_nor_a_straggler() -> None:
    verdict = analyse(recorded("crowded-nodes"))
    assert verdict.name == "host_overhead" and verdict.confidence > 0.5


def test_a_stage_held_by_a_quota_is_a_straggler_not_a_bubble() -> None:
    verdict = analyse(recorded("slow-stage"))
    assert (verdict.name, verdict.where["node"]) == ("straggler", "node1")
    assert all(item["class"] != "pipeline_bubble" for item in verdict.runners_up)


@pytest.mark.parametrize("work", [1.0, 0.1])
def test_a_window_inside_a_first_step_that_the_engine_does_not_count_yet_is_not_idle(work: float) -> None:
    whole = recorded("slow-prompts")
    start = whole.interval[0]
    # On a faster machine the workers have less to do while the bytes cross.
    for worker in (
        each for batch in whole.batches for sample in batch["samples"] for each in sample["workers"].values()
    ):
        worker.update({kind: work * worker[kind] for kind in ("cpu_user_s", "cpu_system_s")})
    verdict = analyse(whole.window(start, start + 15.0))
    assert (verdict.name, verdict.where["link"]) == ("link_bandwidth", "direct")
    assert verdict.measured["busy_seconds"] > 13
    assert verdict.measured["engines"][0]["busy_share"] < 0.5, "by the engine's own gauge it idles"


def test_requests_that_wait_for_a_slot_wait_for_no_turn_of_a_pipeline() -> None:
    verdict = analyse(recorded("one-sequence-pipeline"))
    assert verdict.name == "sequence_limit" and verdict.confidence > 0.5
    assert verdict.ledger.phase("queue") > 0.7


@pytest.mark.parametrize(
    ("name", "right", "why"),
    [
        ("disturbed-probe", WORK_CAUSES, "node0 is 51% slower than its peers, but no worker slept for more than 5%"),
        ("disturbed-probe-stages", ("pipeline_bubble",), "node0 is 62% slower than its peers, but its peer was awake"),
        (
            "disturbed-probe-replicas",
            WORK_CAUSES,
            "node1 is 64% slower than its peers, but it had no request to answer",
        ),
    ],
)
def test_a_run_that_contradicts_a_disturbed_probe_names_no_straggler(
    name: str, right: tuple[str, ...], why: str
) -> None:
    verdict = analyse(recorded(name))
    assert verdict.name in right
    assert any(why in note for note in verdict.notes), verdict.notes
    assert not any("slower than its peers by its own ceilings" in item.statement for item in verdict.evidence)


def test_workers_beside_an_accelerator_may_spin_so_that_their_waking_says_nothing() -> None:
    run = recorded("disturbed-probe")
    assert run.profile is not None
    for name, node in run.profile.nodes.items():
        card = node.accelerator.model_copy(update={"kind": "xpu"})
        run.profile.nodes[name] = node.model_copy(update={"accelerator": card})
    assert not any("but no worker slept" in note for note in analyse(run).notes)


def test_who_waits_for_the_only_slot_waits_for_it_though_the_work_takes_as_long() -> None:
    verdict = analyse(recorded("one-slot-each"))
    assert verdict.name == "sequence_limit"
    assert verdict.runners_up[0]["class"] == "decode_memory_bandwidth"


@pytest.mark.parametrize(("slowdown", "believed"), [(1.0, False), (1.1, False), (1.5, True)])
def test_replicas_of_which_one_takes_longer_a_token_are_as_unlike_as_their_ceilings_say(
    slowdown: float, believed: bool
) -> None:
    seen = gather(recorded("one-slot-each"))
    own = seen.engines[1]
    assert own.prefill_seconds and own.decode_seconds
    longer = replace(own, prefill_seconds=own.prefill_seconds * slowdown, decode_seconds=own.decode_seconds * slowdown)
    slow = replace(seen.nodes["node1"], gemm_flops_per_second=2e11, gemm_interval=(1.9e11, 2.1e11))
    nodes, issues = levelled({**seen.nodes, "node1": slow}, (seen.engines[0], longer), seen.topology)
    assert (slower_by(nodes["node1"], [nodes["node0"]]) > 0) == believed
    assert any("its requests took at most" in each.statement for each in issues) != believed
