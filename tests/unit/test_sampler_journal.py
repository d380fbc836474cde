"""The sampler's journal: what is on disk outlives the sampler; a disk that takes nothing ends nothing."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import journal
from journal import Journal, Left


def written(directory: Path, boot: str, numbers: range, per_file: int = 2) -> Journal:
    kept = Journal(str(directory))
    for number in numbers:
        kept.append(boot, number, f"batch {number}".encode())
        if number % per_file == 0:
            kept.synchronise()
    return kept


def test_what_was_written_is_there_in_the_next_life(tmp_path: Path) -> None:
    written(tmp_path, "boot-1", range(1, 6))  # it ends without a word, as by kill -9
    written(tmp_path, "boot-2", range(1, 3))
    left = Journal(str(tmp_path)).leftovers()
    assert left == [Left("boot-1", number, f"batch {number}".encode()) for number in range(1, 6)] + [
        Left("boot-2", number, f"batch {number}".encode()) for number in (1, 2)
    ]


def test_files_go_with_the_last_batch_that_is_kept_of_them(tmp_path: Path) -> None:
    kept = written(tmp_path, "boot-1", range(1, 7))
    kept.forget({"boot-1": 4})
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "boot-1.000000000003.batches",
        "boot-1.000000000005.batches",
    ]
    kept.forget({})
    assert list(tmp_path.iterdir()) == []


def test_what_a_former_life_left_goes_when_it_is_acknowledged(tmp_path: Path) -> None:
    written(tmp_path, "boot-1", range(1, 7))
    kept = Journal(str(tmp_path))
    kept.leftovers()
    kept.append("boot-2", 1, b"new")
    kept.forget({"boot-1": 6, "boot-2": 1})
    assert [each.sequence for each in Journal(str(tmp_path)).leftovers()] == [5, 6, 1]
    kept.forget({"boot-2": 1})
    assert [each.boot for each in Journal(str(tmp_path)).leftovers()] == ["boot-2"]


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_torn_end_loses_the_torn_batch_alone(tmp_path: Path, cut: int) -> None:
    kept = written(tmp_path, "boot-1", range(1, 4), per_file=10)
    kept.synchronise()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    expected = [1, 2] if cut <= 16 + 7 else [1]
    assert [each.sequence for each in Journal(str(tmp_path)).leftovers()] == expected


def test_overwritten_and_foreign_files_end_nothing(tmp_path: Path) -> None:
    written(tmp_path, "boot-1", range(1, 7))
    (tmp_path / "boot-1.000000000003.batches").write_bytes(os.urandom(400))
    (tmp_path / "boot-9.000000000001.batches").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("a person's")
    (tmp_path / "boot-8.000000000001.batches").mkdir()
    assert [each.sequence for each in Journal(str(tmp_path)).leftovers()] == [1, 2, 5, 6]
    assert (tmp_path / "notes.txt").exists()


def test_a_full_disk_is_said_once_and_what_comes_after_is_kept_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = written(tmp_path, "boot-1", range(1, 3))
    monkeypatch.setattr(journal, "open", lambda *_, **__: Path("/dev/full").open("wb", 0), raising=False)  # noqa: SIM115
    for number in (3, 4, 5):
        kept.append("boot-1", number, b"batch")
    monkeypatch.undo()
    for number in (6, 7):
        kept.append("boot-1", number, b"batch")
    kept.synchronise()
    assert kept.failures == 3
    assert capsys.readouterr().err.count("are kept in memory alone") == 1
    assert [each.sequence for each in Journal(str(tmp_path)).leftovers()] == [1, 2, 6, 7]


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Journal(str(tmp_path / "file" / "spool"))
    assert kept.leftovers() == []
    kept.append("boot-1", 1, b"batch")
    kept.synchronise()
    assert kept.failures == 2


def test_the_disk_of_the_node_is_used_where_there_is_one() -> None:
    assert journal.place("/var/lib/x", disk="/nowhere") == "/var/lib/x/spool"
    assert journal.place("/var/lib/x", disk="/proc") == "/proc/spool"


def test_the_writer_does_everything_in_order_and_ends(tmp_path: Path) -> None:
    writer = journal.Writer(Journal(str(tmp_path)))
    writer.start()
    for number in range(1, 4):
        writer.append("boot-1", number, b"batch")
    writer.synchronise()
    writer.append("boot-1", 4, b"batch")
    writer.forget({"boot-1": 4})
    writer.end()
    writer.join(10)
    assert not writer.is_alive()
    assert [each.sequence for each in Journal(str(tmp_path)).leftovers()] == [4]
