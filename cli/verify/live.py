"""Replay recorded runs as live windows, and count how often they name what the whole run names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.accuracy.answers import LARGE_COST, Answer, Judged, judge
from bottleneck.accuracy.figures import HEALTHY, UNDECIDED, Rate, kind_of
from bottleneck.accuracy.trials import Trial
from bottleneck.accuracy.truth import truths
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run import Run
from bottleneck.runs.run_folder import load_run
from cli.verify import tables
from cli.verify.judging import Answered

WINDOWS = "windows.jsonl"
# Counts are what an engine's counters grew between two readings inside the window.
COUNTED = 2


@dataclass(frozen=True)
class Window:
    """One live window of a recorded run.

    Attributes
    ----------
    seconds
        Its length: the profile's, or the run's where that is shorter.
    readings
        Of the engine that was read least in it.
    """

    seconds: float
    readings: int
    answer: Answer


@dataclass(frozen=True)
class Replayed:
    """A run's windows, one after the other."""

    run: str
    windows: tuple[Window, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data: a line of the record of windows."""
        windows = [
            {"seconds": round(each.seconds, 3), "readings": each.readings, **each.answer.to_json()}
            for each in self.windows
        ]
        return {"run": self.run, "windows": windows}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Replayed:
        """Read what `to_json` returned."""
        windows = tuple(
            Window(float(each["seconds"]), int(each["readings"]), Answer.from_json(each))
            for each in document["windows"]
        )
        return cls(str(document["run"]), windows)


def windows_of(run: Run, seconds: float) -> list[Run]:
    """Return a run as live windows of a length, one after the other; a shorter run as one."""
    start, width = run.interval[0], min(seconds, run.seconds)
    whole = int(run.seconds / width)
    return [run.window(start + number * width, start + (number + 1) * width) for number in range(whole)]


def replayed(folder: Path) -> Replayed:
    """Return what the verdicts on a recorded run's windows say."""
    found, run = [], load_run(folder)
    for window in windows_of(run, run.profile.telemetry.window_seconds if run.profile else math.inf):
        answer = Answer.of_verdict(json.loads(json.dumps(analyse(window).to_json())))
        heads = {worker.node for worker in window.workers if worker.rank == 0}
        found.append(
            Window(window.seconds, min((len(window.readings.get(head, ())) for head in heads), default=0), answer)
        )
    return Replayed(folder.name, tuple(found))


def read(folder: Path) -> dict[str, Replayed]:
    """Return the windows that are in a record's folder, by run."""
    path = folder / WINDOWS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {each.run: each for each in (Replayed.from_json(json.loads(line)) for line in lines)}


def write(folder: Path, found: Mapping[str, Replayed]) -> None:
    """Write the windows in the order of their runs."""
    text = "".join(json.dumps(found[run].to_json()) + "\n" for run in sorted(found))
    (folder / WINDOWS).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _Pair:
    """A window's answer beside that of its whole run, both judged by what was put in."""

    window: Window
    live: Judged
    whole: Judged

    @property
    def same(self) -> bool:
        return self.live.answer.first.name == self.whole.answer.first.name


def table(trials: Sequence[Trial], answers: Mapping[str, Answered], windows: Mapping[str, Replayed]) -> str:
    """Return, for each fault, how often a window names the class that the whole run names, and how often it is right.

    Parameters
    ----------
    trials
        The record's runs.
    answers
        Run to the answer on all of it.
    windows
        Run to those on its windows.
    """
    measured, by_case = truths(trials), {trial.case: trial for trial in trials}
    pairs = []
    for trial in trials:
        truth = measured[trial.case]
        if trial.run not in windows or (trial.faults and truth.cost is None):
            continue
        beside = [by_case[case].run for case in truth.beside]
        healthy = [answers[run].answer for run in beside if run in answers]
        whole = judge(truth, answers[trial.run].answer, healthy)
        pairs += [_Pair(each, judge(truth, each.answer, healthy), whole) for each in windows[trial.run].windows]
    lengths = sorted(pair.window.seconds for pair in pairs)
    lines = [
        f"{len(pairs)} windows of {len(windows)} runs, {lengths[0]:.3g} to {lengths[-1]:.3g} s, half of them under "
        f"{lengths[len(lengths) // 2]:.2g} s.",
        "",
        "| put in | same class, engine read twice or more | named none | "
        f"right at {LARGE_COST:.0%} or more | the whole run | same class, read once or never | named none |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = {kind_of(pair.whole) for pair in pairs}
    for kind in ("all", HEALTHY, *(kind for kind in tables.WORDS if kind in kinds)):
        chosen = [pair for pair in pairs if kind in ("all", kind_of(pair.whole))]
        counted = [pair for pair in chosen if pair.window.readings >= COUNTED]
        other = [pair for pair in chosen if pair.window.readings < COUNTED]
        large = [pair for pair in counted if pair.whole.cost >= LARGE_COST]
        cells = [
            *_same(counted),
            tables.percent(Rate(sum(pair.live.right for pair in large), len(large))),
            tables.percent(Rate(sum(pair.whole.right for pair in large), len(large))),
            *_same(other),
        ]
        lines.append(f"| {tables.WORDS.get(kind, kind)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _same(pairs: Sequence[_Pair]) -> tuple[str, str]:
    none = sum(pair.live.answer.first.name == UNDECIDED for pair in pairs)
    return tables.percent(Rate(sum(pair.same for pair in pairs), len(pairs))), str(none)
