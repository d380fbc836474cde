"""`cluster demo`: from nothing to a verdict, then to another one, on this machine."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import lab as lab_module
from bottleneck.profile import ProfileError, find_profile, load_profile
from bottleneck.units import RATE
from cli.bench import Recorded, record_run
from cli.bottleneck import show_verdict
from cli.cluster import apply_states, deploy_model, undeploy_model
from cli.control import Control, connect
from cli.options import DEFAULT_PROFILE, ProfileOption
from cli.output import USAGE, console, fail, out, step
from cli.probe import measure
from cli.report.command import write_report

DEMO_LAB = "make-demo"
TENSOR_PARALLEL, PIPELINE_PARALLEL = "tp2", "pp2"
LINK = "direct"
# All-reduces of a 4 x 256 token prefill move 2 MiB for each of 17: at 50 Mbit/s that is seconds.
THROTTLED_RATE = "50 Mbit/s"
REQUESTS, THROTTLED_REQUESTS = 16, 8


@dataclass
class Story:
    """The course of the demo so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    runs: list[tuple[str, Recorded]] = field(default_factory=list)
    peak_memory_bytes: int | None = None

    def chapter(self, title: str) -> "Chapter":
        console.rule(f"[bold]{title}[/]", align="left")
        return Chapter(self, title)


class Chapter:
    """Times one step of the demo."""

    def __init__(self, story: Story, title: str) -> None:
        self._story, self._title = story, title

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._story.seconds[self._title] = time.monotonic() - self._started


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up at the end.")] = False,
    rate: Annotated[str, typer.Option(help="What the direct link is throttled to.")] = THROTTLED_RATE,
    profile: ProfileOption = DEFAULT_PROFILE,
) -> None:
    """Bring a two-node cluster up on this machine, find what holds it back, throttle a link, and look again.

    Examples:

      cluster demo

      cluster demo --rate "50 Mbit/s" --keep
    """
    # The lab goes down for SIGTERM as for Ctrl-C, also where a script started this in the
    # background and the shell had it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        loaded = load_profile(find_profile(profile))
        throttled_rate = RATE.parse(rate)
    except (ProfileError, ValueError) as error:
        fail(str(error), f"cluster profile check {profile}", USAGE)
    missing = {TENSOR_PARALLEL, PIPELINE_PARALLEL} - loaded.deployments.keys()
    if missing or LINK not in loaded.networks:
        fail(f"the demo needs deployments tp2 and pp2 and a network {LINK}, as in the embedded profile", code=USAGE)
    story = Story()
    started = time.monotonic()
    try:
        with story.chapter("lab up"), step("Making two nodes and a control node") as current:
            # One that an earlier demo kept has other things in it; the guard takes ours down
            # even if this process is killed.
            lab_module.down(DEMO_LAB)
            lab_module.up(loaded, DEMO_LAB, current.detail, owner=None if keep else os.getpid())
        control = connect(profile, DEMO_LAB)
        _measure_twice(control, story, float(throttled_rate), rate)
        with story.chapter("report"), step("Writing the report"):
            newest_first = [recorded.folder for _, recorded in reversed(story.runs[:2])] + [story.runs[2][1].folder]
            report = write_report(newest_first, story.runs[1][1].folder / "report.html")
    except lab_module.LabError as error:
        fail(str(error), "cluster lab status " + DEMO_LAB, error.code)
    finally:
        story.peak_memory_bytes = lab_module.status(DEMO_LAB).get("peak_memory_bytes")
        if not keep:
            with story.chapter("lab down"), step("Taking everything down"):
                lab_module.down(DEMO_LAB)
    _summarize(story, report, time.monotonic() - started)


def _measure_twice(control: Control, story: Story, throttled_rate: float, rate: str) -> None:
    with story.chapter("apply"):
        results = apply_states(control, False)
        failed = [f"{node}: {state['comment']}" for node, result in results.items() for state in result["failed"]]
        if failed:
            fail("; ".join(failed), f"cluster plan --lab {control.lab}")
    with story.chapter("probe"):
        measure(control)
    with story.chapter("deploy tp2"):
        deploy_model(control, TENSOR_PARALLEL)
    with story.chapter("bench tp2"):
        _bench(control, story, "TP=2", REQUESTS)
    with story.chapter(f"bench tp2, link at {rate}"):
        lab_module.throttle(control.lab, LINK, throttled_rate)
        _bench(control, story, f"TP=2, {LINK} at {rate}", THROTTLED_REQUESTS)
    with story.chapter("deploy pp2"):
        undeploy_model(control)
        deploy_model(control, PIPELINE_PARALLEL)
    with story.chapter(f"bench pp2, link at {rate}"):
        _bench(control, story, f"PP=2, {LINK} at {rate}", THROTTLED_REQUESTS)


def _bench(control: Control, story: Story, title: str, requests: int) -> None:
    recorded = record_run(control, {"requests": requests, "note": f"demo: {title}"}, f"Sending {requests} requests")
    if recorded.result["failed"]:
        fail(f"{recorded.result['failed']} requests failed: {recorded.result['first_error']}")
    story.runs.append((title, recorded))
    show_verdict(recorded.verdict)


def _summarize(story: Story, report: Path, seconds: float) -> None:
    """Print what was seen, and fail when the verdict did not turn to the link."""
    table = Table("run", "output tokens/s", "first token", "per token", "verdict", "confidence", title="What was seen")
    for title, recorded in story.runs:
        headline = recorded.result["points"][0]["headline"]
        table.add_row(
            title,
            f"{headline['output_tokens_per_second']:.1f}",
            f"{headline['ttft_seconds']['median']:.2f} s",
            f"{headline['tpot_seconds']['median'] * 1e3:.0f} ms",
            recorded.verdict.title,
            f"{recorded.verdict.confidence:.0%}",
        )
    steps = Table("step", "seconds", title="How long it took")
    for title, spent in story.seconds.items():
        steps.add_row(title, f"{spent:.1f}")
    steps.add_row("[bold]all[/]", f"[bold]{seconds:.1f}[/]")
    out.print(steps)
    out.print(table)
    if story.peak_memory_bytes:
        out.print(f"memory of the lab at most: {story.peak_memory_bytes / 2**30:.2f} GiB")
    out.print(f"report: {report}", soft_wrap=True)
    before, after = story.runs[0][1].verdict, story.runs[1][1].verdict
    if before.name == "link_bandwidth" or after.name != "link_bandwidth" or after.where.get("link") != LINK:
        fail(f"the verdict was to turn to the link {LINK}: it was {before.name}, then {after.name}")
