"""The sampler's spool: what is sent, sent again, given up; with a fake clock."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import spool


def filled(count: int, capacity: int = 600) -> spool.Spool:
    kept = spool.Spool("boot", capacity, 25.0)
    for number in range(count):
        kept.add({"node": "node0", "t0": float(number), "t1": float(number), "samples": [{"t": float(number)}]})
    return kept


def sequences(batches: list[dict[str, Any]]) -> list[int]:
    return [batch["sequence"] for batch in batches]


def send(kept: spool.Spool, now: float) -> list[int]:
    due = kept.due(now)
    for batch in due:
        kept.sent(batch, now)
    return sequences(due)


def test_batches_are_numbered_from_one_and_sent_once() -> None:
    kept = filled(3)
    assert send(kept, 0.0) == [1, 2, 3]
    assert send(kept, 1.0) == []
    assert len(kept) == 3


def test_acknowledged_batches_go_and_missing_ones_are_sent_again_at_once() -> None:
    kept = filled(6)
    send(kept, 0.0)
    assert kept.acknowledge({"boot": "boot", "sequence": 2, "missing": [3, 5]})
    assert len(kept) == 4
    assert send(kept, 1.0) == [3, 5]
    assert send(kept, 2.0) == []
    assert kept.resent == 2
    assert kept.acknowledge({"boot": "boot", "sequence": 6})
    assert (len(kept), kept.acknowledged, kept.oldest) == (0, 6, 7)


def test_a_batch_without_an_answer_is_sent_again_a_few_at_a_time() -> None:
    kept = filled(10)
    send(kept, 0.0)
    assert send(kept, 24.9) == []
    assert send(kept, 25.0) == [1, 2, 3, 4, 5]
    assert send(kept, 30.0) == [6, 7, 8, 9, 10]


def test_a_full_spool_drops_the_oldest_and_says_so() -> None:
    kept = filled(13, capacity=10)
    assert (len(kept), kept.dropped, kept.oldest) == (10, 3, 4)
    due = kept.due(0.0)
    assert sequences(due) == list(range(4, 14))
    assert {batch["sampler"]["oldest"] for batch in due} == {4}
    assert due[-1]["sampler"]["dropped"] == 3


def test_a_long_outage_comes_back_in_portions() -> None:
    kept = filled(100)
    assert send(kept, 0.0) == list(range(1, 21))
    assert send(kept, 1.0) == list(range(21, 41))


@pytest.mark.parametrize(
    "acknowledged",
    [
        None,
        [],
        {"boot": "another", "sequence": 3},
        {"boot": "boot", "sequence": 99},
        {"boot": "boot", "sequence": "3"},
        {"boot": "boot", "sequence": True},
        {"boot": "boot", "sequence": 1, "missing": 5},
        {"boot": ["boot"], "sequence": 3},
        {"boot": "boot"},
    ],
)
def test_an_acknowledgement_that_is_not_ours_changes_nothing(acknowledged: Any) -> None:
    kept = filled(3)
    assert not kept.acknowledge(acknowledged)
    assert len(kept) == 3


def test_a_spool_is_bounded_by_bytes_too() -> None:
    kept = spool.Spool("boot", 600, 25.0, 10_000)
    for number in range(20):
        kept.add({"t0": float(number), "fill": "x" * 2000})
    assert (len(kept), kept.dropped, kept.oldest) == (4, 16, 17)
    assert 8000 < kept.bytes <= 10_000


def test_a_control_node_that_is_only_slow_is_not_sent_the_same_again_and_again() -> None:
    """Seen by bench/telemetry_loss.py on a busy machine: 1,805 batches of 274 sent again, and none was acknowledged."""
    kept = spool.Spool("boot", 600, 10.0)
    kept.add({"n": 1})
    kept.add({"n": 2})
    times: list[int] = []
    for second in range(400):
        for batch in kept.due(float(second)):
            kept.sent(batch, float(second))
            times += [second] * (batch["sequence"] == 1)
        # It has the second, says so every four seconds, and the first is on its way all the time.
        if second % 4 == 0:
            kept.acknowledge({"boot": "boot", "sequence": 0, "missing": [1]})
    assert times == [0, 1, 11, 31, 71, 151, 311], "at once, then after 10, 20, 40 ... seconds"
