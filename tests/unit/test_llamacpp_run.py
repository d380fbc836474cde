"""A recorded run of llama.cpp: its dialect is read, and what it does not count is missing and named."""

from pathlib import Path

import pytest

from bottleneck.diagnosis.causes import CAUSES
from bottleneck.diagnosis.verdict import _possible, analyse
from bottleneck.runs.run_folder import load_run
from bottleneck.runs.topology import Topology, find_topology

RUN = Path(__file__).parents[1] / "data" / "llamacpp"


def test_its_counters_agree_with_what_was_sent() -> None:
    run = load_run(RUN)
    assert (run.settings.engine, run.settings.engine_version) == ("llamacpp", "1:0.7.0+dfsg-2")
    assert run.settings.stage_layers == (5, 3)
    (engine,) = analyse(run).measured["engines"]
    assert (engine["prompt_tokens"], engine["generation_tokens"]) == (12 * 256, 12 * 32)
    assert 0 < engine["steps"] <= 12 * 33
    assert engine["running_max"] <= 4


def test_what_it_lacks_is_missing_and_said() -> None:
    verdict = analyse(load_run(RUN))
    (engine,) = verdict.measured["engines"]
    assert (engine["cache_usage_max"], engine["queue_seconds"], engine["preemptions"]) == (None, None, None)
    assert any("counts no requests" in note for note in verdict.notes)
    assert not any("no engine metrics" in note for note in verdict.notes)


def test_the_clients_times_stand() -> None:
    verdict = analyse(load_run(RUN))
    assert verdict.ledger is not None
    assert verdict.ledger.source.startswith("client")
    # 12 requests of 32 tokens, about 3 s each.
    assert verdict.ledger.total == pytest.approx(0.0953, rel=0.02)
    assert sum(entry.seconds for entry in verdict.ledger.entries) == pytest.approx(verdict.ledger.total, rel=1e-6)


def test_more_sequences_are_no_advice_for_stages_that_take_one_batch_at_a_time() -> None:
    run = load_run(RUN)
    assert run.profile is not None
    verdict = analyse(run)
    assert verdict.name == "pipeline_bubble"
    assert "serve a copy on each" in verdict.advice[0] and "concurrency" not in "".join(verdict.advice)


def test_more_sequences_are_advice_where_the_engine_says_that_stages_work_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Topology, "overlapping_stages", True)
    verdict = analyse(load_run(RUN))
    assert verdict.name == "pipeline_bubble"
    assert "--concurrency" in verdict.advice[0]


def test_advice_names_no_setting_that_the_engine_lacks() -> None:
    run = load_run(RUN)
    assert run.profile is not None
    settings = run.profile.engine_for(run.profile.deployments[run.deployment], "node0").settings()
    assert "enforce_eager" not in settings and "max_num_seqs" in settings
    host = CAUSES["host_overhead"].advice
    left = _possible(host, find_topology(run))
    assert len(left) == len(host) - 1 and not any("enforce_eager" in text for text in left)
    # vLLM has it, and where no profile says what serves, nothing is left out.
    vllm = load_run(RUN.parent / "runs" / "healthy")
    assert _possible(host, find_topology(vllm)) == host
    assert _possible(host, Topology()) == host
