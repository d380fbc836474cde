"""Read from the counts of a live window: cut prompts, a delayed API server, requests that still wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bottleneck.diagnosis.attribution.build import attribute
from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL
from bottleneck.diagnosis.observations.engine import EngineFacts, Waiting
from bottleneck.diagnosis.observations.observed import BusyTime, Observations
from bottleneck.plan.workers import ServerSettings
from bottleneck.runs.topology import Group, Topology

# Of 4 prompts of 700 tokens in pieces of 50, none of which but the last made a token, and 20 steps of decoding.
FACTS = EngineFacts(
    "node0",
    requests=4.0,
    queue_seconds=0.0,
    prefill_seconds=6.0,
    decode_seconds=2.0,
    latency_seconds=8.0,
    prompt_tokens=2800.0,
    generation_tokens=24.0,
    finished_tokens=24.0,
    steps=24.0,
    readings=3,
    counted_seconds=10.0,
    running_mean=1.0,
)


def observed(facts: EngineFacts, budget: int | None = None) -> Observations:
    topology = Topology((Group("node0", ("node0",)),), ServerSettings(max_num_batched_tokens=budget))
    return Observations(topology, (facts,), time=BusyTime(10.0, 8.0, "engine metrics"), live=True)


@pytest.mark.parametrize(("budget", "prompting"), [(50, 56.0), (None, 4.0)])
def test_pieces_of_prompts_take_no_step_of_decoding_away(budget: int | None, prompting: float) -> None:
    work = {each.kind: each for each in attribute(observed(FACTS, budget), (0.0, 10.0)).ledger.work}
    assert work[PREFILL].steps == pytest.approx(prompting)
    assert work[DECODE].steps == pytest.approx(20.0), "the engine counts the last piece of a prompt alone"


def test_latency_beyond_the_engines_phases_is_before_or_after_it() -> None:
    ledger = attribute(observed(replace(FACTS, latency_seconds=32.0)), (0.0, 10.0)).ledger
    assert ledger.total == pytest.approx(32.0 / 24.0)
    assert ledger.phase("client") == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("reasons", "share"), [(Waiting(slots=1.0), 1 / 3), (Waiting(cache=0.5, step=0.5), 1 / 5), (Waiting(step=1.0), 0.0)]
)
def test_those_that_wait_beyond_the_window_count(reasons: Waiting, share: float) -> None:
    waiting = replace(FACTS, running_mean=2.0, waiting_mean=1.0, waiting=reasons)
    assert attribute(observed(waiting), (0.0, 10.0)).ledger.phase("queue") == pytest.approx(share)
    whole_run = replace(observed(waiting), live=False)
    assert attribute(whole_run, (0.0, 10.0)).ledger.phase("queue") == 0.0, "there every request finished"
