"""`cluster verify-verdicts`: known faults, verdicts that were not told of them, and the score."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import lab as lab_module
from bottleneck.diagnosis.causes import DECIDED
from bottleneck.diagnosis.scoring import EARLY_SECONDS, SPLITS, Outcome, markdown, score
from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run import Run, RunError, load_run
from bottleneck.units import duration_text
from cli.bench import Recorded, record_run, record_start
from cli.causal import experiment
from cli.cluster import deploy_model, undeploy_model
from cli.control import Control, connect, runs_directory
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import USAGE, console, emit, fail, out
from cli.verify import upgrades as upgrade_cases
from cli.verify.cases import NOT_INJECTED, Case, cases
from cli.verify.faults import FaultError, injected
from cli.verify.groups import dealt, groups
from cli.verify.record import Record
from cli.verify.recording import Recorder
from cli.verify.tables import confusion, every_case
from cli.verify.upgrades import UPGRADES, Upgrade
from lab import LabError
from lab.layout import CONTROL

SETTLE_SECONDS = 60.0
# A run below the first says little and is made again, with so many requests that it should last the second.
SHORTEST_SECONDS = 4.0
USUAL_SECONDS = 10.0
MOST_TIMES = 20


def verify_verdicts(
    seed: Annotated[int, typer.Option(min=1, help="Of the prompts, and of the split in two halves.")] = 1,
    only: Annotated[str | None, typer.Option(help="Only cases with this in their name, such as straggler.")] = None,
    split: Annotated[str | None, typer.Option(help="Only one half of the cases: development or held-out.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many cases; the next call goes on.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="Only one part of the cases, such as 2/5: each part in a lab of its own.")
    ] = None,
    upgrades: Annotated[
        bool, typer.Option("--upgrades", help="Instead: predict what taking a throttle away gives, do it, compare.")
    ] = False,
    settle: Annotated[
        bool, typer.Option(help="Have the causal experiment settle what a verdict is not sure of.")
    ] = True,
    again: Annotated[
        bool, typer.Option("--again", help="Instead: judge the recorded runs again, by the rules as they are now.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(min=1, help="Instead: record runs, healthy and faulty in turns, for so long.")
    ] = None,
    aside: Annotated[
        str | None,
        typer.Option(
            help="Cores, such as 26-31, for all that is no node: the control node, the load generator, cables' delays."
        ),
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Only the tables of what is recorded; run nothing.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the record; a case that is in it is not run again.")] = Path(
        "verify"
    ),
    listed: Annotated[bool, typer.Option("--list", help="Name the cases; run none.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Put known faults into the lab, ask for verdicts without telling, and keep the score.

    Each case is one line of the record as soon as it is done, so that a call goes on where the last one stopped.

    Examples:

      cluster verify-verdicts --list

      cluster verify-verdicts --seed 1 --limit 12

      cluster verify-verdicts --split development

      taskset -c 3-5 cluster verify-verdicts --shard 2/5 --lab second

      cluster verify-verdicts --again

      cluster verify-verdicts --table --output tests/data/verdicts

      cluster verify-verdicts --upgrades --json
    """
    # A fault is taken out for SIGTERM as for Ctrl-C, also where a script started this in the background and the shell
    # had it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if minutes is not None:
        _record_groups(seed, only, shard, minutes, aside, output, listed, profile, lab, as_json)
        return
    chosen: Sequence[Case | Upgrade] = list(UPGRADES) if upgrades else cases(seed)
    if split is not None and (upgrades or split not in SPLITS):
        fail(f"--split {split}: expected {' or '.join(SPLITS)}, of verdicts", "cluster verify-verdicts --help", USAGE)
    chosen = [
        case
        for case in chosen
        if (only is None or only in case.name) and (split is None or (isinstance(case, Case) and case.split == split))
    ]
    if not chosen:
        fail(f"--only {only}: no case has that in its name", "cluster verify-verdicts --list", USAGE)
    if shard is not None:
        chosen = _part(chosen, shard)
    if listed:
        _list(chosen, as_json)
        return
    record = Record(output / f"{'upgrades' if upgrades else 'verdicts'}-seed{seed}.jsonl")
    waiting = [case for case in chosen if case.name not in record.done()][:limit]
    if again:
        _judge_again(record, {case.name: case for case in chosen if isinstance(case, Case)})
    elif waiting and not table:
        control = connect(profile, lab)
        turn = _Turn(control, waiting)
        for case in turn.cases():
            document = (
                _upgrade(control, case, seed) if isinstance(case, Upgrade) else _ask(control, case, settle).to_json()
            )
            record.add(document)
            if document["error"]:
                turn.distrust()
            console.print(_line(document), soft_wrap=True)
    names = {case.name for case in chosen}
    lines = {case: document for case, document in record.lines().items() if case in names}
    if upgrades:
        figures = upgrade_cases.summary(lines)
        text = upgrade_cases.markdown(figures)
    else:
        outcomes = [Outcome.from_json(lines[case.name]) for case in chosen if case.name in lines]
        figures = {**score(outcomes), "not_injected": NOT_INJECTED}
        text = "\n".join((markdown(figures), confusion(figures), every_case(outcomes)))
    for suffix, content in ((".json", json.dumps(figures, indent=1) + "\n"), (".md", text)):
        record.path.with_suffix(suffix).write_text(content, encoding="utf-8")

    def human() -> None:
        typer.echo(text)
        left = len(names - record.done())
        out.print(f"{len(lines)} of {len(names)} cases, recorded in {record.path}", soft_wrap=True)
        if left:
            console.print(
                f"[dim]next:[/] cluster verify-verdicts{' --upgrades' if upgrades else ''}  ({left} are left)"
            )

    emit({"seed": seed, **figures}, as_json, human)


