"""Starts of an engine: storage is named where the workers wait for it, and never where they compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bottleneck.diagnosis.verdict import Verdict, analyse
from bottleneck.profile import load_profile
from bottleneck.runs.ceilings import Ceilings, NodeCeilings
from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import load_run
from tests.run_builder import save_run
from tests.unit.simulator import EPOCH, PROFILE, deployed

MB = 1e6
CEILING = 300 * MB
# What a start reads from an empty page cache: the engine's libraries and the weights.
COLD_BYTES = 600 * MB


def start(
    seconds: float = 60.0,
    *,
    waits: dict[str, float] | None = None,
    reads: dict[str, float] | None = None,
    computes: float = 0.9,
    delayed: float = 0.0,
    counted: bool = True,
    machine_reads: float = 0.0,
    machine_stalls: float = 0.0,
    ceilings: bool = True,
) -> Run:
    """Return a start: shares of the time that the workers of each node wait for storage, and bytes they read."""
    waits, reads = waits or {}, reads or {}
    batches: list[dict[str, Any]] = []
    for node in ("node0", "node1"):
        for second in range(int(seconds)):
            passed = float(second)
            own: dict[str, float] = {
                "cpu_user_s": computes * passed,
                "cpu_system_s": 0.05 * passed,
                "run_delay_s": delayed * passed,
            }
            if counted:
                own["storage_wait_s"] = waits.get(node, 0.0) * passed
                own["storage_read_bytes"] = reads.get(node, 0.0) * passed / seconds
            sample = {
                "t": EPOCH + passed,
                "cpu": {"0": [(computes + delayed) * passed, 0.0, 0.0, 0.0, 0.0, 0.0]},
                "workers": {"tp2-0": own},
                "disk": {"read_bytes": machine_reads * passed / seconds, "write_bytes": 0.0},
                "psi": {"io": [machine_stalls * passed, 0.0]},
            }
            batch = {"node": node, "boot": "b", "sequence": second + 1, "samples": [sample]}
            batches.append({**batch, "t0": sample["t"], "t1": EPOCH + passed + 1})
    found = NodeCeilings.model_validate({"disk_read_bytes_per_second": CEILING})
    profile = load_profile(PROFILE)
    return Run(
        id="a",
        interval=(EPOCH, EPOCH + seconds),
        profile=profile,
        **deployed(profile, "tp2"),
        ceilings=Ceilings(nodes=dict.fromkeys(("node0", "node1"), found)) if ceilings else Ceilings(),
        batches=tuple(batches),
        kind="start",
    )


def statements(verdict: Verdict) -> str:
    return "; ".join(item.statement for item in verdict.evidence)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("node", ["node0", "node1"])
def test_workers_that_wait_for_a_slow_disk_are_named(share: float, node: str) -> None:
    rate = 8 * MB
    verdict = analyse(start(100.0, waits={node: share}, reads={node: rate * share * 100}, computes=1 - share))
    assert (verdict.name, verdict.where["node"]) == ("weight_loading", node), statements(verdict)
    assert verdict.confidence > 0.5
    rates = [item.value for item in verdict.evidence if item.unit == "storage bytes/s"]
    assert rates == [pytest.approx(rate, rel=0.1)], "the rate while they waited, not over the whole start"
    assert "3% of what a probe read" in statements(verdict)
    assert "100 s of the start" in statements(verdict)


def test_a_fast_disk_that_is_read_at_its_ceiling_is_named_too() -> None:
    verdict = analyse(start(reads={"node1": 0.7 * CEILING * 60}, waits={"node1": 0.1}))
    assert (verdict.name, verdict.where["node"]) == ("weight_loading", "node1"), statements(verdict)


@pytest.mark.parametrize(
    "world",
    [
        {},
        {"computes": 0.3},
        # Cold, from a disk as fast as the probe says: two seconds of reading.
        {"reads": {"node0": COLD_BYTES}, "waits": {"node0": 0.06, "node1": 0.02}},
        {"waits": {"node0": 0.1, "node1": 0.1}, "reads": {"node0": 20 * MB, "node1": 20 * MB}},
        # Others read from this machine's disk and stall for it: the workers' own account says that they do not.
        {"machine_reads": 0.9 * CEILING * 60, "machine_stalls": 0.7},
    ],
)
def test_a_start_that_storage_does_not_hold_back_is_not_called_one(world: dict[str, Any]) -> None:
    verdict = analyse(start(**world))
    assert verdict.name == "balanced", (verdict.name, statements(verdict))
    assert verdict.confidence > 0.4 and "computed with" in statements(verdict) and not verdict.advice
    assert verdict.meaning == "Storage does not hold the start back: its own work takes the time."


def test_without_the_workers_own_account_the_machines_stands_in() -> None:
    counted = analyse(start(counted=False, machine_reads=300 * MB, machine_stalls=0.6))
    assert counted.name == "weight_loading" and any("do not tell" in note for note in counted.notes)
    assert analyse(start(counted=False, machine_stalls=0.6)).name == "balanced", "stalls, but nothing was read"


def test_no_ceiling_no_share_of_one() -> None:
    verdict = analyse(start(waits={"node0": 0.6}, reads={"node0": 300 * MB}, ceilings=False))
    assert verdict.name == "weight_loading" and "probe" not in statements(verdict)


def test_a_start_without_a_core_is_no_clean_bill() -> None:
    verdict = analyse(start(computes=0.3, delayed=0.65))
    assert verdict.name == "inconclusive" and "had no core" in statements(verdict)


def test_a_start_that_nobody_watched_says_nothing() -> None:
    run = start()
    assert analyse(replace(run, batches=())).name == "inconclusive"
    short = replace(run, batches=tuple(batch for batch in run.batches if batch["t1"] < EPOCH + 10))
    assert analyse(short).confidence < 0.6


def test_the_first_seconds_of_a_start_are_one_too() -> None:
    run = start(100.0, waits={"node0": 0.8}, reads={"node0": 640 * MB})
    assert analyse(run.window(EPOCH, EPOCH + 15)).name == "weight_loading"


def test_a_recorded_start_is_read_as_one(tmp_path: Path) -> None:
    run = start(waits={"node0": 0.5}, reads={"node0": 240 * MB})
    again = load_run(save_run(run, tmp_path / "run"))
    assert again.start and not any("client" in problem or "engine" in problem for problem in again.problems)
    assert analyse(replace(again, profile=run.profile)).name == "weight_loading"
