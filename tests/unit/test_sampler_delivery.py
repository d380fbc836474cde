"""The sampler's pacing, its spool and its delivery, with a fake clock and a fake bus; no process, no sleep."""

import json
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import delivery
import node_files
import sampler
import spool

from tests.waiting import wait_for

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


# -- the spool


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


# -- delivery


class Wire:
    """A bus that can be down, and a control node's answers."""

    def __init__(self) -> None:
        self.up = True
        self.sizes: list[int] = []
        self.batches: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.fired: list[tuple[str, list[int]]] = []
        self.answer: dict[str, Any] | None = None
        self.file: dict[str, Any] | None = None
        self.asked = 0

    def fire(self, data: dict[str, Any], tag: str) -> bool:
        self.sizes.append(len(msgpack.packb(data)))
        self.batches += json.loads(json.dumps(data["batches"]))
        if self.up:
            self.fired.append((tag, sequences(data["batches"])))
        return self.up

    def close(self) -> None:
        pass

    def ask(self, boot: str) -> dict[str, Any] | None:
        self.asked += 1
        return self.answers.get(boot, self.answer)

    def look(self) -> dict[str, Any] | None:
        acknowledged, self.file = self.file, None
        return acknowledged


@pytest.fixture
def wire() -> Wire:
    return Wire()


class Disk:
    """A journal that notes what is asked of it."""

    failures = 0

    def __init__(self) -> None:
        self.written: list[tuple[str, int]] = []
        self.kept: dict[str, int] = {}

    def append(self, boot: str, sequence: int, packed: bytes) -> None:
        assert json.loads(packed)["sequence"] == sequence
        self.written.append((boot, sequence))

    def synchronise(self) -> None:
        pass

    def forget(self, oldest: dict[str, int]) -> None:
        self.kept = oldest


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def kept() -> spool.Spool:
    return spool.Spool("boot-2", 600, 25.0)


@pytest.fixture
def sender(kept: spool.Spool, wire: Any, disk: Disk, tmp_path: Path) -> delivery.Sender:
    return delivery.Sender(kept, wire, wire, disk, "node0", 5.0, 10.0, str(tmp_path / "status.json"), clock=lambda: 0.0)


def test_a_batch_stays_until_the_bus_takes_it_and_the_control_node_has_it(wire: Wire, sender: delivery.Sender) -> None:
    wire.up = False
    sender.add({}, True)
    assert not sender.step(1.0)
    assert wire.fired == []
    wire.up = True
    assert sender.step(2.0)
    assert wire.fired == [("cluster/telemetry/batch/node0", [1])]
    assert wire.asked == 0
    wire.answer = {"boot": "boot-2", "sequence": 1, "missing": []}
    sender.step(10.0)
    assert (wire.asked, len(sender._spool)) == (1, 0)
    sender.step(11.0)
    assert wire.asked == 1


def test_what_a_job_left_in_the_file_counts_as_well(wire: Wire, sender: delivery.Sender) -> None:
    sender.add({}, True)
    sender.add({}, True)
    sender.step(1.0)
    wire.file = {"boot": "boot-2", "sequence": 0, "missing": [2]}
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
        "boot": "boot-2",
        "sequence": 1,
        "acknowledged": 0,
        "waiting": 1,
        "dropped": 0,
    }


def test_the_file_is_read_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "acknowledged.json"
    seen = delivery.Acknowledgements("node0", None, str(path))
    assert seen.ask("boot") is None
    assert seen.look() is None
    node_files.write_json(str(path), {"boot": "boot-2", "sequence": 4})
    assert seen.look() == {"boot": "boot-2", "sequence": 4}
    assert seen.look() is None
    path.write_text("{half")
    assert seen.look() is None


def test_what_a_former_life_left_is_sent_under_its_own_name_until_it_is_acknowledged(
    kept: spool.Spool, wire: Wire, sender: delivery.Sender, disk: Disk
) -> None:
    for number in (7, 8):
        left = {"node": "node0", "boot": "boot-1", "sequence": number, "sampler": {"ended_s": -5.0}}
        kept.inherit("boot-1", number, spool.pack(left))
    sender.add({}, True)
    sender.step(1.0)
    found = [(each["boot"], each["sequence"], each["sampler"].get("former")) for each in wire.batches]
    assert found == [("boot-1", 7, 1), ("boot-1", 8, 1), ("boot-2", 1, None)]
    assert [each["sampler"]["oldest"] for each in wire.batches] == [7, 7, 1]
    assert [each["sampler"]["age_s"] for each in wire.batches] == [6.0, 6.0, 1.0]
    wire.answers = {"boot-1": {"boot": "boot-1", "sequence": 8, "missing": []}}
    sender.step(10.0)
    assert (kept.boots, len(kept), disk.kept) == (["boot-2"], 1, {"boot-2": 1})


