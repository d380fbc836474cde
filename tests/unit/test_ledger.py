"""The ledger: parts that sum to the whole, and parts of the right size."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from bottleneck.diagnosis.attribution.build import attribute
from bottleneck.diagnosis.attribution.ledger import Ledger
from bottleneck.diagnosis.causes import WORK as WORK_CAUSES
from bottleneck.diagnosis.observations.client import busy_time
from bottleneck.diagnosis.observations.gather import gather
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run import Run
from bottleneck.telemetry.prometheus_text import MetricsText
from tests.vllm_metrics import series_name

from .simulator import MODEL, Simulation, measured_anew, simulate

WORLDS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "link": {"link_bytes_per_second": 2.5e6},
    "quota": {"quota": {"node1": 0.3}},
    "slots": {"max_num_seqs": 2, "concurrency": 12, "requests": 24},
    "cache": {"cache_tokens": 1300, "concurrency": 12, "requests": 24, "output_tokens": 96},
    "rate": {"concurrency": None, "arrival_seconds": 5.0, "requests": 8},
}


def ledger_of(run: Run) -> Ledger:
    return attribute(gather(run), run.interval).ledger


def assert_identity(ledger: Ledger) -> None:
    assert math.fsum(entry.seconds for entry in ledger.entries) == pytest.approx(ledger.total, rel=1e-9)
    assert math.fsum(entry.share for entry in ledger.entries) == pytest.approx(1.0, rel=1e-9)
    for entry in ledger.entries:
        assert entry.seconds > 0, entry
        assert entry.source, entry
        assert entry.end > entry.start


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("live", [False, True])
def test_parts_sum_to_the_whole(world: str, live: bool) -> None:
    simulation = simulate(**WORLDS[world])
    middle = simulation.now / 2
    ledger = ledger_of(simulation.window(middle - 5, middle + 5) if live else simulation.run())
    assert_identity(ledger)


def test_the_whole_is_what_the_client_waited() -> None:
    run = simulate().run()
    assert run.client is not None
    seconds = sum(request.latency_seconds for request in run.client.good)
    assert ledger_of(run).total == pytest.approx(seconds / (16 * 32))


def true_share(simulation: Simulation, per_token_bytes: float = 17 * 2048) -> float:
    """The link's share of the time in steps, as the simulator made it."""
    world = simulation.world
    tokens = world.requests * (world.input_tokens + world.output_tokens - 1)
    return tokens * per_token_bytes / world.link_bytes_per_second / simulation.now


@pytest.mark.parametrize("rate", [1e6, 2.5e6, 1e7, 4e7])
def test_link_transfer_is_as_large_as_it_was_made(rate: float) -> None:
    simulation = simulate(link_bytes_per_second=rate)
    ledger = ledger_of(simulation.run())
    assert ledger.of("link_transfer") == pytest.approx(true_share(simulation), abs=0.06)
    links = {entry.link for entry in ledger.entries if entry.resource == "link_transfer"}
    assert links == {"direct"}


def test_link_latency_is_messages_times_probe() -> None:
    simulation = simulate(message_seconds=0.002)
    expected = simulation.steps * 17 * 0.002 / simulation.now
    assert ledger_of(simulation.run()).of("link_latency") == pytest.approx(expected, rel=0.2)


def test_link_latency_is_the_lower_of_what_the_two_probes_say() -> None:
    run = simulate(message_seconds=0.002).run()
    quiet = ledger_of(measured_anew(run, lambda known: known["allreduce"].update(sizes={}))).of("link_latency")

    def with_collective(low: float, median: float) -> float:
        message = {"2048": {"median": median, "low": low, "high": 1.5 * median, "samples": 9}}
        changed = measured_anew(run, lambda known: known["allreduce"].update(sizes=message))
        return ledger_of(changed).of("link_latency")

    assert with_collective(0.015, 0.02) == pytest.approx(quiet, rel=0.01), "a probe whose peers had no core"
    assert with_collective(0.001, 0.003) == pytest.approx(quiet * 0.001 / (0.95 * 0.002), rel=0.01)