def _record_groups(
    seed: int,
    only: str | None,
    shard: str | None,
    minutes: float,
    aside: str | None,
    output: Path,
    listed: bool,
    profile: str,
    lab: str,
    as_json: bool,
) -> None:
    """Record the benchmark's groups, or one part of them, in a lab."""
    deadline = time.monotonic() + 60.0 * minutes
    chosen = [group for group in groups(seed) if only is None or only in group.name]
    if not chosen:
        fail(f"--only {only}: no group has that in its name", "cluster verify-verdicts --minutes 1 --list", USAGE)
    if shard is not None:
        number, parts = _shard(shard, len(chosen))
        chosen = dealt(chosen, parts)[number - 1]
    if listed:
        rows = [{"group": group.name, "runs": group.runs, "seconds": round(group.seconds)} for group in chosen]
        text = "\n".join(f"{row['group']}: {row['runs']} runs, about {row['seconds']} s" for row in rows)
        emit({"groups": rows}, as_json, lambda: typer.echo(text))
        return
    record = Record(output / f"runs-seed{seed}-{lab}.jsonl")
    control = connect(profile, lab)
    if aside is not None:
        # Nodes have cores of their own, and what is around them none of those.
        cores = _cores(aside)
        try:
            lab_module.place(lab, CONTROL, cores)
        except LabError as error:
            fail(str(error), "cluster verify-verdicts --help", error.code)
        os.sched_setaffinity(0, cores)
    recorder = Recorder(control, record, output, seed, deadline)
    recorder.record_groups(chosen)
    figures = {"runs": recorder.runs, "record": str(record.path)}
    emit(figures, as_json, lambda: out.print(f"{recorder.runs} runs, recorded in {record.path}", soft_wrap=True))


def _cores(text: str) -> list[int]:
    """Return the cores of `--aside`: numbers and ranges."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            fail(f"--aside {text}: expected cores, such as 26-31", "cluster verify-verdicts --help", USAGE)
        found += range(int(first), int(last or first) + 1)
    return found


def _shard(text: str, most: int) -> tuple[int, int]:
    """Return (part, parts) of `--shard`."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= most):
        fail(
            f"--shard {text}: expected part/parts, such as 2/5, at most {most} parts",
            "cluster verify-verdicts --help",
            USAGE,
        )
    return int(number), int(count)


