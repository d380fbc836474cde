"""`cluster verify-verdicts`: record what known faults cost, judge the records, keep the score."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import lab as lab_module
from bottleneck.accuracy.figures import Figures, Rate, figures
from bottleneck.json_numbers import finite
from cli.cluster import deploy_model, undeploy_model
from cli.control import Control, connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import USAGE, console, emit, fail, out, plain
from cli.verify import judging, tables
from cli.verify import upgrades as upgrade_cases
from cli.verify.groups import Group, dealt
from cli.verify.plan import groups, starts
from cli.verify.record import Record
from cli.verify.recording import Recorder
from cli.verify.upgrades import UPGRADES, Upgrade
from lab import LabError
from lab.layout import CONTROL

HELP = "cluster verify-verdicts --help"
# Without a limit a call goes on until everything is recorded.
ENDLESS_MINUTES = 60.0 * 24 * 7


def verify_verdicts(
    seed: Annotated[int, typer.Option(min=1, help="Of all that is drawn: loads, places, prompts.")] = 1,
    only: Annotated[str | None, typer.Option(help="Only groups with this in their name, such as tp2-links.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="Only one part of the groups, such as 2/5: each part in a lab of its own.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=1, help="Stop after so long; the next call goes on.")] = None,
    aside: Annotated[
        str | None,
        typer.Option(
            help="Cores, such as 24-31, for all that is no node: the control node, the load generator, cables' delays."
        ),
    ] = None,
    upgrades: Annotated[
        bool, typer.Option("--upgrades", help="Instead: predict what taking a throttle away gives, do it, compare.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Instead: judge the recorded runs, by the rules as they are now.")
    ] = False,
    table: Annotated[bool, typer.Option("--table", help="Only the tables of what is judged; run nothing.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the record; a group that is in it is not recorded again.")] = (
        Path("verify")
    ),
    listed: Annotated[bool, typer.Option("--list", help="Name the groups; run none.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Put known faults into the lab, measure what they cost, and see whether verdicts name them.

    Recording judges nothing: healthy and faulty runs take turns, and each is on disk as soon as it is over.
    What was recorded is judged as often as you like, without a lab.

    Examples:

      cluster verify-verdicts --list

      cluster verify-verdicts --minutes 20

      taskset -c 2-3 cluster verify-verdicts --shard 2/12 --lab part2 --aside 24-31

      cluster verify-verdicts --again

      cluster verify-verdicts --table --output tests/data/verdicts

      cluster verify-verdicts --upgrades --json
    """
    # A fault is taken out for SIGTERM as for Ctrl-C, also where a script started this in the background and the shell
    # had it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    deadline = time.monotonic() + 60.0 * (ENDLESS_MINUTES if minutes is None else minutes)
    if again or table:
        if upgrades:
            fail("--again and --table are of verdicts, not of --upgrades", HELP, USAGE)
        _judge(output, again, as_json)
        return
    # Starts want the machine for themselves: they are recorded when they are named.
    known = [starts()] if only == "starts" else groups(seed)
    chosen: Sequence[Group | Upgrade] = list(UPGRADES) if upgrades else known
    chosen = [one for one in chosen if only is None or only in one.name]
    if not chosen:
        fail(f"--only {only}: none has that in its name", "cluster verify-verdicts --list", USAGE)
    if shard is not None:
        chosen = _part(chosen, shard)
    if listed:
        _list(chosen, as_json)
        return
    control = connect(profile, lab)
    if aside is not None:
        _set_aside(lab, aside)
    if upgrades:
        _upgrade_all(control, [one for one in chosen if isinstance(one, Upgrade)], seed, output, deadline, as_json)
        return
    record = Record(output / f"runs-seed{seed}-{lab}.jsonl")
    recorder = Recorder(control, record, output, seed, deadline)
    recorder.record_groups([one for one in chosen if isinstance(one, Group)])

    def human() -> None:
        out.print(f"{recorder.runs} runs, recorded in {record.path}", soft_wrap=True)
        console.print(f"[dim]next:[/] cluster verify-verdicts --again --output {output}", soft_wrap=True)

    emit({"runs": recorder.runs, "record": str(record.path)}, as_json, human)


