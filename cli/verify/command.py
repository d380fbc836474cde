"""`cluster verify-verdicts`: known faults, verdicts that were not told of them, and the score."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bottleneck.run import load_run
from bottleneck.scoring import Outcome, markdown, score
from bottleneck.units import duration_text
from bottleneck.verdict import analyse
from cli.bench import record_run
from cli.causal import experiment
from cli.cluster import deploy_model, undeploy_model
from cli.control import Control, connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import USAGE, console, emit, fail, out
from cli.verify import upgrades as upgrade_cases
from cli.verify.cases import NOT_INJECTED, Case, cases
from cli.verify.faults import FaultError, injected
from cli.verify.record import Record
from cli.verify.upgrades import UPGRADES, Upgrade

SETTLE_SECONDS = 60.0


def verify_verdicts(
    seed: Annotated[int, typer.Option(min=1, help="Of the prompts, and of the split in two halves.")] = 1,
    only: Annotated[str | None, typer.Option(help="Only cases with this in their name, such as straggler.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many cases; the next call goes on.")] = None,
    upgrades: Annotated[
        bool, typer.Option("--upgrades", help="Instead: predict what taking a throttle away gives, do it, compare.")
    ] = False,
    settle: Annotated[
        bool, typer.Option(help="Have the causal experiment settle what a verdict is not sure of.")
    ] = True,
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

      cluster verify-verdicts --upgrades --json
    """
    chosen: Sequence[Case | Upgrade] = list(UPGRADES) if upgrades else cases(seed)
    chosen = [case for case in chosen if only is None or only in case.name]
    if not chosen:
        fail(f"--only {only}: no case has that in its name", "cluster verify-verdicts --list", USAGE)
    if listed:
        _list(chosen, as_json)
        return
    record = Record(output / f"{'upgrades' if upgrades else 'verdicts'}-seed{seed}.jsonl")
    waiting = [case for case in chosen if case.name not in record.done()][:limit]
    if waiting:
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
        figures = {**score(Outcome.from_json(document) for document in lines.values()), "not_injected": NOT_INJECTED}
        text = markdown(figures)
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
            if wanted != self._deployed:
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
        with injected(control, case.injections):
            recorded = record_run(control, case.bench)
            if recorded.result["failed"]:
                return Outcome(**put, answered="inconclusive", error=str(recorded.result["first_error"]))
            begun = time.perf_counter()
            run = load_run(recorded.folder)
            verdict = analyse(run)
            spent = time.perf_counter() - begun
            confirmed = None
            if settle and verdict.name in ("balanced", "inconclusive") and verdict.name not in case.expected:
                confirmed = _settle(control, case)
    except (FaultError, typer.Exit) as error:
        return Outcome(**put, answered="inconclusive", error=str(error) or "the command ended")
    return Outcome(
        **put,
        answered=verdict.name,
        runners_up=tuple(str(each["class"]) for each in verdict.runners_up),
        confidence=verdict.confidence,
        answered_node=verdict.where.get("node"),
        answered_link=verdict.where.get("link"),
        confirmed=confirmed,
        data_seconds=run.seconds,
        analysis_seconds=spent,
    )


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
        "blocks": len(result["blocks"]),
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
