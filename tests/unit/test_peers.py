"""Other programs on recorded scenarios: the replay they are shown, how their answers are judged, the page."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.peers.__main__ import PAGE, RECORD, asked, read_record
from bench.peers.answers import (
    FIRST,
    NAMED,
    OTHER,
    SILENT,
    SYMPTOM,
    UNREAD,
    WRONG,
    Answer,
    Finding,
    best_way,
    outcome,
    tally,
)
from bench.peers.cases import CASES, DATA, PeerCase
from bench.peers.page import filled, tables
from bench.peers.programs import Program, ProgramError
from bench.peers.replay import Recording, served
from bench.peers.tools import OUR_WAYS, OURS, PEERS, profiler_rows
from bottleneck.diagnosis.causes import CAUSES
from bottleneck.telemetry.prometheus_text import MetricsText

FULL_CACHE = PeerCase("h200/scenario_kv_preempt", "", ("kv_cache_capacity",))
ROOMY_CACHE = PeerCase("field_scenarios/one_engine_roomy", "", wrong=("kv_cache_capacity",))
CACHE = Finding(("KV cache pressure",), ("kv_cache_capacity",), ("critical", "high"))
QUEUE = Finding(("Queue pressure",), ("sequence_limit",), ("warning", "low"), symptom=True)
OTHER_LIMIT = Finding(("High load",), ("prefill_compute",), ("warning", "high"))


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording(FULL_CACHE.path)


def test_the_page_is_made_from_the_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, tables(read_record(RECORD))) == page, "python -m bench.peers --page"


def test_the_record_has_every_program_on_every_scenario_in_each_way() -> None:
    asked = [(line["program"], line["way"], line["scenario"]) for line in read_record(RECORD)]
    ways = {OURS: OUR_WAYS, **{name: tuple(peer.ways) for name, peer in PEERS.items()}}
    expected = [(name, way, case.name) for name, known in ways.items() for way in known for case in CASES]
    assert sorted(asked) == sorted(expected)


def test_the_record_has_the_words() -> None:
    for line in read_record(RECORD):
        answer = Answer.from_json(line)
        assert answer.unread or answer.verbatim or answer.findings, line
        assert all(finding.words for finding in answer.findings), line


def test_words_stand_for_classes_that_there_are() -> None:
    known = set(CAUSES)
    for tool, peer in PEERS.items():
        for words, meaning in peer.meanings.items():
            assert {*meaning.names, *meaning.excludes} <= known, (tool, words)


def test_scenarios_are_there_and_named_once() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert bool(case.right) != bool(case.wrong), case.name
        assert case.path.exists(), case.path
        assert not case.ceilings or (DATA / case.ceilings).exists(), case.ceilings


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ((CACHE, QUEUE), FIRST),
        ((OTHER_LIMIT, CACHE), NAMED),
        ((OTHER_LIMIT, Finding(("too",), ("kv_cache_capacity",), OTHER_LIMIT.rank)), FIRST),
        ((QUEUE,), SYMPTOM),
        ((QUEUE, OTHER_LIMIT), WRONG),
        ((Finding(("not the cache",), symptom=True, excludes=("kv_cache_capacity",)),), WRONG),
        ((), SILENT),
    ],
)
def test_an_answer_is_right_when_its_first_finding_names_the_cause(
    findings: tuple[Finding, ...], expected: str
) -> None:
    assert outcome(FULL_CACHE, Answer(findings)) == expected


def test_where_one_class_is_known_to_be_wrong_only_that_class_is() -> None:
    assert outcome(ROOMY_CACHE, Answer((OTHER_LIMIT,))) == OTHER
    assert outcome(ROOMY_CACHE, Answer((OTHER_LIMIT, CACHE))) == WRONG
    assert outcome(ROOMY_CACHE, Answer()) == SILENT
    assert outcome(ROOMY_CACHE, Answer(unread="no")) == UNREAD


def test_a_program_is_shown_at_its_best() -> None:
    cases = (FULL_CACHE, ROOMY_CACHE)
    silent, right = Answer(), Answer((CACHE,))
    ways = {
        "early": {FULL_CACHE.name: silent, ROOMY_CACHE.name: silent},
        "late": {FULL_CACHE.name: right, ROOMY_CACHE.name: right},
        "undecided": {FULL_CACHE.name: right, ROOMY_CACHE.name: silent},
    }
    assert best_way(cases, ways) == "undecided"
    assert (tally(cases, ways["late"])[FIRST], tally(cases, ways["late"])["false"]) == (1, 1)


def test_an_answer_survives_the_record() -> None:
    answer = Answer((CACHE, QUEUE), "health: critical")
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer


# -- replay


def test_a_replay_shows_the_readings_and_lets_the_counters_grow(recording: Recording) -> None:
    name = "vllm:generation_tokens_total"
    first, half, last = (MetricsText.parse(recording.text_at(share)) for share in (0.0, 0.5, 1.0))
    before, after = recording.before.value(name), MetricsText.parse(recording.document["metrics_after"]).value(name)
    assert before is not None and after is not None
    assert (first.value(name), last.value(name)) == (before, after)
    assert half.value(name) == pytest.approx((before + after) / 2)
    # The cache is full in the middle of the load, though the texts before and after it say that it is empty.
    assert (half.value("vllm:kv_cache_usage_perc") or 0.0) > 0.9
    assert len(half.select("vllm:kv_cache_usage_perc")) == 1


def test_a_gauge_that_only_the_readings_have_is_on_the_page() -> None:
    found = MetricsText.parse(Recording(DATA / "field_scenarios/scheduler_stuck.json.xz").text_at(0.5))
    assert found.value("vllm:num_requests_waiting") == 6.0


def test_a_replay_answers_as_prometheus_does(recording: Recording) -> None:
    (waiting,) = recording.query("vllm:num_requests_waiting", 0.5)
    assert waiting[1] == 40.0
    ((_, preempted),) = recording.query("increase(vllm:num_preemptions_total[5m])", 1.0)
    grown = MetricsText.parse(recording.text_at(1.0)).value("vllm:num_preemptions_total")
    assert preempted == pytest.approx((grown or 0.0) - (recording.before.value("vllm:num_preemptions_total") or 0.0))
    expression = "histogram_quantile(0.95, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket[5m])))"
    ((_, ttft),) = recording.query(expression, 1.0)
    timed = sorted(request["ttft"] for request in recording.document["requests"])
    # Histogram buckets are coarse: the quantile is in the bucket of the client's own.
    assert ttft == pytest.approx(timed[round(0.95 * len(timed))], rel=0.3)
    assert recording.query('vllm:request_success_total{finished_reason="none"}', 1.0) == []
    with pytest.raises(ValueError, match="this replay answers"):
        recording.query("rate(vllm:num_preemptions_total[5m])", 1.0)


def test_a_replay_is_served_on_loopback(recording: Recording) -> None:
    with served({"case": recording}) as address:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}/case/0.5/metrics", timeout=30) as page:
            assert page.headers["content-type"].startswith("text/plain")
            assert page.read().decode() == recording.text_at(0.5)
        query = urllib.parse.urlencode({"query": "vllm:num_requests_waiting"})
        with urllib.request.urlopen(f"{address}/case/0.5/api/v1/query?{query}", timeout=30) as found:
            assert json.load(found)["data"]["result"][0]["value"][1] == "40.0"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/unknown/0.5/metrics", timeout=30)


def test_requests_are_sent_again_by_as_many_clients() -> None:
    requests: list[dict[str, Any]] = [
        {"ttft": 0.1, "e2e": 1.0},
        {"ttft": 0.1, "e2e": 2.0},
        {"ttft": 0.1, "e2e": 1.0, "error": "reset"},
    ]
    rows = profiler_rows(requests, {"conc": 2, "L": 8, "O": 10})
    assert [row["sent_at"] for row in rows] == [0.0, 0.0, 1.0]
    assert [row["success"] for row in rows] == [True, True, False]
    assert sum(rows[0]["inter_token_latencies"]) == pytest.approx(0.9)


# -- programs


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Program]:
    def make(text: str) -> Program:
        program = Program(tmp_path, "asked", "1")
        file = program.folder / "bin" / "asked"
        file.parent.mkdir()
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return program

    return make


@pytest.mark.starts_programs
def test_a_program_that_fails_is_quoted_without_this_machines_folders(script: Callable[[str], Program]) -> None:
    with pytest.raises(ProgramError) as raised:
        script("echo /tmp/some/where/file is broken at 127.0.0.1:4711 >&2; exit 3").run("diagnose", "/tmp/other/file")
    assert str(raised.value) == "`asked diagnose file` ended with status 3: file is broken at 127.0.0.1:PORT"


@pytest.mark.starts_programs
def test_a_program_does_not_outlive_its_deadline(
    script: Callable[[str], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.peers.programs.ASK_SECONDS", 0.2)
    with pytest.raises(ProgramError, match="did not end within"):
        script("sleep 600 & wait").run()


def test_asking_one_program_leaves_the_others_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.__main__.ask_ours", lambda case, ceilings=None: Answer((OTHER_LIMIT,)))
    before = read_record(RECORD)
    after = asked([OURS], None, before)
    assert [line for line in after if line["program"] != OURS] == [line for line in before if line["program"] != OURS]
    assert {line["scenario"] for line in after if line["program"] == OURS} == {case.name for case in CASES}
    assert all(Answer.from_json(line).findings == (OTHER_LIMIT,) for line in after if line["program"] == OURS)
