"""The sampler's delivery, with a fake clock and a fake bus; no process, no sleep."""

import json
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import delivery
import node_files
import node_seal
import spool

from tests.waiting import wait_for

KEY = bytes(range(32))


def sequences(batches: list[dict[str, Any]]) -> list[int]:
    return [batch["sequence"] for batch in batches]


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
        assert node_seal.holds(KEY, node_seal.BATCHES, "node0", data["text"], data["seal"])
        batches = json.loads(data["text"])
        self.batches += batches
        if self.up:
            self.fired.append((tag, sequences(batches)))
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
    status = str(tmp_path / "status.json")
    return delivery.Sender(kept, wire, wire, disk, "node0", 5.0, 10.0, status, lambda: 0.0, sealing(tmp_path))


def sealing(folder: Path) -> delivery.Sealing:
    (folder / "node.key").write_text(KEY.hex() + "\n")
    return delivery.Sealing("node0", str(folder / "node.key"))


def test_nothing_goes_out_without_the_node_s_key_and_a_changed_key_is_used_at_once(
    wire: Wire, sender: delivery.Sender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.key").unlink()
    sender.add({}, True)
    assert not sender.step(1.0)
    assert wire.sizes == [] and "cluster apply" in capsys.readouterr().err
    (tmp_path / "node.key").write_text("0" * 10)
    assert not sender.step(2.0)
    (tmp_path / "node.key").write_text(KEY.hex())
    assert sender.step(3.0)
    assert wire.fired == [("cluster/telemetry/batch/node0", [1])]


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
    sender = delivery.Sender(kept, wire, wire, disk, "node0", 5.0, 10.0, status, lambda: 0.0, sealing(tmp_path))
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
