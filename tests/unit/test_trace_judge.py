"""A trace as judge: what is kept of the profiler's traces, and what two ranks' traces say, worked out by hand."""

from __future__ import annotations

import gzip
import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import trace_judge
from bench.trace_judge import JudgeError, judged
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run_folder import load_run
from cli.gpu_lab.cases import all_cases
from cli.gpu_lab.rank_traces import ENDING, RankTrace, TraceError, reduced
from tests.run_builder import build_run

BASE = 1_790_000_000
ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
# Microseconds on one clock. Rank 0 is early at the first all-reduce by 100, rank 1 at the second by 20; each takes 30
# from the moment both are there. A step of a prompt, then one of answers; 1,000 in all.
FIRST = [("prompt", 0, 300), ("all", 300, 130), ("answer", 450, 250), ("all", 720, 30)]
SECOND = [("prompt", 0, 400), ("all", 400, 30), ("answer", 450, 240), ("all", 700, 50)]


def event(category: str, name: str, start: float, duration: float) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "pid": 0, "tid": 7}


def card_events(parts: list[tuple[str, int, int]], ahead: float = 0.0) -> list[dict[str, Any]]:
    """Return a card's events; `ahead` is how far its clock is."""
    events = [event("cpu_op", "aten::mm", 0, 900), {"ph": "i", "name": "mark", "ts": 3}]
    for what, start, duration in parts:
        if what == "all":
            events.append(event("kernel", ALL_REDUCE, start + ahead, duration))
            continue
        step = "execute_context_1(64)_generation_0(0)" if what == "prompt" else "execute_context_0(0)_generation_4(4)"
        events.append(event("gpu_user_annotation", step, start + ahead, duration + 40))
        events.append(event("kernel", "machete_mm", start + ahead, duration))
        # On another stream at the same time: counts once.
        events.append(event("gpu_memcpy", "Memcpy DtoH", start + ahead + 10, 50))
    return events


def written(folder: Path, rank: int, events: list[dict[str, Any]], base: int = BASE) -> Path:
    path = folder / f"dp0_pp0_tp{rank}_rank{rank}.1700{ENDING}"
    document = {"baseTimeNanoseconds": base * 10**9, "host_name": f"node{rank}", "traceEvents": events}
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    return path


@pytest.fixture
def ranks(tmp_path: Path) -> list[RankTrace]:
    # The second process counts from another moment: 3 s later, so that its events are 3 s earlier.
    late = [{**each, "ts": each["ts"] - 3e6} for each in card_events(SECOND)]
    paths = [written(tmp_path, 0, card_events(FIRST)), written(tmp_path, 1, late, BASE + 3)]
    return [reduced(path, float(BASE)) for path in paths]


def test_a_trace_is_reduced_to_its_collectives_and_the_work_between_them(ranks: list[RankTrace]) -> None:
    first, second = ranks
    assert (first.rank, first.host, first.device, first.names) == (0, "node0", "cards", (ALL_REDUCE,))
    assert first.collectives == ((0, 300.0, 130.0, 300.0, 2), (0, 720.0, 30.0, 250.0, 2))
    assert second.collectives == ((0, 400.0, 30.0, 400.0, 2), (0, 700.0, 50.0, 240.0, 2)), "on the first one's clock"
    assert first.steps == ((0.0, 340.0, 1, 64, 0, 0), (450.0, 290.0, 0, 0, 4, 4))
    assert first.kernels == (("machete_mm", 2, 550.0), ("Memcpy DtoH", 2, 100.0)), "operators are not a card's work"
    assert RankTrace.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_waiting_is_until_the_last_rank_enters_and_the_rest_moves_bytes(ranks: list[RankTrace]) -> None:
    found = judged(ranks, (0.0, 1000.0))
    assert (found.seconds, found.collectives, found.clock_offset) == (pytest.approx(0.001), 2, 0.0)
    first, second = found.ranks
    assert (first.work, first.transfer, first.waiting, first.idle) == pytest.approx((0.55, 0.06, 0.10, 0.29))
    assert (second.work, second.transfer, second.waiting, second.idle) == pytest.approx((0.64, 0.06, 0.02, 0.28))
    assert found.kinds["prefill"] == pytest.approx((0.03, 0.05))
    assert found.kinds["decode"] == pytest.approx((0.03, 0.01))


def test_a_rank_for_which_the_others_wait_is_late(ranks: list[RankTrace]) -> None:
    assert judged(ranks, (0.0, 1000.0)).late is None, "eight points are no lateness"
    assert judged(ranks, (0.0, 500.0)).late == 1


