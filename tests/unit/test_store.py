"""The store: once each, in any order, across restarts and processes."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bottleneck.telemetry.database import StoreDamagedError, StoreError, StoreUnavailableError
from bottleneck.telemetry.store import Store
from bottleneck.telemetry.store_recovery import make_room, open_or_begin_anew, set_aside


def batch(sequence: int, node: str = "node0", boot: str = "b1", **more: Any) -> dict[str, Any]:
    return {"node": node, "boot": boot, "sequence": sequence, "t0": sequence - 1.0, "t1": float(sequence), **more}


def put(store: Store, batch: dict[str, Any]) -> bool:
    """Store one batch; return whether it is new."""
    ((new, _),) = store.put_batches([batch])
    return new


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "store.db")


def test_a_batch_is_kept_once(store: Store) -> None:
    assert put(store, batch(1, samples=[{"t": 0.5}])) is True
    assert put(store, batch(1, samples=[])) is False
    assert store.batches(0, 10) == [batch(1, samples=[{"t": 0.5}])]


def test_watermark_is_the_highest_number_without_a_gap(store: Store) -> None:
    assert store.watermark("node0", "b1") == 0
    for sequence, expected in ((2, 0), (3, 0), (1, 3), (5, 3), (7, 3), (4, 5), (6, 7)):
        assert put(store, batch(sequence))
        assert store.watermark("node0", "b1") == expected
    assert store.watermark("node1", "b1") == 0


def test_batches_that_came_together_are_stored_together(store: Store) -> None:
    put(store, batch(2))
    assert store.put_batches([batch(1), batch(2), batch(4)]) == [(True, 2), (False, 2), (True, 2)]
    with pytest.raises(ValueError, match="sequence"):
        store.put_batches([batch(3), {**batch(5), "sequence": "many"}])
    assert store.watermark("node0", "b1") == 2, "all of them or none"
    assert store.put_batches([]) == []


def test_boots_and_nodes_count_for_themselves(store: Store) -> None:
    for one in (batch(1), batch(1, boot="b2"), batch(1, node="node1"), batch(2, node="node1")):
        assert put(store, one)
    assert [store.watermark(*key) for key in (("node0", "b1"), ("node0", "b2"), ("node1", "b1"))] == [1, 1, 2]
    assert store.last_seen() == {"node0": 1.0, "node1": 2.0}


def test_batches_of_an_interval(store: Store) -> None:
    for sequence in (3, 1, 2, 4):
        put(store, batch(sequence))
        put(store, batch(sequence, node="node1"))
    for span in ((1.5, 2.5), (2.0, 2.0)):
        found = [(one["node"], one["sequence"]) for one in store.batches(*span)]
        assert found == [("node0", 2), ("node1", 2), ("node0", 3), ("node1", 3)]
    assert len(store.batches(0, 10)) == 8


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    with Store(tmp_path / "store.db") as first:
        for sequence in (1, 2, 4):
            put(first, batch(sequence))
    with Store(tmp_path / "store.db") as second:
        assert second.watermark("node0", "b1") == 2
        assert put(second, batch(2)) is False
        assert put(second, batch(3)) is True
        assert second.watermark("node0", "b1") == 4


def test_what_was_pruned_does_not_come_back(store: Store) -> None:
    for sequence in range(1, 6):
        put(store, batch(sequence))
    store.put_verdict({"window": "w1", "start": 0, "end": 2}, {"class": "prefill_compute"})
    assert store.prune(4.0) == 3
    assert [one["sequence"] for one in store.batches(0, 10)] == [4, 5]
    assert store.latest_verdict() is None
    assert store.watermark("node0", "b1") == 5
    assert put(store, batch(2)) is False


def test_what_lies_far_ahead_is_not_the_newest_and_goes(store: Store) -> None:
    put(store, {**batch(1), "t0": 1e6, "t1": 1e6 + 1})
    put(store, batch(2))
    store.put_verdict({"window": "ahead", "start": 1e6, "end": 1e6 + 10}, {"class": "prefill_compute"})
    store.put_verdict({"window": "now", "start": 90, "end": 100}, {"class": "link_latency"})
    latest = store.latest_verdict(until=130.0)
    assert latest is not None and latest["window"]["window"] == "now"
    assert store.latest_verdict(until=50.0) is None
    assert store.prune(0.0, 130.0) == 1
    assert [one["sequence"] for one in store.batches(0, 1e9)] == [2]
    newest = store.latest_verdict()
    assert newest is not None and newest["window"]["window"] == "now"


def test_marks_of_gone_boots_are_pruned(store: Store) -> None:
    put(store, batch(1, boot="old"))
    store.prune(50.0)
    assert store.watermark("node0", "old") == 0


def test_a_gap_that_never_fills_can_be_given_up(store: Store) -> None:
    for sequence in (1, 5, 6):
        put(store, batch(sequence))
    assert store.skip("node0", "b1", 5) == 6
    assert store.watermark("node0", "b1") == 6
    assert store.skip("node0", "b1", 2) == 6
    assert put(store, batch(3)) is False


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {**batch(1), "node": ""},
        {**batch(1), "boot": None},
        {**batch(1), "sequence": 0},
        {**batch(1), "sequence": 1.5},
        {**batch(1), "sequence": "x"},
        {**batch(1), "t1": float("nan")},
    ],
)
def test_a_batch_without_identity_is_refused(store: Store, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="batch"):
        put(store, wrong)
    assert store.batches(0, 10) == []


def test_verdicts_newest_first_and_replaced(store: Store) -> None:
    for index, name in enumerate(("prefill_compute", "straggler", "prefill_compute")):
        store.put_verdict({"window": f"w{index}", "start": index, "end": index + 1}, {"class": name, "n": index})
    store.put_verdict({"window": "w1", "start": 1, "end": 2}, {"class": "balanced", "n": 9})
    latest = store.latest_verdict()
    assert latest is not None and latest["verdict"] == {"class": "prefill_compute", "n": 2}
    assert latest["window"]["window"] == "w2"
    assert [item["verdict"]["n"] for item in store.verdict_history()] == [2, 9, 0]
    assert len(store.verdict_history(limit=2)) == 2
    with pytest.raises(ValueError, match="window"):
        store.put_verdict({"start": 0, "end": 1}, {})


def test_two_stores_write_at_once(tmp_path: Path) -> None:
    # Two connections with threads stand for two processes: SQLite locks the file alike.
    stores = [Store(tmp_path / "store.db"), Store(tmp_path / "store.db")]
    added: list[bool] = []

    def write(store: Store) -> None:
        added.extend(put(store, batch(sequence)) for sequence in range(1, 101))

    threads = [threading.Thread(target=write, args=(one,)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added) == 100 and len(added) == 200
    assert stores[0].watermark("node0", "b1") == stores[1].watermark("node0", "b1") == 100


def test_a_foreign_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    with pytest.raises(StoreError, match=r"notes\.txt"):
        Store(tmp_path / "notes.txt")
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version=9")
    newer.close()
    with pytest.raises(StoreError, match="version 9"):
        Store(tmp_path / "newer.db")


def test_what_is_stored_of_a_life_is_told_as_its_sampler_asks(store: Store) -> None:
    assert store.stored("node0", "b1") is None
    store.put_batches([batch(1), batch(2)])
    assert store.stored("node0", "b1") == {"boot": "b1", "sequence": 2, "missing": []}
    store.put_batches([batch(4), batch(7)])
    assert store.stored("node0", "b1") == {"boot": "b1", "sequence": 2, "missing": [3, 5, 6]}
    assert store.stored("node1", "b1") is None


# -- damage, and disks that take nothing


def damaged(path: Path) -> None:
    """Write a store and overwrite all of its pages but the first few."""
    with Store(path) as store:
        store.put_batches([batch(sequence, fill=os.urandom(2000).hex()) for sequence in range(1, 300)])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(os.urandom(size - 4096 * 2))


def test_a_damaged_store_is_set_aside_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    damaged(path)
    content = path.read_bytes()
    store, aside = open_or_begin_anew(path, 1_800_000_000.0)
    assert aside == tmp_path / "store.db.damaged-20270115T080000"
    assert aside.read_bytes() == content, "a person may still want what is left of it"
    assert put(store, batch(300)) and len(store.batches(0, 1e9)) == 1
    store.close()
    again, nothing = open_or_begin_anew(path, 1_800_000_001.0)
    assert nothing is None and len(again.batches(0, 1e9)) == 1


def test_a_file_that_is_no_database_is_set_aside_as_well(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(os.urandom(4096))
    with pytest.raises(StoreDamagedError, match=r"store\.db"):
        Store(path)
    _, aside = open_or_begin_anew(path, 1_800_000_000.0)
    assert aside is not None and aside.exists()


def test_damage_that_shows_later_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    damaged(path)
    with Store(path) as store, pytest.raises(StoreDamagedError, match="is damaged"):
        store.put_batches([batch(sequence) for sequence in range(1000, 1100)])


def test_a_row_that_was_overwritten_is_left_out(store: Store) -> None:
    store.put_batches([batch(1), batch(2)])
    with store.change() as connection:
        connection.execute("UPDATE batches SET payload=? WHERE sequence=1", (b"overwritten",))
    assert [one["sequence"] for one in store.batches(0, 10)] == [2]


def test_only_the_last_few_damaged_stores_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    for moment in range(6):
        path.write_bytes(os.urandom(4096))
        os.utime(path, (moment, moment))
        set_aside(path, 1_800_000_000.0 + moment // 2)
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "store.db.damaged-20270115T080001-2",
        "store.db.damaged-20270115T080002",
        "store.db.damaged-20270115T080002-2",
    ]


def test_what_was_stored_has_reached_the_disk_before_it_is_acknowledged(store: Store) -> None:
    # 2 is FULL: the write-ahead log is synchronised at every commit. https://www.sqlite.org/pragma.html
    assert store.rows("PRAGMA synchronous") == [(2,)]


def test_on_a_disk_that_is_nearly_full_the_oldest_give_their_room_to_the_newest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=20_000_000, used=0, free=2_000_000)
    monkeypatch.setattr("bottleneck.telemetry.store_recovery.shutil.disk_usage", lambda _: usage)
    fill = os.urandom(2000).hex()
    store.put_batches([batch(sequence, fill=fill + str(sequence)) for sequence in range(1, 1001)])
    assert make_room(store) == 0, "there is room on the disk"
    usage.free = 900_000
    pages = []
    for first in range(1001, 4001, 100):
        assert make_room(store) in (0, *range(90, 130))
        store.put_batches([batch(sequence, fill=fill + str(sequence)) for sequence in range(first, first + 100)])
        pages.append(store.rows("PRAGMA page_count")[0][0])
    assert max(pages[3:]) <= min(pages[3:]) * 1.05, "the file stays as large as it is"
    kept = [one["sequence"] for one in store.batches(0, 1e9)]
    assert kept[-1] == 4000 and kept == list(range(kept[0], 4001)), "the newest are there, without a gap"
    assert store.watermark("node0", "b1") == 4000


def test_a_full_store_says_so_and_goes_on_when_there_is_room(store: Store) -> None:
    put(store, batch(1))
    (pages,) = store.rows("PRAGMA page_count")[0]
    store.rows(f"PRAGMA max_page_count={pages + 1}")
    with pytest.raises(StoreUnavailableError, match="full"):
        store.put_batches([batch(sequence, fill=os.urandom(2000).hex()) for sequence in range(2, 30)])
    assert store.watermark("node0", "b1") == 1, "all of them or none"
    store.rows("PRAGMA max_page_count=100000")
    assert put(store, batch(2)) and store.watermark("node0", "b1") == 2
