"""The telemetry engine keeps going: no damaged or full store ends it, and nothing unstored is acknowledged."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt._logging

from bottleneck.profile import load_profile
from bottleneck.telemetry import batch_checks, cluster_state, cluster_view
from bottleneck.telemetry.store import Store
from tests import run_builder, sealing
from tests.by_file import load

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import spool as sampler_spool

NOW = 1_800_000_000.0


class Clock:
    """The clock of the day, which `set_by` moves, and the one that nobody sets."""

    now = NOW
    set_by = 0.0

    def wall(self) -> float:
        return self.now + self.set_by

    def steady(self) -> float:
        return self.now - NOW + 5.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture
def collector(store: Store, clock: Clock) -> Any:
    module = load("_engines/telemetry.py", "telemetry_engine")
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    return module.Collector(
        {"cluster_directory": store.path.parent}, load_profile(run_builder.PROFILE), store, clock.wall, clock.steady
    )


def batch(number: int, node: str = "node0", boot: str = "b", oldest: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "node": node,
        "boot": boot,
        "sequence": number,
        "t0": NOW - 100 + number,
        "t1": NOW - 99.1 + number,
        "samples": [{"t": NOW - 100 + number, "fill": os.urandom(2000).hex()}],
        "sampler": {"oldest": oldest, **more},
    }


def event(collector: Any, *numbers: int, node: str = "node0", **more: Any) -> dict[str, Any]:
    batches = [batch(number, node, **more) for number in numbers]
    data = sealing.event(collector._store.path.parent, node, batches)
    return {"tag": f"cluster/telemetry/batch/{node}", "data": data}


def acknowledged(collector: Any, node: str = "node0", boot: str = "b") -> Any:
    return cluster_state.acknowledgement(collector.state, node, boot)


def overwrite(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(os.urandom(size))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def test_a_store_that_is_damaged_under_the_engine_is_set_aside_and_what_is_still_kept_comes_again(
    collector: Any, store: Store, tmp_path: Path
) -> None:
    collector.step(event(collector, *range(1, 40)))
    assert acknowledged(collector)["sequence"] == 39
    store.close()
    overwrite(tmp_path / "store.db")
    collector.step(event(collector, 40))
    aside = [each.name for each in tmp_path.iterdir() if ".damaged-" in each.name]
    assert aside == ["store.db.damaged-20270115T080000"]
    # What the node still has, from 35 on, is not in the new store: nothing of it counts as acknowledged.
    assert acknowledged(collector)["sequence"] == 0
    collector.step(event(collector, 40, 41, oldest=35))
    assert acknowledged(collector) == {"boot": "b", "sequence": 34, "missing": [35, 36, 37, 38, 39]}
    collector.step(event(collector, *range(35, 40), oldest=35))
    assert acknowledged(collector)["sequence"] == 41


def test_a_full_store_ends_nothing_and_acknowledges_nothing_until_there_is_room(
    collector: Any, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    collector.step(event(collector, 1))
    (pages,) = store.rows("PRAGMA page_count")[0]
    store.rows(f"PRAGMA max_page_count={pages + 1}")
    for number in range(2, 30):
        clock.now += 1.0
        collector.step(event(collector, *range(number, number + 20)))
    assert acknowledged(collector)["sequence"] == 1
    assert collector.store_refusals == 28
    reported = [record.getMessage() for record in caplog.records if "full" in record.getMessage()]
    assert 2 <= len(reported) <= 4, "said, and not at every batch"
    store.rows("PRAGMA max_page_count=1000000")
    collector.step(event(collector, *range(2, 50)))
    assert acknowledged(collector)["sequence"] == 49


def test_a_batch_that_is_refused_for_good_does_not_keep_the_others_from_being_acknowledged(collector: Any) -> None:
    """Seen by bench/telemetry_loss.py: a batch across a clock that was set kept 134 after it waiting."""
    spool = sampler_spool.Spool("b", 600, 25.0)
    for number in range(1, 11):
        spool.add({**batch(number), "sampler": {}})
    for now in (0.0, 30.0, 60.0):
        due = spool.due(now)
        for each in due:
            spool.sent(each, now)
        sent = [{**each, "t0": NOW - 86_000.0} if each["sequence"] == 4 else each for each in due]
        data = sealing.event(collector._store.path.parent, "node0", sent)
        collector.step({"tag": "cluster/telemetry/batch/node0", "data": data})
        spool.acknowledge(acknowledged(collector))
    assert (len(spool), spool.dropped) == (0, 1)
    assert acknowledged(collector)["sequence"] >= 9 or not spool.due(99.0)


def test_a_batch_that_may_be_taken_later_or_is_not_the_senders_own_is_not_given_up(collector: Any) -> None:
    sound = batch(1)
    settings = collector.state.settings
    assert batch_checks.refused_for_good({**sound, "samples": []}, "node0", settings, NOW) == ("node0", "b", 1)
    assert batch_checks.refused_for_good({**sound, "samples": []}, "node1", settings, NOW) is None
    assert batch_checks.refused_for_good({**sound, "t1": NOW + 5000.0}, "node0", settings, NOW) is None
    assert batch_checks.refused_for_good({**sound, "sequence": -1}, "node0", settings, NOW) is None
    assert batch_checks.refused_for_good(sound, "node0", settings, NOW) is None
    assert batch_checks.refused_for_good([], "node0", settings, NOW) is None


# -- clocks


class Running:
    """Two nodes that send a batch every second, with clocks that can be set, and what the engine announces."""

    def __init__(self, collector: Any, clock: Clock) -> None:
        self.collector, self.clock = collector, clock
        self.ahead = {"node0": 0.0, "node1": 0.0}
        self.announced: list[tuple[str, dict[str, Any]]] = []
        self.sequence = 0
        collector._bus = collector._client = self

    def fire_event(self, data: dict[str, Any], tag: str) -> None:
        self.announced.append((tag, data))

    def cmd_async(self, *_: Any, **__: Any) -> None:
        """Take the jobs that acknowledge, as Salt's client would."""

    def run(self, seconds: int, nodes: tuple[str, ...] = ("node0", "node1"), knows_age: bool = True) -> None:
        for _ in range(seconds):
            self.clock.now += 1.0
            self.sequence += 1
            for node in nodes:
                end = self.clock.now - 0.5 + self.ahead[node]
                batch = {"node": node, "boot": "b", "sequence": self.sequence, "t0": end - 0.9, "t1": end}
                batch |= {"samples": [{"t": end - 0.9}, {"t": end}], "engine": None}
                batch["sampler"] = {"oldest": 1, **({"age_s": 0.49} if knows_age else {})}
                data = sealing.event(self.collector._store.path.parent, node, [batch])
                self.collector.step({"tag": f"cluster/telemetry/batch/{node}", "data": data})
            self.collector.step(None)

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [data for each, data in self.announced if each == tag]

    @property
    def windows(self) -> list[dict[str, Any]]:
        return self.of(cluster_view.WINDOW_TAG)


