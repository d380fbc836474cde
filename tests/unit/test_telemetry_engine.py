"""The telemetry engine keeps going: no damaged or full store ends it, and nothing unstored is acknowledged."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt._logging

from bottleneck.profile import load_profile
from bottleneck.telemetry import cluster_state
from bottleneck.telemetry.store import Store
from tests import run_builder
from tests.by_file import load

NOW = 1_800_000_000.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


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
    return module.Collector({}, load_profile(run_builder.PROFILE), store, clock)


def event(*numbers: int, node: str = "node0", boot: str = "b", oldest: int = 1, **more: Any) -> dict[str, Any]:
    batches = [
        {
            "node": node,
            "boot": boot,
            "sequence": number,
            "t0": NOW - 100 + number,
            "t1": NOW - 99.1 + number,
            "samples": [{"t": NOW - 100 + number, "fill": os.urandom(2000).hex()}],
            "sampler": {"oldest": oldest, **more},
        }
        for number in numbers
    ]
    return {"tag": f"cluster/telemetry/batch/{node}", "data": {"id": node, "data": {"batches": batches}}}


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
    collector.step(event(*range(1, 40)))
    assert acknowledged(collector)["sequence"] == 39
    store.close()
    overwrite(tmp_path / "store.db")
    collector.step(event(40))
    aside = [each.name for each in tmp_path.iterdir() if ".damaged-" in each.name]
    assert aside == ["store.db.damaged-20270115T080000"]
    # What the node still has, from 35 on, is not in the new store: nothing of it counts as acknowledged.
    assert acknowledged(collector)["sequence"] == 0
    collector.step(event(40, 41, oldest=35))
    assert acknowledged(collector) == {"boot": "b", "sequence": 34, "missing": [35, 36, 37, 38, 39]}
    collector.step(event(*range(35, 40), oldest=35))
    assert acknowledged(collector)["sequence"] == 41


def test_a_full_store_ends_nothing_and_acknowledges_nothing_until_there_is_room(
    collector: Any, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    collector.step(event(1))
    (pages,) = store._rows("PRAGMA page_count")[0]
    store._rows(f"PRAGMA max_page_count={pages + 1}")
    for number in range(2, 30):
        clock.now += 1.0
        collector.step(event(*range(number, number + 20)))
    assert acknowledged(collector)["sequence"] == 1
    assert collector.store_refusals == 28
    reported = [record.getMessage() for record in caplog.records if "full" in record.getMessage()]
    assert 2 <= len(reported) <= 4, "said, and not at every batch"
    store._rows("PRAGMA max_page_count=1000000")
    collector.step(event(*range(2, 50)))
    assert acknowledged(collector)["sequence"] == 49


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
    collector.step(event(1, 2, boot="new"))
    collector.step(event(8, 9, boot="old", oldest=8, former=1))
    assert collector.state.nodes["node0"].boot == "new"
    assert acknowledged(collector, boot="new")["sequence"] == 2
    assert answer(collector, "node0", "old") == ("200 OK", {"boot": "old", "sequence": 9, "missing": []})
    assert answer(collector, "node0", "unknown")[0] == "404 Not Found"
    assert len(store.batches(0, 2 * NOW)) == 4
    # Also when it comes first after a restart of the engine.
    collector.step(event(1, boot="older", former=1, node="node1"))
    assert collector.state.nodes["node1"].boot == ""
    collector.step(event(1, boot="new", node="node1"))
    assert acknowledged(collector, "node1", "new")["sequence"] == 1