def test_a_message_to_the_next_stage_is_over_when_it_has_arrived() -> None:
    sender = RankTrace(0, "node0", "processors", ("gloo:send",), ((0, 100.0, 900.0, 100.0, 1),))
    receiver = RankTrace(1, "node1", "processors", ("gloo:recv",), ((0, 0.0, 150.0, 0.0, 0),))
    found = judged([sender, receiver], (0.0, 1000.0))
    assert (found.late, found.link) == (None, pytest.approx(0.05)), "a stage waits for the one before it anyway"
    first, second = found.ranks
    assert (first.transfer, first.waiting) == pytest.approx((0.05, 0.0))
    assert (second.transfer, second.waiting) == pytest.approx((0.05, 0.10))


def test_steps_that_a_card_does_not_mark_are_those_of_its_process(tmp_path: Path) -> None:
    events = [each | {"cat": each["cat"].replace("gpu_user", "user")} for each in card_events(FIRST) if "cat" in each]
    found = reduced(written(tmp_path, 0, events), float(BASE))
    assert [step[2:] for step in found.steps] == [(1, 64, 0, 0), (0, 0, 4, 4)]


def test_only_collectives_of_the_window_count(ranks: list[RankTrace]) -> None:
    found = judged(ranks, (500.0, 1000.0))
    assert found.collectives == 1
    assert found.ranks[1].waiting == pytest.approx(20 / 500)
    with pytest.raises(JudgeError, match="no collective between"):
        judged(ranks, (760.0, 1000.0))


def test_clocks_of_cards_are_set_by_the_ends_of_all_reduces(tmp_path: Path) -> None:
    paths = [written(tmp_path, 0, card_events(FIRST)), written(tmp_path, 1, card_events(SECOND, ahead=40.0))]
    ranks = [reduced(path, float(BASE)) for path in paths]
    found = judged(ranks, (0.0, 1000.0))
    assert found.clock_offset == pytest.approx(40e-6)
    assert [rank.waiting for rank in found.ranks] == pytest.approx([0.10, 0.02])


def test_ranks_with_other_collectives_are_not_judged(ranks: list[RankTrace]) -> None:
    with pytest.raises(JudgeError, match="rank 1 has 1 collectives and rank 0 2"):
        judged([ranks[0], replace(ranks[1], collectives=ranks[1].collectives[:1])])


def test_on_processors_collectives_are_gloos_and_operators_are_work(tmp_path: Path) -> None:
    events = [
        event("cpu_op", "_C::cpu_gemm_wna16", 0, 100),
        event("cpu_op", "c10d::allreduce_", 100, 60),
        event("user_annotation", "gloo:all_reduce", 110, 200),
        event("user_annotation", "execute_context_0(0)_generation_4(4)", 0, 400),
        event("cpu_op", "Torch-Compiled Region: 0/0", 330, 50),
        event("cpu_op", "aten::mul", 340, 20),
    ]
    found = reduced(written(tmp_path, 1, events), float(BASE))
    assert (found.device, found.rank, found.names) == ("processors", 1, ("gloo:all_reduce",))
    assert found.collectives == ((0, 110.0, 200.0, 110.0, 2),)
    assert found.work_after == 50.0


def test_what_is_no_whole_trace_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, 0, [event("kernel", "machete_mm", 0, 10)])
    with pytest.raises(TraceError, match="no collective among 1 events"):
        reduced(path, float(BASE))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TraceError, match="expected a trace of torch's profiler"):
        reduced(path, float(BASE))


def test_a_record_is_judged_against_the_ledger_of_its_run(
    tmp_path: Path, ranks: list[RankTrace], capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = analyse(load_run(build_run(tmp_path / "run")))
    record = tmp_path / "records" / "traces" / "trace-tp2-chat.json.xz"
    record.parent.mkdir(parents=True)
    document = {
        "trace": "trace-tp2-chat",
        "deployment": "tp2",
        "nodes": ["node0", "node1"],
        "runs": {"plain": "a", "traced": "b"},
        "seconds_per_token": {"plain": 0.1, "traced": 0.11},
        "verdicts": dict.fromkeys(("plain", "traced"), verdict.to_json()),
        "base_seconds": BASE,
        "window": [BASE, BASE + 0.001],
        "ranks": [rank.to_json() for rank in ranks],
    }
    record.write_bytes(lzma.compress(json.dumps(document).encode()))
    assert trace_judge.main([str(record), "--details"]) == 0
    printed = capsys.readouterr().out
    assert "node0: 55%, 6%, 10%, 29%; node1: 64%, 6%, 2%, 28% | 12.0%, waiting 6.0%" in printed
    ledger = trace_judge.steps_share(verdict.ledger)
    assert f"{100 * (ledger - 0.12):+.1f} ({100 * (ledger - 0.06):+.1f}) points" in printed
    assert "an output token took +10% of time with the profiler" in printed


def test_traces_come_in_an_order_that_starts_each_deployment_once() -> None:
    for device in ("cards", "processors"):
        deployments = [trace.deployment for trace in all_cases().traces_of(2, device)]  # type: ignore[arg-type]
        assert deployments == sorted(deployments, key=deployments.index), device
        assert deployments
