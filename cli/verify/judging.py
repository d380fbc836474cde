"""Judge the recorded runs by the rules as they are now.

No lab is needed, and nothing that judges knows what was put in.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bottleneck.accuracy.answers import Answer, Judged, Named, judge
from bottleneck.accuracy.trials import Trial
from bottleneck.accuracy.truth import truths
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run_folder import RunError, load_run
from cli.verify import archive
from cli.verify.record import Record

ANSWERS = "answers.jsonl"
LAST_DIGIT = 0.01


class MissingRunError(Exception):
    """A run of the record is in none of its archives."""


@dataclass(frozen=True)
class Answered:
    """A run's verdict in short, and how long it took to come to."""

    run: str
    answer: Answer
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data: a line of the record of answers."""
        return {"run": self.run, "seconds": round(self.seconds, 3), **self.answer.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Answered:
        """Read what `to_json` returned."""
        return cls(str(document["run"]), Answer.from_json(document), float(document["seconds"]))


def trials(folder: Path) -> list[Trial]:
    """Return every run of a record's folder that did not fail, in the order of their names."""
    lines: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("runs*.jsonl")):
        lines.update(Record(path).lines())
    found = (Trial.from_json(line) for _, line in sorted(lines.items()))
    return [trial for trial in found if trial is not None]


def answers(folder: Path) -> dict[str, Answered]:
    """Return the answers that are in a record's folder, by run."""
    path = folder / ANSWERS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {each.run: each for each in (Answered.from_json(json.loads(line)) for line in lines)}


def write_answers(folder: Path, found: Mapping[str, Answered]) -> None:
    """Write answers in the order of their runs."""
    text = "".join(json.dumps(found[run].to_json()) + "\n" for run in sorted(found))
    (folder / ANSWERS).write_text(text, encoding="utf-8")


class OfRun(Protocol):
    """Whatever was found of a run."""

    @property
    def run(self) -> str:
        """Its name."""
        ...


Found = TypeVar("Found", bound=OfRun)


def judge_again(folder: Path, wanted: Sequence[str], processes: int | None = None) -> Iterator[Answered]:
    """Load the wanted runs out of a record's archives and analyse them; see `of_each`."""
    return of_each(folder, wanted, answered, processes)


def of_each(
    folder: Path, wanted: Sequence[str], ask: Callable[[Path], Found], processes: int | None = None
) -> Iterator[Found]:
    """Ask something of each wanted run out of a record's archives, on as many processes as there are cores.

    Parameters
    ----------
    folder
        Of the record.
    wanted
        Names of runs.
    ask
        From a run's folder to what is to be found; a function of a module.
    processes
        How many; None means as many as there are cores.

    Raises
    ------
    MissingRunError
        When one is in no archive.
    """
    places = [*sorted((folder / "runs").glob("*.tar.xz")), *sorted(folder.glob("raw*"))]
    left, processes = set(wanted), processes or len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for found in pool.imap_unordered(partial(_of_place, frozenset(wanted), ask), places):
            for each in found:
                left.discard(each.run)
                yield each
    if left:
        raise MissingRunError(
            f"{len(left)} runs of the record are in none of {folder / 'runs'}: {sorted(left)[0]}, ..."
        )


def _of_place(wanted: frozenset[str], ask: Callable[[Path], Found], place: Path) -> list[Found]:
    if place.is_dir():
        return [ask(run) for run in sorted(place.iterdir()) if run.name in wanted]
    with archive.unpacked(place, wanted) as folders:
        return [ask(run) for run in folders]


def answered(folder: Path) -> Answered:
    """Return what the verdict on a recorded run says."""
    began = time.perf_counter()
    try:
        verdict = analyse(load_run(folder))
    except RunError as error:
        raise MissingRunError(f"{folder.name}: {error}") from error
    # As whoever reads it gets it.
    document = json.loads(json.dumps(verdict.to_json()))
    return Answered(folder.name, Answer.of_verdict(document), time.perf_counter() - began)


def alike(one: Answer, two: Answer) -> bool:
    """Tell whether two answers say the same, their numbers but for the last digit that is shown."""
    if (
        abs(one.confidence - two.confidence) > LAST_DIGIT
        or abs((one.first.share or 0) - (two.first.share or 0)) > LAST_DIGIT
    ):
        return False
    return [_words(each) for each in (one.first, *one.runners_up)] == [
        _words(each) for each in (two.first, *two.runners_up)
    ] and one.undecided == two.undecided


def _words(named: Named) -> tuple[str, str | None, str | None]:
    return named.name, named.node, named.link


def judged(known: Sequence[Trial], found: Mapping[str, Answered]) -> list[Judged]:
    """Return every run that has an answer, beside what its faults cost."""
    measured, by_case = truths(known), {trial.case: trial for trial in known}
    result = []
    for trial in known:
        if trial.run in found:
            truth = measured[trial.case]
            beside = (by_case[case].run for case in truth.beside)
            healthy = [found[run].answer for run in beside if run in found]
            result.append(judge(truth, found[trial.run].answer, healthy))
    return result
