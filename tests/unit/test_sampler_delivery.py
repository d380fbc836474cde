"""The sampler's pacing, its spool and its delivery, with a fake clock and a fake bus; no process, no sleep."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import delivery
import node_files
import sampler
import spool

# -- pacing and batches


def test_ticks_are_multiples_of_the_period_and_do_not_drift() -> None:
    pacer, now, ticks = sampler.Pacer(10.0, 1.0, 5.0), 1000.031, []
    for work in [0.0004] * 5 + [0.03] + [0.0004] * 40:
        now += pacer.wait_seconds(now) + 0.0002  # a wake-up is a little late
        ticks.append(now)
        now += work
    assert ticks[0] == pytest.approx(1000.1002)
    assert ticks[-1] == pytest.approx(1000.1002 + 0.1 * (len(ticks) - 1))
    assert pacer.late == 0


def test_a_tick_that_has_passed_is_skipped_and_counted() -> None:
    pacer = sampler.Pacer(10.0, 1.0, 5.0)
    assert pacer.wait_seconds(1000.05) == pytest.approx(0.05)
    assert pacer.wait_seconds(1000.35) == pytest.approx(0.05)
    assert pacer.late == 2
    # The clock is slewed: the wait ended a hair before the tick. It is not taken twice.
    assert pacer.wait_seconds(1000.39999) == pytest.approx(0.10001)


class Taking:
    """A sampler over a fake machine and a fake clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.batches: list[dict[str, Any]] = []
        self.sent: list[int] = []
        self.pacer = sampler.Pacer(10.0, 1.0, 5.0)
        self.engine: dict[str, Any] | None = None
        self.sampler = sampler.Sampler(
            "node0", self, self.pacer, self.deliver, lambda: self.engine, lambda: self.now, lambda: 0.25
        )

    def deliver(self, batch: dict[str, Any], send: bool) -> None:
        self.batches.append(batch)
        if send:
            self.sent.append(len(self.batches))

    def read(self, now: float, complete: bool) -> dict[str, Any]:
        return {"t": now, "complete": complete}

    def parse(self, readings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return readings

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now += self.pacer.wait_seconds(self.now)
            self.sampler.take()


def test_a_batch_is_a_second_of_samples_and_its_first_is_complete() -> None:
    taking = Taking()
    taking.run(29)
    assert [len(batch["samples"]) for batch in taking.batches] == [9, 10, 10]
    second = taking.batches[1]
    assert [sample["complete"] for sample in second["samples"]] == [True] + [False] * 9
    assert (second["t0"], second["t1"]) == (pytest.approx(1001.0), pytest.approx(1001.9))
    assert second["sampler"] == {"cpu_s": 0.25, "late": 0}
    assert (second["node"], second["engine"]) == ("node0", None)


def test_a_batch_ends_at_its_border_even_when_ticks_are_missed() -> None:
    taking = Taking()
    taking.run(5)
    taking.now = 1003.72
    taking.run(3)
    assert [len(batch["samples"]) for batch in taking.batches] == [5, 2]
    assert taking.batches[1]["t0"] == pytest.approx(1003.8)
    taking.sampler.flush()
    assert len(taking.batches) == 3
    taking.sampler.flush()
    assert len(taking.batches) == 3


def test_batches_are_sent_together_at_multiples_of_the_interval_on_every_node() -> None:
    taking = Taking()
    taking.now = 1003.0
    taking.run(169)
    assert taking.sent == [2, 7, 12, 17]
    assert [taking.batches[number - 1]["t1"] for number in taking.sent] == pytest.approx(
        [1004.9, 1009.9, 1014.9, 1019.9]
    )


def test_what_is_due_is_sent_even_when_the_tick_before_was_missed() -> None:
    taking = Taking()
    taking.run(35)
    taking.now = 1006.32
    taking.run(1)
    assert (len(taking.batches), taking.sent) == (4, [4])


# -- the spool


def filled(count: int, capacity: int = 600) -> spool.Spool:
    kept = spool.Spool("boot", capacity, 25.0)
    for number in range(count):
        kept.add({"t0": float(number)})
    return kept


def sequences(batches: list[dict[str, Any]]) -> list[int]:
    return [batch["sequence"] for batch in batches]


def send(kept: spool.Spool, now: float) -> list[int]:
    due = sequences(kept.due(now))
    for number in due:
        kept.sent(number, now)
    return due


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
    "told",
    [
        None,
        [],
        {"boot": "another", "sequence": 3},
        {"boot": "boot", "sequence": 99},
        {"boot": "boot", "sequence": "3"},
        {"boot": "boot"},
    ],
)
def test_an_acknowledgement_that_is_not_ours_changes_nothing(told: Any) -> None:
    kept = filled(3)
    assert not kept.acknowledge(told)
    assert len(kept) == 3


