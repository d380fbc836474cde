"""`cluster gpu-lab`: bring a lab of cards up, measure it, put faults in, keep the score; or rehearse it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer

import lab as lab_module
from bottleneck import atomic_files
from bottleneck.profile import Profile, ProfileError, find_profile, load_profile
from bottleneck.runs.run_folder import RunError
from cli.bench import record_run
from cli.cluster import apply_states, deploy_model
from cli.control import Control, connect
from cli.gpu_lab.again import judged_again
from cli.gpu_lab.cases import Case, Device, Trace, Turn, all_cases, turns
from cli.gpu_lab.scores import scores, sentence, summary, table
from cli.gpu_lab.steps import Steps
from cli.gpu_lab.tracing import Tracing, record_of
from cli.gpu_lab.trials import RECORD, Trials
from cli.options import JsonOption
from cli.output import FAILED, USAGE, console, emit, fail, out, plain, step
from cli.probe import measure
from cli.report.command import write_report
from cli.verify.record import Record
from lab import LabError
from lab import cards as machine

HELP = "cluster gpu-lab --help"
PROFILES: Mapping[int, str] = {2: "gpu-pair", 4: "gpu-mesh"}
LAB = "gpu-lab"
# The loads of the first benches, under the profile's default deployment.
FIRST_LOADS = ("alone", "chat", "prompts")


def gpu_lab(
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="cpu rehearses the same on processors.")] = "cuda",
    cards: Annotated[int, typer.Option(help="2 with a cable between them, or 4 as a full mesh.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of all records; a call goes on from what is there.")] = Path(
        "gpu-lab"
    ),
    minutes: Annotated[float | None, typer.Option(min=1, help="Begin no further case after so long.")] = None,
    only: Annotated[str | None, typer.Option(help="Only cases with this in their name; several by commas.")] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Another profile of kind lab.", show_default="by --cards")
    ] = None,
    lab: Annotated[str, typer.Option(help="Name of the lab.")] = LAB,
    cases_only: Annotated[
        bool, typer.Option("--cases-only", help="Leave out the first benches and their report.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Say what this machine lacks; start nothing.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="In place of the cases: trace some runs with torch's profiler.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Name the cases; start nothing.")] = False,
    again: Annotated[
        list[Path] | None,
        typer.Option(help="Judge a folder's records again with today's rules; start nothing. May be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a cluster of this machine's cards, find what holds it back, and see whether known faults are named.

    Every step leaves its record in the folder as soon as it is over. A card's clocks, power limit and mode stay.

    Examples:

      cluster gpu-lab --check

      cluster gpu-lab --output records --minutes 25

      cluster gpu-lab --trace --only trace-tp2-alone,trace-tp2-chat

      cluster gpu-lab --device cpu --only tp2-rate-5-prompts,tp2-starved-follower,tp2-idle-client

      cluster gpu-lab --again records
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if cards not in PROFILES:
        fail(f"--cards {cards}: expected 2 or 4", HELP, USAGE)
    if again:
        _judge_again(again, as_json)
        return
    form: Device = "cards" if device == "cuda" else "processors"
    chosen = _chosen(all_cases().traces_of(cards, form) if trace else all_cases().of(cards, form), only)
    if listed:
        _list(chosen, as_json)
        return
    name = profile or PROFILES[cards] + ("" if device == "cuda" else "-cpu")
    try:
        loaded = load_profile(find_profile(name))
    except ProfileError as error:
        fail(str(error), f"cluster profile check {name}", USAGE)
    try:
        found = machine.machine_cards()
    except LabError as error:
        fail(str(error), "nvidia-smi", FAILED)
    lacks = [*machine.lacks(loaded, found), *machine.machine_lacks(loaded)]
    if check or lacks:
        _say_lacks(loaded, found, lacks, as_json)
        if lacks:
            fail(f"this machine lacks {len(lacks)} of what {loaded.name} needs", "cluster gpu-lab --device cpu")
        return
    deadline = time.monotonic() + (60.0 * minutes if minutes is not None else float("inf"))
    steps = Steps(output, lambda folder: _keep_logs(lab, folder))
    try:
        _whole_way(loaded, lab, form, chosen, found, steps, deadline, cases_only)
    except LabError as error:
        fail(str(error), f"cluster lab status {lab}", error.code)
    finally:
        with steps.step("lab-down"), step("Taking everything down"):
            lab_module.down(lab)
    if trace:
        _say_traces(chosen, steps, as_json)
        return
    lines = Record(output / RECORD).lines().values()
    result = {"folder": str(output.absolute()), "seconds": steps.seconds, **summary(scores(lines))}
    (output / "scores.md").write_text(table(scores(lines)), encoding="utf-8")
    atomic_files.replace_json(output / "scores.json", result)
    emit(result, as_json, lambda: plain(table(scores(lines)) + f"\nrecorded in {output}"))


def _whole_way(
    profile: Profile,
    lab: str,
    device: Device,
    chosen: Sequence[Case | Trace],
    found: list[machine.Card],
    steps: Steps,
    deadline: float,
    cases_only: bool,
) -> None:
    """Go from bare nodes to the last case, or the last trace."""
    with steps.step("machine") as current:
        current.result = {
            "cards": [dataclasses.asdict(card) for card in found],
            "profile": profile.name,
            "digest": profile.digest,
            "cores": len(os.sched_getaffinity(0)),
            "kernel": os.uname().release,
            "cases": [case.name for case in chosen],
        }
        shutil.copy(profile.path, steps.folder / "profile.yaml")
    with steps.step("lab-up") as current, step(f"Making {len(profile.nodes)} nodes and a control node") as shown:
        lab_module.down(lab)
        current.result = lab_module.up(profile, lab, shown.detail, owner=os.getpid())
    control = connect(str(profile.path), lab)
    with steps.step("apply") as current:
        current.result = {"nodes": apply_states(control, False)}
        failed = [
            f"{node}: {each['comment']}" for node, one in current.result["nodes"].items() for each in one["failed"]
        ]
        if failed:
            fail("; ".join(failed), f"cluster plan --lab {lab}")
    with steps.step("probe") as current:
        current.result = dict(measure(control))
    traces = [each for each in chosen if isinstance(each, Trace)]
    if traces:
        Tracing(control, all_cases(), device, steps, deadline).take(traces)
        return
    deployed = not cases_only and _first_benches(control, device, steps)
    with steps.step("cases") as current:
        stage = Turn(profile.default_deployment, "", {}).stage if deployed else None
        trials = Trials(control, all_cases(), device, steps.folder, deadline, stage)
        trials.take(turns([each for each in chosen if isinstance(each, Case)], device))
        current.result = {"runs": trials.runs}


def _first_benches(control: Control, device: Device, steps: Steps) -> bool:
    """Deploy over all nodes, bench, judge and report; return whether that was to be done, and something is up."""
    if steps.is_done("report"):
        return False
    with steps.step("deploy") as current:
        current.result = deploy_model(control, None)
    folders = []
    for load_name in FIRST_LOADS:
        found = all_cases().load(load_name, device)
        if found is None:
            continue
        load, requests = found
        with steps.step(f"bench-{load_name}") as current:
            recorded = record_run(control, load.bench(requests, 1), f"Sending {requests} requests ({load_name})")
            current.result = {"run": recorded.result["run"], "points": recorded.result["points"]}
            current.result["verdict"] = recorded.verdict.to_json()
            steps.keep_run(recorded.folder)
            folders.append(recorded.folder)
            out.print(f"[bold]{recorded.verdict.title}[/] [dim](confidence {recorded.verdict.confidence:.0%})[/]")
    with steps.step("report"), step("Writing the report"):
        write_report(folders, steps.folder / "report.html")
    return True


def _chosen(cases: Sequence[Case | Trace], only: str | None) -> Sequence[Case | Trace]:
    if only is None:
        return cases
    parts = [part.strip() for part in only.split(",") if part.strip()]
    found = [case for case in cases if any(part in case.name for part in parts)]
    if not found:
        fail(f"--only {only}: no case has that in its name", "cluster gpu-lab --list", USAGE)
    return found


def _judge_again(folders: list[Path], as_json: bool) -> None:
    """Score records anew; a fault is compared with runs of its own folder."""
    found = []
    for folder in folders:
        if not (folder / RECORD).exists():
            fail(f"--again {folder}: it has no {RECORD}", "cluster gpu-lab --output FOLDER", USAGE)
        try:
            with step(f"Judging the runs of {folder}"):
                found += scores(judged_again(folder))
        except RunError as error:
            fail(str(error), HELP, FAILED)
    emit(summary(found), as_json, lambda: plain(table(found) + "\n" + sentence(summary(found))))


def _list(cases: Sequence[Case | Trace], as_json: bool) -> None:
    rows = [case.model_dump(mode="json", exclude_none=True) for case in cases]
    lines = [
        f"{case.name}: {case.put.kind if case.put else 'nothing'} under {case.load}, "
        + (" or ".join(case.expected) if isinstance(case, Case) else f"traced on {case.deployment}")
        for case in cases
    ]
    emit({"cases": rows}, as_json, lambda: plain("\n".join(lines)))


def _say_traces(traces: Sequence[Case | Trace], steps: Steps, as_json: bool) -> None:
    """Say which traces are on record, and end with status 1 when one is not."""
    records = {each.name: record_of(steps.folder, each.name) for each in traces}
    lacking = [name for name, path in records.items() if not path.exists()]
    lines = [f"{name}: {'no record' if name in lacking else path}" for name, path in records.items()]
    document = {
        "folder": str(steps.folder.absolute()),
        "seconds": steps.seconds,
        "traces": {name: None if name in lacking else str(path) for name, path in records.items()},
    }
    emit(document, as_json, lambda: plain("\n".join(lines)))
    if lacking:
        fail(f"{', '.join(lacking)}: not traced", f"xz -dc {steps.folder}/*-{lacking[0]}.json.xz", FAILED)


def _say_lacks(profile: Profile, found: list[machine.Card], lacks: list[machine.Lack], as_json: bool) -> None:
    document: dict[str, Any] = {
        "profile": profile.name,
        "cards": [dataclasses.asdict(card) for card in found],
        "lacks": [dataclasses.asdict(lack) for lack in lacks],
    }

    def human() -> None:
        for card in found:
            plain(f"card {card.index}: {card.name}, {card.memory_bytes / 2**30:.0f} GiB, driver {card.driver}")
        for lack in lacks:
            plain(f"lacking: {lack}")
        if not lacks:
            console.print(f"nothing is lacking for {profile.name}")

    emit(document, as_json, human)


def _keep_logs(lab: str, folder: Path) -> None:
    """Put the nodes' logs into one archive in the folder of records."""
    with TemporaryDirectory(prefix="gpu-lab-logs-") as scratch:
        copied = Path(scratch) / "logs"
        lab_module.copy_logs(lab, copied)
        if copied.is_dir():
            made = shutil.make_archive(str(Path(scratch) / "logs"), "xztar", scratch, "logs")
            atomic_files.replace(folder.with_suffix(".tar.xz"), Path(made).read_bytes())
