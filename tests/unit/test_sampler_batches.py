"""The sampler's pacing and what ends a batch, with a fake clock; no process, no sleep."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import pytest
import sampler


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
        taken: Any = self
        self.now = self.steady = 1000.0
        self.news = False
        self.batches: list[dict[str, Any]] = []
        self.sent: list[int] = []
        self.pacer = sampler.Pacer(10.0, 1.0, 5.0)
        self.engine: dict[str, Any] | None = None
        self.exits: list[dict[str, Any]] = []
        self.sampler = sampler.Sampler(
            "node0",
            taken,
            self.pacer,
            self.deliver,
            lambda: self.engine,
            self.take_exits,
            lambda: self.now,
            lambda: 0.25,
            lambda: self.steady,
            lambda: self.news,
        )

    def take_exits(self, _now: float) -> list[dict[str, Any]]:
        found, self.exits = self.exits, []
        return found

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
            waited = self.pacer.wait_seconds(self.now)
            self.now += waited
            self.steady += waited
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


@pytest.mark.parametrize("seconds", [86_400.0, -3600.0, 1.5])
def test_a_batch_ends_where_the_clock_is_set_in_the_middle_of_a_wait(seconds: float) -> None:
    taking = Taking()
    taking.run(5)
    waited = taking.pacer.wait_seconds(taking.now)
    taking.now, taking.steady = taking.now + waited + seconds, taking.steady + waited
    taking.sampler.take()
    taking.run(20)
    assert len(taking.batches[0]["samples"]) == 5
    assert all(0.0 <= batch["t1"] - batch["t0"] < 1.0 for batch in taking.batches)
    assert sum(len(batch["samples"]) for batch in taking.batches) >= 16


def test_an_engine_that_stands_still_is_news_that_is_sent_at_once() -> None:
    taking = Taking()
    taking.now = 1000.0
    taking.run(3)
    taking.news = True
    taking.run(1)
    assert taking.sent == [1] and "exits" not in taking.batches[0]


def test_the_end_of_a_process_is_sent_at_once_and_what_ends_with_it_goes_along() -> None:
    taking = Taking()
    taking.now = 1000.0
    taking.run(3)
    taking.exits = [{"worker": "tp2-0", "pid": 7, "kind": "part"}]
    taking.run(1)
    assert taking.sent == [1]
    assert taking.batches[0]["exits"] == [{"worker": "tp2-0", "pid": 7, "kind": "part"}]
    # Others of the same worker end in the same second: they wait for the batch's own end.
    taking.exits = [{"worker": "tp2-0", "pid": 8, "kind": "program"}]
    taking.run(6)
    assert [each["pid"] for each in taking.batches[1]["exits"]] == [8]
    taking.run(10)
    assert all("exits" not in batch for batch in taking.batches[2:])
    assert sum(len(batch["samples"]) for batch in taking.batches) == 19


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


def test_a_clock_that_is_set_back_ends_the_batch() -> None:
    taking = Taking()
    taking.run(5)
    taking.now -= 0.35
    taking.run(3)
    taking.now -= 3600.0
    taking.run(3)
    taking.sampler.flush()
    for batch in taking.batches:
        times = [sample["t"] for sample in batch["samples"]]
        assert times == sorted(times)
        assert batch["t0"] <= batch["t1"]
    assert sum(len(batch["samples"]) for batch in taking.batches) == 11, "none is lost"
