"""Counts of the bench of lost telemetry, worked out from numbers that were taken and stored: nothing is started."""

import importlib
import struct
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import telemetry_loss

    return telemetry_loss


def cluster(bench: ModuleType, folder: Path, taken: list[int], sent: list[int]) -> Any:
    (folder / "node0").mkdir()
    for name, numbers in (("taken", taken), ("sent", sent)):
        # Killed in the middle of a number: what is not whole was not taken.
        (folder / "node0" / name).write_bytes(struct.pack(f"<{len(numbers)}q", *numbers) + b"\1\2\3")
    made = bench.Cluster.__new__(bench.Cluster)
    made.folder, made.names = folder, ["node0"]
    made.profile = SimpleNamespace(nodes={"node0": SimpleNamespace(hostname="host0")})
    return made


def test_lost_and_twice_are_told_apart_and_counted_beside_plain_events(bench: ModuleType, tmp_path: Path) -> None:
    known = cluster(bench, tmp_path, taken=[10, 11, 12, 13, 99], sent=[20, 21, 22])
    listener = SimpleNamespace(arrived={"host0": [20, 22, 22]})
    row = bench._row(known, {"node0": [10, 11, 11, 13, 99]}, listener, "a fault", 0, 50)
    assert row == {
        "fault": "a fault",
        "taken": 4,
        "lost": 1,
        "twice": 1,
        "plain_sent": 3,
        "plain_lost": 1,
        "plain_twice": 1,
    }
    assert bench._row(known, {"node0": [99]}, listener, "later", 50, 100)["lost"] == 0


def test_a_clock_is_set_for_whoever_believes_the_bench(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clock").write_bytes(struct.pack("<d", -3600.0))
    loss_nodes = importlib.import_module("loss_nodes")
    monkeypatch.setenv(loss_nodes.CLOCK, str(tmp_path / "clock"))
    before = loss_nodes.time.time()
    monkeypatch.setattr(loss_nodes.time, "time", loss_nodes.time.time)  # put back at the end
    loss_nodes.believe_the_bench()
    assert loss_nodes.time.time() == pytest.approx(before - 3600.0, abs=30.0)


def test_the_page_has_every_fault_and_the_command(bench: ModuleType) -> None:
    row = {"fault": "cut", "taken": 1234, "lost": 0, "twice": 5, "plain_sent": 20, "plain_lost": 3, "plain_twice": 0}
    document = {"nodes": 2, "rate_hertz": 1000, "outage_seconds": 30.0, "faults": [row], "all": row}
    text = bench.page(document, "python bench/telemetry_loss.py --write")
    assert "| cut | 1,234 | 0 | 5 | 20 | 3 | 0 |" in text and "| **all** |" in text
    assert "python bench/telemetry_loss.py --write" in text and "2 nodes" in text and "30 s" in text
