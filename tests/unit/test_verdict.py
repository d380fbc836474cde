"""The verdict names what was put in, where it was put, and says so when it cannot be told."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from bottleneck.diagnosis.causes import WORK as WORK_CAUSES
from bottleneck.diagnosis.verdict import Verdict, analyse
from bottleneck.runs.ceilings import Ceilings
from bottleneck.runs.run import ClientRequest, Run, window_run
from bottleneck.telemetry.prometheus_text import MetricsText
from tests.vllm_metrics import series_name

from .simulator import MODEL, deployed, measured_anew, simulate

WORK = "work"  # any of a node's own

CAUSES: list[tuple[str, dict[str, Any], str, str | None, str | None]] = [
    ("healthy", {}, WORK, None, None),
    ("link at 20 Mbit/s", {"link_bytes_per_second": 2.5e6}, "link_bandwidth", None, "direct"),
    ("link at 50 Mbit/s", {"link_bytes_per_second": 6.25e6}, "link_bandwidth", None, "direct"),
    ("quota on node1", {"quota": {"node1": 0.3}}, "straggler", "node1", None),
    ("quota on node0", {"quota": {"node0": 0.3}}, "straggler", "node0", None),
    ("half a core on node1", {"quota": {"node1": 0.5}}, "straggler", "node1", None),
    ("slow node1", {"speed": {"node1": 0.4}}, "straggler", "node1", None),
    ("others on node1", {"stolen": {"node1": 0.6}}, "straggler", "node1", None),
    ("others on node0", {"stolen": {"node0": 0.6}}, "straggler", "node0", None),
    ("few slots", {"max_num_seqs": 2, "concurrency": 12, "requests": 24}, "sequence_limit", "node0", None),
    (
        "small cache",
        {"cache_tokens": 1300, "concurrency": 12, "requests": 24, "output_tokens": 96},
        "kv_cache_capacity",
        "node0",
        None,
    ),
    ("low rate", {"concurrency": None, "arrival_seconds": 5.0, "requests": 8}, "client_limited", None, None),
]


def named(verdict: Verdict, expected: str) -> bool:
    return verdict.name == expected or (expected == WORK and verdict.name in WORK_CAUSES)


def assert_sound(verdict: Verdict) -> None:
    assert 0 <= verdict.confidence <= 1
    assert verdict.evidence
    assert verdict.advice
    assert all(item.statement and item.source for item in verdict.evidence)
    assert set(verdict.where) == {"node", "link"}
    assert all(0 <= item["confidence"] <= 1 for item in verdict.runners_up)
    json.dumps(verdict.to_json(), allow_nan=False)


@pytest.mark.parametrize(("name", "world", "expected", "node", "link"), CAUSES, ids=[cause[0] for cause in CAUSES])
@pytest.mark.parametrize("live", [False, True], ids=["run", "window"])
def test_named_and_placed(
    name: str, world: dict[str, Any], expected: str, node: str | None, link: str | None, live: bool
) -> None:
    simulation = simulate(**world)
    middle = simulation.now / 2
    verdict = analyse(simulation.window(max(0.0, middle - 5), middle + 5) if live else simulation.run())
    assert named(verdict, expected), verdict.to_json()
    assert verdict.confidence >= 0.4
    if node is not None:
        assert verdict.where["node"] == node
    assert verdict.where["link"] == link
    assert_sound(verdict)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_whatever_the_jitter(seed: int) -> None:
    assert analyse(simulate(seed=seed).run()).name in WORK_CAUSES
    assert analyse(simulate(seed=seed, link_bytes_per_second=2.5e6).run()).name == "link_bandwidth"
    assert analyse(simulate(seed=seed, quota={"node1": 0.3}).run()).where["node"] == "node1"


def test_a_link_slower_than_its_ceiling_on_file_is_found_and_reported() -> None:
    world = simulate(link_bytes_per_second=2.5e6, probe_bytes_per_second=1e9)
    verdict = analyse(world.run())
    assert verdict.name == "link_bandwidth" and verdict.where["link"] == "direct"
    assert any("ceiling is taken to be old" in note for note in verdict.notes)
    healthy = analyse(simulate(probe_bytes_per_second=1e9).run())
    assert healthy.name in WORK_CAUSES and not any("old" in note for note in healthy.notes)


@pytest.mark.parametrize(("spread", "found"), [(0.05, "straggler"), (0.6, WORK)])
def test_a_lower_ceiling_makes_a_straggler_only_beyond_the_spread_of_the_probes(spread: float, found: str) -> None:
    def disturbed(known: dict[str, Any]) -> None:
        for name, middle in (("gemm_bf16_flops_per_second", 4e10), ("memory_read_bytes_per_second", 4e9)):
            own, peer = (known["nodes"][node][name] for node in ("node1", "node0"))
            own |= {"median": middle, "low": (1 - spread) * middle, "high": (1 + spread) * middle}
            peer |= {"low": (1 - spread) * peer["median"], "high": (1 + spread) * peer["median"]}

    verdict = analyse(measured_anew(simulate().run(), disturbed))
    assert named(verdict, found)
    assert verdict.where["node"] == "node1" or found == WORK


def test_noisy_ceilings_do_not_hide_a_link_that_became_slow() -> None:
    run = simulate(link_bytes_per_second=2.5e6, probe_bytes_per_second=1e9).run()

    def with_node0(low: float, median: float, high: float) -> Run:
        rate = {"median": median, "low": low, "high": high}
        return measured_anew(run, lambda known: known["nodes"]["node0"].update(gemm_bf16_flops_per_second=rate))

    assert analyse(with_node0(4e10, 6e10, 9.7e10)).name == "link_bandwidth"
    # Beyond the spread it is another matter: the slow node's work may be what the link waits for.
    slow = analyse(with_node0(2.9e10, 3e10, 3.1e10))
    assert not any("taken to be old" in note for note in slow.notes)


def test_a_ceiling_below_what_the_link_carried_is_not_believed() -> None:
    verdict = analyse(simulate(probe_bytes_per_second=1e4).run())
    assert any("ceiling is wrong or old" in note for note in verdict.notes)
    assert verdict.name != "link_bandwidth"


def test_the_gain_of_mending_a_link_is_what_mending_it_gave() -> None:
    slow = analyse(simulate(link_bytes_per_second=2.5e6).run())
    mended = analyse(simulate(link_bytes_per_second=1e12).run())
    assert slow.gain is not None
    saved = slow.ledger.total - mended.ledger.total
    assert slow.gain["seconds_per_output_token"] == pytest.approx(saved, rel=0.15)


def test_the_gain_of_giving_a_node_its_quota_back() -> None:
    slow, mended = analyse(simulate(quota={"node1": 0.4}).run()), analyse(simulate().run())
    assert slow.gain is not None
    saved = slow.ledger.total - mended.ledger.total
    assert slow.gain["seconds_per_output_token"] == pytest.approx(saved, rel=0.2)


def test_equal_causes_are_balanced() -> None:
    # 0.035 s of work in a step of decoding against 17 messages: alike at 2 ms, a little more with the prompts' work.
    load = {"input_tokens": 16, "output_tokens": 64}
    found = {analyse(simulate(message_seconds=each, **load).run()).name for each in (0.0018, 0.0021, 0.0024, 0.0027)}
    assert "balanced" in found
    assert found <= {"balanced", "link_latency", *WORK_CAUSES}


def test_a_link_far_below_its_promise_is_named_before_the_work_that_is_as_large() -> None:
    # 0.0012 s of work a prompt token against 34816 B of it: alike at 29 MB/s. The profile promises 1 GB/s.
    verdict = analyse(simulate(link_bytes_per_second=2.5e7).run())
    assert (verdict.name, verdict.fault) == ("link_bandwidth", True)
    assert any("by the profile direct carries" in item.statement for item in verdict.evidence)
    work = [item for item in verdict.candidates if item["class"] in WORK_CAUSES]
    assert sum(item["score"] for item in work) > 0.8 * verdict.score


def test_throttled_alike_is_no_straggler() -> None:
    verdict = analyse(simulate(quota={"node0": 0.4, "node1": 0.4}).run())
    assert verdict.name in WORK_CAUSES


def test_advice_names_the_place_and_the_setting() -> None:
    straggler = analyse(simulate(quota={"node1": 0.3}).run())
    assert any("cluster lab slow node1 --restore" in line for line in straggler.advice)
    queueing = analyse(simulate(max_num_seqs=2, concurrency=12, requests=24).run())
    assert any("now 2" in line and "--set max_num_seqs=8" in line for line in queueing.advice)
    assert straggler.title == "Straggler node1 (CPU quota)"


@pytest.mark.parametrize("deployment", ["pp2", "replicas", "single", "unheard-of"])
def test_other_deployments_are_analysed(deployment: str) -> None:
    run = simulate().run()
    assert run.profile is not None
    known = deployment in run.profile.deployments
    put = deployed(run.profile, deployment) if known else {"deployment": deployment, "workers": ()}
    run = replace(run, **put)
    verdict = analyse(run)
    assert_sound(verdict)
    assert not any("could not be analysed" in note for note in verdict.notes)
    total = math.fsum(entry.seconds for entry in verdict.ledger.entries)
    assert total == pytest.approx(verdict.ledger.total)
    assert verdict.name in (*WORK_CAUSES, "inconclusive", "balanced")


def test_the_link_is_the_one_the_workers_were_given() -> None:
    run = simulate().run()
    assert run.profile is not None
    run = replace(run, **deployed(run.profile, "tp2", {"link": "ethernet"}))
    verdict = analyse(run)
    assert verdict.measured["link"]["name"] == "ethernet"
    assert any("no samples of link ethernet" in note for note in verdict.notes)


def test_a_replica_that_is_throttled_is_a_straggler() -> None:
    run = simulate(quota={"node1": 0.3}).run()
    assert run.profile is not None
    before, after = (dict.fromkeys(("node0", "node1"), each["node0"]) for each in (run.engine_before, run.engine_after))
    verdict = analyse(replace(run, **deployed(run.profile, "replicas"), engine_before=before, engine_after=after))
    assert (verdict.name, verdict.where["node"], verdict.where["link"]) == ("straggler", "node1", None)


# -- bad input


def without_engine(run: Run) -> Run:
    for batch in run.batches:
        batch["engine"] = None
    return replace(run, engine_before={}, engine_after={})


def damaged(run: Run, how: str) -> Run:
    assert run.client is not None
    if how == "no engine":
        return without_engine(run)
    if how == "no samples":
        return replace(run, batches=())
    if how == "no ceilings":
        return replace(run, ceilings=Ceilings())
    if how == "no client":
        return replace(run, client=None)
    if how == "no profile":
        return replace(run, profile=None, workers=())
    if how == "one node silent":
        return replace(run, batches=tuple(batch for batch in run.batches if batch["node"] != "node1"))
    if how == "cut short":
        return replace(run, status="partial", batches=run.batches[: len(run.batches) // 3])
    if how == "engine restarted":
        more = {key: value * 1.5 + 1 for key, value in run.engine_after["node0"].to_flat().items()}
        return replace(run, engine_before={"node0": MetricsText.from_flat(more)})
    if how == "counters backwards":
        for batch in run.batches:
            for sample in batch["samples"]:
                sample["links"]["direct"] = [-value for value in sample["links"]["direct"]]
    elif how in ("clock a little off", "clock far off"):
        for batch in run.batches:
            for sample in batch["samples"]:
                if batch["node"] == "node1":
                    sample["t"] += 2.5 if how == "clock a little off" else 0.7 * run.seconds
    elif how == "a node that booted again":
        half = len(run.batches) // 2
        for batch in run.batches[half:]:
            batch["boot"] += "-again"
            batch["sequence"] -= half // 2
    elif how == "ceilings of another machine":
        return measured_anew(run, _forty_times)
    elif how == "not numbers":
        nothing = MetricsText.from_flat(dict.fromkeys(run.engine_after["node0"].to_flat(), math.nan))
        run = replace(run, engine_after={"node0": nothing})
        for batch in run.batches:
            for sample in batch["samples"]:
                sample["cgroup"]["throttled_s"] = math.nan
                sample["cpu"] = {"0": [None, "x"]}
    elif how == "zero output tokens":
        assert run.client is not None
        empty = (ClientRequest(request.input_tokens, 0, math.nan, (), math.nan) for request in run.client.requests)
        return without_engine(replace(run, client=replace(run.client, requests=tuple(empty))))
    elif how == "all failed":
        assert run.client is not None
        refused = (ClientRequest(256, 0, 0.0, (), 0.0, error="refused"),) * 16
        return without_engine(replace(run, client=replace(run.client, requests=refused, failed=16)))
    elif how == "garbage":
        broken: list[dict[str, Any]] = [{"node": 3, "samples": {"t": 1}, "engine": []}, {}]
        return replace(run, ceilings=Ceilings(), batches=(*broken, *run.batches[:3]))
    return run


def _forty_times(known: dict[str, Any]) -> None:
    for value in _estimates([*known["nodes"].values(), *known["links"].values()]):
        value |= {key: value[key] * 40 for key in ("median", "low", "high")}


def _estimates(document: Any) -> list[dict[str, Any]]:
    if isinstance(document, dict) and "median" in document:
        return [document]
    parts = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return [found for part in parts for found in _estimates(part)]


DAMAGES = [
    "clock a little off",
    "clock far off",
    "a node that booted again",
    "ceilings of another machine",
    "no engine",
    "no samples",
    "no ceilings",
    "no client",
    "no profile",
    "one node silent",
    "cut short",
    "engine restarted",
    "counters backwards",
    "not numbers",
    "zero output tokens",
    "all failed",
    "garbage",
]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(
    "name",
    [
        "link at 20 Mbit/s",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("healthy", "quota on node1", "few slots", "low rate")
        ),
    ],
)
def test_damage_never_gives_a_confident_wrong_answer(name: str, how: str) -> None:
    world, expected = next((cause[1], cause[2]) for cause in CAUSES if cause[0] == name)
    whole = analyse(simulate(**world).run())
    verdict = analyse(damaged(copy.deepcopy(simulate(**world).run()), how))
    assert_sound(verdict)
    if how not in ("ceilings of another machine", "a node that booted again"):  # nothing in them contradicts itself
        assert verdict.notes, "damage must be said"
    assert not any("could not be analysed" in note for note in verdict.notes)
    assert named(verdict, expected) or verdict.name in ("inconclusive", "balanced") or verdict.confidence < 0.7, (
        verdict.to_json()
    )
    assert verdict.confidence <= whole.confidence + 1e-9 or named(verdict, expected)


@pytest.mark.parametrize(
    ("how", "words"), [("clock a little off", "+2.5 s off"), ("clock far off", "clock may be off")]
)
def test_a_clock_that_is_off_is_reported_with_how_far(how: str, words: str) -> None:
    whole, run = analyse(simulate().run()), damaged(simulate().run(), how)
    verdict = analyse(run)
    assert any(words in note for note in verdict.notes), verdict.notes
    assert verdict.confidence < whole.confidence
    assert not any("clock" in note for note in whole.notes)


@pytest.mark.parametrize("how", ["zero output tokens", "all failed"])
def test_without_a_token_nothing_is_named(how: str) -> None:
    verdict = analyse(damaged(simulate().run(), how))
    assert verdict.name == "inconclusive"
    assert not verdict.ledger.entries


def test_nothing_at_all() -> None:
    for run in (Run(), window_run([], (0.0, 10.0))):
        verdict = analyse(run)
        assert verdict.name == "inconclusive" and verdict.confidence < 0.25
        assert_sound(verdict)


def test_one_request_lowers_confidence() -> None:
    one, many = analyse(simulate(requests=1, concurrency=1).run()), analyse(simulate().run())
    assert one.confidence <= 0.5 < many.confidence
    assert any("one request" in note for note in one.notes)


def test_a_window_without_requests_is_too_little_load() -> None:
    flat = {series_name("num_requests_running", MODEL): 0.0, series_name("num_requests_waiting", MODEL): 0.0}
    batches = [
        {"node": "node0", "boot": "b", "sequence": n, "t1": n, "samples": [], "engine": {"t": n, "metrics": flat}}
        for n in range(1, 10)
    ]
    verdict = analyse(window_run(batches, (0.0, 10.0)))
    assert verdict.name == "client_limited"
    assert verdict.confidence > 0.4


def test_json_and_back() -> None:
    verdict = analyse(simulate(link_bytes_per_second=2.5e6).run())
    document = json.loads(json.dumps(verdict.to_json()))
    assert document["schema"] == 2 and document["class"] == "link_bandwidth"
    assert set(document) >= {"class", "title", "where", "confidence", "evidence", "runners_up", "advice", "ledger"}
    again = Verdict.from_json(document)
    assert again.to_json()["ledger"] == document["ledger"]
    assert again.evidence == verdict.evidence
    assert Verdict.from_json({}).name == "inconclusive"