@pytest.fixture
def running(collector: Any, clock: Clock) -> Running:
    return Running(collector, clock)


@pytest.mark.parametrize("ahead", [0.0, 86_400.0, 1e9, -86_400.0 * 400, 3600.0])
def test_a_node_whose_clock_is_wrong_from_the_start_loses_nothing_and_is_named(
    running: Running, store: Store, ahead: float
) -> None:
    running.ahead["node0"] = ahead
    running.run(150)
    assert len(running.windows) >= 8
    assert all(window["nodes"] == ["node0", "node1"] for window in running.windows)
    assert running.collector.state.rejected == 0
    stored = store.batches(NOW - 10, NOW + 200)
    assert len(stored) == 300, "at the times at which they were taken"
    assert [batch["t1"] for batch in stored if batch["node"] == "node0"] == pytest.approx(
        [batch["t1"] for batch in stored if batch["node"] == "node1"], abs=0.1
    )
    named = running.of(cluster_view.CLOCK_TAG)
    assert named == ([{"node": "node0", "ahead_seconds": pytest.approx(ahead, abs=0.1)}] if ahead else [])
    assert running.of(cluster_view.LOST_TAG) == []


def test_a_node_whose_clock_is_set_while_it_runs_loses_nothing(running: Running, store: Store) -> None:
    running.run(30)
    running.ahead["node0"] = 3600.0
    running.run(30)
    running.ahead["node0"] = -7200.0
    running.run(30)
    running.ahead["node0"] = 0.0
    running.run(30)
    assert len(store.batches(NOW - 10, NOW + 200)) == 240
    found = [round(each["ahead_seconds"]) for each in running.of(cluster_view.CLOCK_TAG)]
    assert found == [3600, -7200, 0]
    assert len(running.windows) >= 7 and running.of(cluster_view.LOST_TAG) == []


@pytest.mark.parametrize("by", [-3600.0, 3600.0, -86_400.0])
def test_windows_go_on_and_a_dead_node_is_noticed_when_the_control_clock_is_set(
    running: Running, clock: Clock, by: float
) -> None:
    running.run(60)
    before = len(running.windows)
    clock.set_by = by
    running.run(120)
    assert len(running.windows) - before >= 7
    assert running.of(cluster_view.LOST_TAG) == [] and running.of(cluster_view.BACK_TAG) == []
    assert running.windows[-1]["end"] == pytest.approx(clock.wall(), abs=30.0), "by the new time"
    running.run(30, nodes=("node0",))
    assert [each["node"] for each in running.of(cluster_view.LOST_TAG)] == ["node1"]


def test_a_batch_that_was_kept_on_its_way_is_not_taken_for_a_wrong_clock(running: Running, collector: Any) -> None:
    running.run(10)
    running.clock.now += 300.0
    running.ahead["node0"] = -300.0
    running.run(1)
    assert running.of(cluster_view.CLOCK_TAG) == []


def test_what_cannot_be_and_has_no_age_is_of_now(running: Running, store: Store) -> None:
    running.ahead["node0"] = 86_400.0
    running.run(5, knows_age=False)
    assert len(store.batches(NOW - 10, NOW + 10)) == 10


def answer(collector: Any, node: str, boot: str) -> tuple[str, Any]:
    statuses: list[str] = []
    body = b"".join(
        collector._respond(
            lambda *_: [b""], {"PATH_INFO": f"/acknowledged/{node}/{boot}"}, lambda status, _: statuses.append(status)
        )
    )
    return statuses[0], json.loads(body)


def test_what_a_former_life_left_is_stored_and_acknowledged_and_is_no_news_of_the_node(
    collector: Any, store: Store
) -> None:
    collector.step(event(collector, 1, 2, boot="new"))
    collector.step(event(collector, 8, 9, boot="old", oldest=8, former=1))
    assert collector.state.nodes["node0"].boot == "new"
    assert acknowledged(collector, boot="new")["sequence"] == 2
    assert answer(collector, "node0", "old") == ("200 OK", {"boot": "old", "sequence": 9, "missing": []})
    assert answer(collector, "node0", "unknown")[0] == "404 Not Found"
    assert len(store.batches(0, 2 * NOW)) == 4
    # Also when it comes first after a restart of the engine.
    collector.step(event(collector, 1, boot="older", former=1, node="node1"))
    assert collector.state.nodes["node1"].boot == ""
    collector.step(event(collector, 1, boot="new", node="node1"))
    assert acknowledged(collector, "node1", "new")["sequence"] == 1