def test_a_job_acknowledges_former_lives_too(kept: spool.Spool, wire: Wire, sender: delivery.Sender) -> None:
    kept.inherit("boot-1", 7, spool.pack({"node": "node0", "boot": "boot-1", "sequence": 7, "sampler": {}}))
    sender.step(1.0)
    wire.file = {"boot": "boot-2", "sequence": 0, "missing": [], "former": [{"boot": "boot-1", "sequence": 7}, [], 3]}
    sender.step(2.0)
    assert len(kept) == 0


def test_of_another_boot_of_the_machine_no_age_is_known(kept: spool.Spool, wire: Wire, sender: delivery.Sender) -> None:
    left = {"node": "node0", "boot": "other-1", "sequence": 7, "sampler": {"ended_s": 5000.0}}
    kept.inherit("other-1", 7, spool.pack(left))
    sender.step(1.0)
    assert "age_s" not in wire.batches[0]["sampler"]


# -- what ended the sender


@pytest.mark.parametrize(
    "answer",
    [
        {"boot": "boot-2", "sequence": 0, "missing": [[]]},
        {"boot": "boot-2", "sequence": 0, "missing": 5},
        {"boot": "boot-2", "sequence": 0, "missing": {"a": 1}},
        {"boot": "boot-2", "sequence": 0, "missing": [], "former": 5},
        {"boot": "boot-2", "sequence": 0, "former": [[[]], {"boot": {}}]},
        [[]],
        5,
    ],
)
def test_an_odd_answer_does_not_keep_anything_from_being_sent(wire: Wire, sender: delivery.Sender, answer: Any) -> None:
    wire.answer = answer
    for moment in (10.0, 20.0):
        sender.add({}, True)
        assert sender.step(moment)
    assert [numbers for _, numbers in wire.fired] == [[1], [2]]


def test_a_full_run_directory_does_not_keep_anything_from_being_sent(
    kept: spool.Spool, wire: Any, disk: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = str(tmp_path / "nothing" / "status.json")
    sender = delivery.Sender(kept, wire, wire, disk, "node0", 5.0, 10.0, status, clock=lambda: 0.0)
    for moment in (10.0, 20.0):
        sender.add({}, True)
        assert sender.step(moment)
    assert [numbers for _, numbers in wire.fired] == [[1], [2]]
    assert capsys.readouterr().err.count("the status cannot be written") == 1


def test_a_fault_of_one_round_does_not_end_the_sender(
    wire: Wire, sender: delivery.Sender, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", 0.01)
    broken = [RuntimeError("an answer nobody thought of")] * 3
    look = wire.look

    def breaking() -> Any:
        if broken:
            raise broken.pop()
        return look()

    monkeypatch.setattr(wire, "look", breaking)
    sender.start()
    sender.add({}, True)
    wait_for(lambda: wire.fired, what="the batch to be sent")
    assert sender.is_alive()
    sender.ending = True
    sender.wake.set()
    sender.join(10)
    assert capsys.readouterr().err.count("an answer nobody thought of") == 1


# -- the size of an event


def samples_of(cores: int, count: int) -> list[dict[str, Any]]:
    row = [123456.789, 23456.78, 12345.67, 1234567.89, 1.25, 0.0]
    return [{"t": 1000.0 + index / 1000, "cpu": {str(core): row for core in range(cores)}} for index in range(count)]


@pytest.mark.parametrize(("cores", "rate"), [(32, 100), (256, 10), (256, 1000)])
def test_an_event_stays_below_what_salt_takes(wire: Wire, sender: delivery.Sender, cores: int, rate: int) -> None:
    for second in range(5):
        samples = [{**sample, "t": sample["t"] + second} for sample in samples_of(cores, rate)]
        batch = {"node": "node0", "t0": samples[0]["t"], "t1": samples[-1]["t"], "samples": samples, "engine": None}
        sender.add({**batch, "sampler": {}}, second == 4)
    moment = 1.0
    while not sender.step(moment):
        moment += 1.0
    assert max(wire.sizes) < 1024 * 1024
    assert [each["sequence"] for each in wire.batches] == list(range(1, len(wire.batches) + 1))
    times = [sample["t"] for each in wire.batches for sample in each["samples"]]
    assert times == sorted(times) and len(times) == 5 * rate, "every sample once"
    for each in wire.batches:
        assert (each["t0"], each["t1"]) == (each["samples"][0]["t"], each["samples"][-1]["t"])


def test_a_spool_is_bounded_by_bytes_too() -> None:
    kept = spool.Spool("boot", 600, 25.0, 10_000)
    for number in range(20):
        kept.add({"t0": float(number), "fill": "x" * 2000})
    assert (len(kept), kept.dropped, kept.oldest) == (4, 16, 17)
    assert 8000 < kept.bytes <= 10_000


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