def _part(chosen: Sequence[Case | Upgrade], shard: str) -> Sequence[Case | Upgrade]:
    """Return one part of the cases; neighbours stay together, because they share what is deployed."""
    number, count = _shard(shard, len(chosen))
    begin, end = (len(chosen) * border // count for border in (number - 1, number))
    return chosen[begin:end]


def _list(chosen: Sequence[Case | Upgrade], as_json: bool) -> None:
    rows = [{"case": case.name, "split": case.split if isinstance(case, Case) else None} for case in chosen]
    emit({"cases": rows}, as_json, lambda: typer.echo("\n".join(str(row["case"]) for row in rows)))


class _Turn:
    """Gives the cases one by one, with what each needs deployed, and says how long the rest takes."""

    def __init__(self, control: Control, waiting: Sequence[Case | Upgrade]) -> None:
        self._control, self._waiting = control, waiting
        self._deployed: tuple[str, str] | None = None

    def distrust(self) -> None:
        """Have everything deployed anew for the next case: the last one may have broken it."""
        self._deployed = None

    def cases(self) -> Iterator[Case | Upgrade]:
        """Return the cases, each once everything it needs is up; nothing is left deployed after the last one."""
        begun, count = time.monotonic(), len(self._waiting)
        for number, case in enumerate(self._waiting):
            wanted = case.deployed if isinstance(case, Case) else (case.deployment, "{}")
            if isinstance(case, Case) and case.is_start:
                # It deploys by itself, with its fault put in; what follows finds it deployed.
                self._deployed = wanted
            elif wanted != self._deployed:
                undeploy_model(self._control)
                deploy_model(self._control, wanted[0], json.loads(wanted[1]) or None)
                self._deployed = wanted
            left = (time.monotonic() - begun) / number * (count - number) if number else None
            more = f", about {duration_text(left)} left" if left is not None else ""
            console.rule(f"{number + 1} of {count}: {case.name}{more}", align="left")
            yield case
        undeploy_model(self._control)


def _ask(control: Control, case: Case, settle: bool) -> Outcome:
    """Put a case's fault in and ask; nothing that is asked knows of it."""
    put: dict[str, Any] = {
        "case": case.name,
        "fault": case.fault,
        "expected": case.expected,
        "node": case.node,
        "link": case.link,
        "split": case.split,
        "seed": case.seed,
        "labels": {"strength": case.strength, "load": case.load, "deployment": case.deployment},
    }
    try:
        if case.is_start:
            undeploy_model(control)
        with injected(control, case.injections):
            recorded = _record(control, case)
            if recorded.result.get("failed"):
                return Outcome(**put, answered="inconclusive", error=str(recorded.result["first_error"]))
            told = _judge(recorded.folder)
            confirmed = None
            if settle and not case.is_start and told["answered"] in DECIDED and told["answered"] not in case.expected:
                confirmed = _settle(control, case)
    except (FaultError, typer.Exit) as error:
        return Outcome(**put, answered="inconclusive", error=str(error) or "the command ended")
    return Outcome(**put, **told, confirmed=confirmed)


def _record(control: Control, case: Case) -> Recorded:
    """Send the case's load, or have its deployment start, and fetch what was recorded."""
    if case.is_start:
        deploy_model(control, case.deployment, dict(case.settings) or None)
        return record_start(control)
    recorded = record_run(control, case.bench)
    if recorded.result.get("failed") or (seconds := load_run(recorded.folder).seconds) >= SHORTEST_SECONDS:
        return recorded
    # A faster machine than the loads were made on: the same for longer.
    more = math.ceil(USUAL_SECONDS / max(seconds, USUAL_SECONDS / MOST_TIMES))
    return record_run(control, {**case.bench, "requests": more * case.bench["requests"]})


def _judge(folder: Path) -> dict[str, Any]:
    """Return what the verdict on a recorded run says, and how long it took."""
    begun = time.perf_counter()
    run = load_run(folder)
    verdict = analyse(run)
    spent = time.perf_counter() - begun
    early = verdict if run.seconds <= EARLY_SECONDS else analyse(_beginning(run))
    return {
        "answered": verdict.name,
        "runners_up": tuple(str(each["class"]) for each in verdict.runners_up),
        "confidence": verdict.confidence,
        "answered_node": verdict.where.get("node"),
        "answered_link": verdict.where.get("link"),
        "data_seconds": run.seconds,
        "analysis_seconds": spent,
        "early": early.name,
        "early_node": early.where.get("node"),
        "early_link": early.where.get("link"),
        "run": folder.name,
    }


def _beginning(run: Run) -> Run:
    """Return what was known of a run after its first seconds: a live window, without the client's timings."""
    start, _ = run.interval
    return run.window(start, start + EARLY_SECONDS)


def _judge_again(record: Record, chosen: Mapping[str, Case]) -> None:
    """Judge the recorded runs again; needs no lab."""
    for name, line in record.lines().items():
        if name not in chosen or line["error"]:
            continue
        folder = runs_directory() / line["run"]
        try:
            told = _judge(folder)
        except RunError as error:
            fail(f"{name}: {error}", "cluster verify-verdicts --again with CLUSTER_RUNS at the folder of the runs")
        case = chosen[name]
        known = {**line, "expected": case.expected, "split": case.split, **told}
        if told["answered"] not in DECIDED:
            known["confirmed"] = None
        record.add(Outcome.from_json(known).to_json())
        console.print(_line(known), soft_wrap=True)


def _settle(control: Control, case: Case) -> str:
    load = {key: value for key, value in case.workload.items() if key != "requests"}
    conclusion = experiment(control, SETTLE_SECONDS, load)["conclusion"]
    return str(conclusion["class"]) if conclusion["confirmed"] else "inconclusive"


def _upgrade(control: Control, case: Upgrade, seed: int) -> dict[str, Any]:
    try:
        with injected(control, case.injections):
            result = experiment(control, upgrade_cases.BUDGET_SECONDS, case.settings(seed))
    except (FaultError, typer.Exit) as error:
        return {"case": case.name, "factor": case.factor, "metrics": {}, "error": str(error) or "the command ended"}
    (made,) = result["upgrades"]
    return {
        "case": case.name,
        "factor": case.factor,
        "metrics": made["metrics"],
        "seed": seed,
        # What it rests on, in the order in which it ran; those of the upgrade that was made come last.
        "waves": [
            [wave["resource"], wave["slowdown"], wave["time_seconds"]] for wave in (*result["blocks"], *made["waves"])
        ],
        "seconds": result["seconds"],
        "error": "",
    }


def _line(document: dict[str, Any]) -> str:
    if document["error"]:
        return f"[red]not run[/]: {document['case']}: {document['error']}"
    if "answered" not in document:
        found = document["metrics"].get("time")
        return (
            f"{document['case']}: {found['error_points']:+.1f} points" if found else f"{document['case']}: no estimate"
        )
    mark = "[green]right[/]" if Outcome.from_json(document).right else "[red]wrong[/]"
    return f"{mark}: put in {document['fault']}, answered {document['answered']} ({document['confidence']:.0%})"
