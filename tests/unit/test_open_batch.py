"""The readings of a batch that was not full when the sampler was killed."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import machine
import open_batch
import spool
from open_batch import KeptReading, OpenBatch


def reading(number: int) -> KeptReading:
    slow = {"mem": {"total": 1}} if number == 1 else {}
    return KeptReading(
        1000.0 + number, 50.0 + number, slow, {"cpu": f"cpu0 {number}\nü\n", "psi": None, "membw": {"a": 1}}
    )


def written(folder: Path, count: int = 3) -> Path:
    kept = OpenBatch(str(folder), "boot-1", lambda: 7, lambda path: Path(path).unlink())
    for number in range(1, count + 1):
        kept.add(reading(number))
    (path,) = folder.iterdir()
    return path


def test_what_was_taken_is_there_after_a_kill_and_gone_after_the_end(tmp_path: Path) -> None:
    discarded: list[str] = []
    kept = OpenBatch(str(tmp_path), "boot-1", lambda: 7, discarded.append)
    kept.add(reading(1))
    kept.add(reading(2))
    (found,) = open_batch.leftovers(str(tmp_path))
    assert found[1:] == ("boot-1", 7, [reading(1), reading(2)])
    kept.end()
    assert discarded == [str(tmp_path / "boot-1.000000000007.open")]
    kept.end()
    assert len(discarded) == 1, "there was nothing since"


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_file_that_is_cut_gives_what_came_before(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(open_batch.read(str(path))) == [reading(1), reading(2)]


@pytest.mark.parametrize(
    "text",
    [b"", b"\n", b"{}\n", b"[1,2,3]\n", b"[1,1,{},[[1,-5]]]\n", b'["x",1,{},[]]\n\n', b'[1,1,{},[["a",99999999]]]\n'],
)
def test_a_file_that_is_no_readings_gives_none(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "boot.000000000001.open"
    path.write_bytes(text)
    assert list(open_batch.read(str(path))) == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("boot.1.open", "boot.000000000001.batches", "x"):
        (tmp_path / name).write_bytes(b"")
    assert list(open_batch.leftovers(str(tmp_path))) == []
    assert list(open_batch.leftovers(str(tmp_path / "none"))) == []


def test_a_disk_that_takes_nothing_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = OpenBatch(str(tmp_path / "none"), "boot-1", lambda: 7, lambda path: None)
    for number in range(5):
        kept.add(reading(number))
        kept.end()
    assert capsys.readouterr().err.count("in memory alone") == 1


def test_a_new_life_makes_the_samples_that_the_killed_one_would_have_made(tmp_path: Path) -> None:
    before = machine.Machine({"wire": ["lo"]}, str(tmp_path / "supervise"))
    readings = [before.read(1000.0 + number, number == 0) for number in range(3)]
    kept = OpenBatch(str(tmp_path), "boot-1", lambda: 1, lambda path: None)
    for each in readings:
        kept.add(before.kept(each, 5.0))
    ((_, _, _, found),) = open_batch.leftovers(str(tmp_path))
    after = machine.Machine({"wire": ["lo"]}, str(tmp_path / "supervise"))
    wanted: list[dict[str, Any]] = before.parse(readings)
    batch = open_batch.batch_of("node0", found, after.restored(found))
    assert spool.pack({"s": batch["samples"]}) == spool.pack({"s": wanted})
    assert (batch["t0"], batch["t1"], batch["sampler"]) == (1000.0, 1002.0, {"ended_s": 5.0})