def test_the_wait_for_a_running_step_is_what_the_engine_did_not_count() -> None:
    run = simulate().run()
    assert run.client is not None
    unseen = 0.4 * ledger_of(run).total * 16 * 32
    # The client and the engine's whole latency have it, the engine's phases do not.
    requests = tuple(
        dataclasses.replace(request, latency_seconds=request.latency_seconds + unseen / 16)
        for request in run.client.requests
    )
    after = run.engine_after["node0"].to_flat()
    after[series_name("e2e_request_latency_seconds_sum", MODEL)] += unseen
    run = dataclasses.replace(
        run,
        client=dataclasses.replace(run.client, requests=requests),
        engine_after={"node0": MetricsText.from_flat(after)},
    )
    ledger = ledger_of(run)
    assert_identity(ledger)
    waited = ledger.share(lambda entry: entry.resource == "step_wait")
    assert waited == pytest.approx(0.4 / 1.4, rel=0.02) and ledger.phase("queue") == pytest.approx(waited, abs=0.01)
    assert analyse(run).name in WORK_CAUSES, "it comes of long steps and is no cause of its own"


@pytest.mark.parametrize("node", ["node0", "node1"])
def test_throttling_is_the_slow_nodes_and_as_large_as_it_was(node: str) -> None:
    ledger = ledger_of(simulate(quota={node: 0.4}).run())
    assert ledger.of("throttled") == pytest.approx(0.57, abs=0.08)
    assert {entry.node for entry in ledger.entries if entry.resource == "throttled"} == {node}


def test_parallel_nodes_do_not_add_up() -> None:
    ledger = ledger_of(simulate().run())
    by_phase: dict[str, set[str | None]] = {}
    for entry in ledger.entries:
        if entry.resource == "compute":
            by_phase.setdefault(entry.phase, set()).add(entry.node)
    assert by_phase and all(len(nodes) == 1 for nodes in by_phase.values())


def test_queueing_is_the_engines_own_figure() -> None:
    simulation = simulate(**WORLDS["slots"])
    waited = sum(request.scheduled - request.arrived for request in simulation.finished)
    ledger = ledger_of(simulation.run())
    assert ledger.phase("queue") * ledger.total == pytest.approx(waited / (24 * 32), rel=1e-6)


def test_stalls_by_other_prompts_carry_the_prompts_parts_into_decode() -> None:
    ledger = ledger_of(simulate(link_bytes_per_second=2.5e6).run())
    decode = [entry for entry in ledger.entries if entry.phase == "decode" and entry.resource == "link_transfer"]
    assert decode and decode[0].seconds > 0


def test_too_much_is_scaled_down_and_reported() -> None:
    run = simulate().run()
    after = run.engine_after["node0"].to_flat()
    after[series_name("request_decode_time_seconds_sum", MODEL)] *= 4
    run = dataclasses.replace(run, engine_after={"node0": MetricsText.from_flat(after)})
    ledger = ledger_of(run)
    assert_identity(ledger)
    assert any("scaled down" in note for note in ledger.notes)


def test_parts_larger_than_their_phase_are_scaled_down_and_reported() -> None:
    run = simulate().run()
    run = measured_anew(
        run, lambda known: [way.update(bandwidth_bytes_per_second=1e5) for way in known["links"]["direct"].values()]
    )
    ledger = ledger_of(run)
    assert_identity(ledger)


def test_without_an_engine_the_phases_are_the_clients() -> None:
    run = simulate().run()
    run = dataclasses.replace(run, engine_before={}, engine_after={})
    for batch in run.batches:
        batch["engine"] = None
    ledger = ledger_of(run)
    assert_identity(ledger)
    assert ledger.phase("queue") == 0 and ledger.phase("prefill") > 0.3
    assert any("did not tell its phases" in note for note in ledger.notes)


def test_without_tokens_there_is_no_ledger() -> None:
    ledger = ledger_of(Run())
    assert not ledger.entries and ledger.total == 0 and ledger.notes


def test_a_window_in_which_nothing_finished_uses_the_mean_number_of_requests() -> None:
    simulation = simulate(output_tokens=400, requests=4)
    ledger = ledger_of(simulation.window(4, 12))
    assert_identity(ledger)
    assert any("no request finished" in note for note in ledger.notes)
    # Four ran all the time, one step gives each a token.
    step = simulation.world.decode_step_seconds + 17 * simulation.world.message_seconds
    assert ledger.total == pytest.approx(step, rel=0.25)


def test_json_and_back() -> None:
    ledger = ledger_of(simulate().run())
    again = Ledger.from_json(ledger.to_json())
    assert again == ledger
    document = ledger.to_json()
    assert document["unit"] == "seconds per output token"
    assert set(document["entries"][0]) >= {"phase", "node", "link", "resource", "seconds", "share", "source"}


def test_busy_time_is_the_union() -> None:
    assert busy_time([(0, 2), (1, 3), (5, 6), (5.5, 5.6)]) == pytest.approx(4)
    assert busy_time([]) == 0
