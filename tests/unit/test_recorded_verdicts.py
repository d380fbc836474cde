"""Every recorded run of the benchmark still gets the answer that the accuracy page counts."""

from pathlib import Path

import pytest

from bench.verdict_tables import RECORD
from cli.verify import archive, judging

ARCHIVES = sorted((RECORD / "runs").glob("*.tar.xz"))


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