def _judge(folder: Path, again: bool, as_json: bool) -> None:
    """Judge what is recorded, or show what was judged."""
    trials = judging.trials(folder)
    if not trials:
        fail(f"{folder} has no recorded run: no runs*.jsonl with one in it", "cluster verify-verdicts", USAGE)
    if again:
        answers = {}
        try:
            for number, each in enumerate(judging.judge_again(folder, [trial.run for trial in trials]), 1):
                answers[each.run] = each
                if number % 100 == 0:
                    console.print(f"{number} of {len(trials)} runs judged")
        except judging.MissingRunError as error:
            fail(str(error), f"cluster verify-verdicts --table --output {folder}")
        judging.write_answers(folder, answers)
    else:
        answers = judging.answers(folder)
        if not answers:
            fail(f"{folder} has no answers", f"cluster verify-verdicts --again --output {folder}", USAGE)
    found = figures(judging.judged(trials, answers))

    def human() -> None:
        plain(tables.whole(found))

    emit(document(found), as_json, human)


def document(found: Figures) -> dict[str, Any]:
    """Return the figures as plain data."""

    def plain(value: object) -> Any:
        if isinstance(value, Rate):
            low, high = value.interval
            return {"hits": value.hits, "of": value.of, "rate": value.value, "low": low, "high": high}
        if dataclasses.is_dataclass(value):
            return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, tuple | list | frozenset) else value

    whole = plain(found)
    whole["wrong"] = [each.truth.trial.case for each in found.wrong]
    result: dict[str, Any] = finite(whole)
    return result


def _part(chosen: Sequence[Group | Upgrade], shard: str) -> Sequence[Group | Upgrade]:
    """Return one part of what there is."""
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= len(chosen)):
        fail(f"--shard {shard}: expected part/parts, such as 2/5, at most {len(chosen)} parts", HELP, USAGE)
    whole = [one for one in chosen if isinstance(one, Group)]
    return dealt(whole, int(count))[int(number) - 1] if whole else chosen[int(number) - 1 :: int(count)]


def _list(chosen: Sequence[Group | Upgrade], as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {"name": one.name, **({"runs": one.runs, "seconds": round(one.seconds)} if isinstance(one, Group) else {})}
        for one in chosen
    ]
    lines = [f"{row['name']}: {row['runs']} runs, {row['seconds']} s" if "runs" in row else row["name"] for row in rows]
    emit({"groups": rows}, as_json, lambda: plain("\n".join(lines)))


def _set_aside(lab: str, text: str) -> None:
    """Put the control node, and this program, on cores that are no node's."""
    cores: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            fail(f"--aside {text}: expected cores, such as 24-31", HELP, USAGE)
        cores += range(int(first), int(last or first) + 1)
    try:
        lab_module.place(lab, CONTROL, cores)
    except LabError as error:
        fail(str(error), HELP, error.code)
    os.sched_setaffinity(0, cores)


def _upgrade_all(
    control: Control, chosen: Sequence[Upgrade], seed: int, output: Path, deadline: float, as_json: bool
) -> None:
    """Make the upgrades that are not recorded yet, until the time is spent."""
    record = Record(output / f"upgrades-seed{seed}.jsonl")
    waiting, deployed = [case for case in chosen if case.name not in record.done()], ""
    for number, case in enumerate(waiting, 1):
        if time.monotonic() > deadline:
            break
        console.rule(f"{number} of {len(waiting)}: {case.name}", align="left")
        if case.deployment != deployed:
            undeploy_model(control)
            deploy_model(control, case.deployment)
            deployed = case.deployment
        line = upgrade_cases.made(control, case, seed)
        record.add(line)
        if line["error"]:
            # It may have broken what is deployed.
            deployed = ""
        console.print(upgrade_cases.line_text(line), soft_wrap=True)
    if waiting:
        undeploy_model(control)
    names = {case.name for case in chosen}
    found = upgrade_cases.summary({name: line for name, line in record.lines().items() if name in names})
    text = upgrade_cases.markdown(found)
    record.path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    record.path.with_suffix(".md").write_text(text, encoding="utf-8")
    emit({"seed": seed, **found}, as_json, lambda: plain(text))
