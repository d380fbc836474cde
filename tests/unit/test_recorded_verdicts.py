"""Every recorded run of the benchmark still gets the answer that the accuracy page counts."""

from pathlib import Path

import pytest

from bench.verdict_tables import RECORD
from bottleneck.runs.run_folder import load_run
from cli.verify import archive, judging, live

ARCHIVES = sorted((RECORD / "runs").glob("*.tar.xz"))
SMALLEST = min(ARCHIVES, key=lambda path: path.stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize("path", ARCHIVES, ids=[path.name.removesuffix(".tar.xz") for path in ARCHIVES])
def test_the_answers_are_those_of_the_page(path: Path) -> None:
    known = judging.answers(RECORD)
    with archive.unpacked(path) as folders:
        assert folders
        changed = [
            f"{folder.name}: {known[folder.name].answer.first.name}, now {found.first.name}"
            for folder in folders
            if not judging.alike(known[folder.name].answer, found := judging.answered(folder).answer)
        ]
    assert not changed, "python bench/verdict_tables.py --again --write"


def test_every_run_of_the_record_has_its_answer() -> None:
    trials, answers = judging.trials(RECORD), judging.answers(RECORD)
    assert {trial.run for trial in trials} == set(answers)
    assert bool(trials) == bool(ARCHIVES)


def test_every_run_of_the_record_has_its_windows() -> None:
    known = live.read(RECORD)
    assert {trial.run for trial in judging.trials(RECORD)} == set(known)
    with archive.unpacked(SMALLEST) as folders:
        for folder in folders:
            now = live.replayed(folder).windows
            assert [each.readings for each in now] == [each.readings for each in known[folder.name].windows]
            for one, two in zip(now, known[folder.name].windows, strict=True):
                assert judging.alike(one.answer, two.answer), "python bench/verdict_tables.py --again --write"


@pytest.mark.parametrize(("times", "count"), [(1 / 2, 2), (2 / 5, 2), (2, 1)], ids=["half", "less", "longer"])
def test_a_run_is_cut_into_windows_one_after_the_other(times: float, count: int) -> None:
    with archive.unpacked(SMALLEST) as folders:
        run = load_run(folders[0])
    windows = live.windows_of(run, times * run.seconds)
    assert len(windows) == count
    assert all(window.live and window.client is None for window in windows)
    assert windows[0].interval[0] == run.interval[0]
    assert windows[-1].interval[1] <= run.interval[1] + 1e-6