# -- delivery


class Wire:
    """A bus that can be down, and a control node's answers."""

    def __init__(self) -> None:
        self.up = True
        self.fired: list[tuple[str, list[int]]] = []
        self.answer: dict[str, Any] | None = None
        self.file: dict[str, Any] | None = None
        self.asked = 0

    def fire(self, data: dict[str, Any], tag: str) -> bool:
        if self.up:
            self.fired.append((tag, sequences(data["batches"])))
        return self.up

    def close(self) -> None:
        pass

    def ask(self) -> dict[str, Any] | None:
        self.asked += 1
        return self.answer

    def look(self) -> dict[str, Any] | None:
        told, self.file = self.file, None
        return told


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def sender(wire: Wire, tmp_path: Path) -> delivery.Sender:
    kept = spool.Spool("boot", 600, 25.0)
    return delivery.Sender(kept, wire, wire, "node0", 5.0, 10.0, str(tmp_path / "status.json"), clock=lambda: 0.0)


def test_a_batch_stays_until_the_bus_takes_it_and_the_control_node_has_it(wire: Wire, sender: delivery.Sender) -> None:
    wire.up = False
    sender.add({}, True)
    assert not sender.step(1.0)
    assert wire.fired == []
    wire.up = True
    assert sender.step(2.0)
    assert wire.fired == [("cluster/telemetry/batch/node0", [1])]
    assert wire.asked == 0
    wire.answer = {"boot": "boot", "sequence": 1, "missing": []}
    sender.step(10.0)
    assert (wire.asked, len(sender._spool)) == (1, 0)
    sender.step(11.0)
    assert wire.asked == 1


def test_what_a_job_left_in_the_file_counts_as_well(wire: Wire, sender: delivery.Sender) -> None:
    sender.add({}, True)
    sender.add({}, True)
    sender.step(1.0)
    wire.file = {"boot": "boot", "sequence": 0, "missing": [2]}
    sender.step(2.0)
    assert [numbers for _, numbers in wire.fired] == [[1, 2], [2]]


def test_a_batch_waits_for_those_it_is_sent_with(wire: Wire, sender: delivery.Sender) -> None:
    for last in (False, False, True):
        assert not sender.wake.is_set()
        sender.add({}, last)
    assert sender.wake.is_set()
    sender.step(1.0)
    assert [numbers for _, numbers in wire.fired] == [[1, 2, 3]]


def test_after_an_outage_an_event_stays_small_and_the_rest_follows_at_once(wire: Wire, sender: delivery.Sender) -> None:
    for _ in range(23):
        sender.add({}, False)
    assert not sender.step(1.0), "three are left"
    assert [len(numbers) for _, numbers in wire.fired] == [5, 5, 5, 5]
    assert sender.step(2.0)
    assert wire.fired[-1][1] == [21, 22, 23]


def test_the_status_says_what_waits(wire: Wire, sender: delivery.Sender, tmp_path: Path) -> None:
    sender.add({}, True)
    sender.step(10.0)
    status = json.loads((tmp_path / "status.json").read_text())
    assert {key: status[key] for key in ("boot", "sequence", "acknowledged", "waiting", "dropped")} == {
        "boot": "boot",
        "sequence": 1,
        "acknowledged": 0,
        "waiting": 1,
        "dropped": 0,
    }


def test_the_file_is_read_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "acknowledged.json"
    seen = delivery.Acknowledgements("node0", "boot", None, str(path))
    assert seen.ask() is None
    assert seen.look() is None
    node_files.write_json(str(path), {"boot": "boot", "sequence": 4})
    assert seen.look() == {"boot": "boot", "sequence": 4}
    assert seen.look() is None
    path.write_text("{half")
    assert seen.look() is None
