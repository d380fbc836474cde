"""Record the benchmark's runs in a lab: healthy and faulty ones in turns, each on disk as soon as it is over.

Nothing is judged here. What a fault costs is measured: by the runs beside it that are without it.
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.control import Control, ControlError
from cli.output import console
from cli.verify import archive
from cli.verify.faults import FaultError, injected
from cli.verify.generator import GENERATOR_SOCKET, generator
from cli.verify.groups import DEPLOY_SECONDS, RUN_SECONDS, Block, Group, Stage, Step
from cli.verify.loads import Load
from cli.verify.pace import (
    HEALTHY_SECONDS,
    LEAST_REQUESTS,
    LEAST_ROUNDS,
    TOO_LONG,
    TOO_SHORT,
    Measured,
    requests_for,
)
from cli.verify.record import Record
from cli.verify.strengths import KINDS, Fault, Healthy, injections, made, next_strength
from lab import LabError

SCHEMA = 1
DEPLOY_TIMEOUT_SECONDS = 300.0
# A run may take as long as what surrounds it, and so many times what it takes without a fault.
AROUND_SECONDS, MOST_TIMES = 45.0, 8.0
# What did not end in time is taken to cost so much, for the search of the next strength.
ENDLESS_COST = 8.0
# After so many runs in a row that failed, the deployment is not trusted any more.
FAILED_RUNS = 2


@dataclass
class _Known:
    """Loads that a lab has run while a group lasts."""

    requests: int
    healthy: Measured | None = None
    # By kind and node: what each strength cost.
    costs: dict[tuple[str, str | None], dict[float, float]] = field(default_factory=dict)
    faults: dict[tuple[str, str | None, float], Fault] = field(default_factory=dict)


@dataclass(frozen=True)
class Sent:
    """A run whose load is over; its folder comes later."""

    measured: Measured | None
    error: str


class OutOfTimeError(Exception):
    """The time that there was is spent."""


class Recorder:
    """Records groups in one lab.

    Parameters
    ----------
    record
        One line for each run, and one for each group that is done.
    folder
        Where runs are put, and their archives.
    deadline
        When to stop, by `time.monotonic`.
    """

    def __init__(self, control: Control, record: Record, folder: Path, seed: int, deadline: float) -> None:
        self.control, self.record, self.folder, self.seed, self.deadline = control, record, folder, seed, deadline
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=4)
        self._pending: list[Future[None]] = []
        self._deployed: tuple[str, dict[str, Any]] | None = None
        self._failed = 0
        # Labs side by side write to one folder.
        self._raw = folder / f"raw-{control.lab}"
        self.runs = 0

    # Groups and stages -------------------------------------------------------------------

    def record_groups(self, groups: Sequence[Group]) -> None:
        """Record groups until the time is spent; what a lab has deployed at the end is stopped."""
        done = {str(line["group"]) for line in self.record.lines().values() if line.get("done")}
        try:
            with generator(self.control):
                for group in groups:
                    if group.name not in done:
                        self._group(group)
        except OutOfTimeError:
            console.print("the time is spent")
        finally:
            self._wait()
            self._pool.shutdown()
            with contextlib.suppress(ControlError):
                self.control.runner("cluster.undeploy", timeout=DEPLOY_TIMEOUT_SECONDS)

    def _group(self, group: Group) -> None:
        known: dict[Load, _Known] = {}
        whole = True
        rng = random.Random(f"{self.seed}/{group.name}/strengths")
        for number, stage in enumerate(group.stages):
            least = min(RUN_SECONDS.values()) * 3 + (0 if self._is_deployed(stage) else DEPLOY_SECONDS)
            self._check_time(least)
            console.rule(f"{group.name}: {stage.deployment} {dict(stage.settings) or ''}", align="left")
            try:
                for place, fault in enumerate(stage.starts):
                    self._start(f"{group.name}/{number}/{place:02d}", group, stage, fault)
                if stage.blocks and not self._is_deployed(stage):
                    self._deploy(stage)
                for place, block in enumerate(stage.blocks):
                    self._block(f"{group.name}/{number}.{place}", group, stage, block, known, rng)
            except (ControlError, FaultError, LabError) as error:
                # What is broken here is no reason to lose the rest of the night.
                self._deployed, whole = None, False
                console.print(f"[red]{group.name}: {error}[/]", soft_wrap=True)
                self._add({"case": f"{group.name}/{number}", "group": group.name, "error": str(error)})
            finally:
                self._pack(f"{group.name}.{number}")
        if whole:
            self._add({"case": f"{group.name}/done", "group": group.name, "done": True})

    def _is_deployed(self, stage: Stage) -> bool:
        return self._deployed == (stage.deployment, dict(stage.settings))

    def _deploy(self, stage: Stage) -> None:
        self._deployed, self._failed = None, 0
        # A start from a slow disk takes as long as its files do.
        timeout = DEPLOY_TIMEOUT_SECONDS * (2.0 if stage.starts else 1.0)
        began = time.monotonic()
        self.control.runner("cluster.undeploy", timeout=DEPLOY_TIMEOUT_SECONDS)
        arguments = {"deployment": stage.deployment, "overrides": dict(stage.settings) or None}
        self.control.runner("cluster.deploy", arguments, timeout=timeout)
        self._deployed = (stage.deployment, dict(stage.settings))
        console.print(f"deployed in {time.monotonic() - began:.0f} s")

    def _start(self, case: str, group: Group, stage: Stage, fault: Fault | None) -> None:
        """Record a deployment that starts, its files read from a slow disk or out of memory."""
        self._check_time(DEPLOY_SECONDS)
        faults = (fault,) if fault else ()
        line = {
            "schema": SCHEMA, "case": case, "group": group.name, "deployment": stage.deployment, "settings": {},
            "load": Load("start", 0, 0, 0).to_json(), "requests": 0, "faults": [each.to_json() for each in faults],
            "seed": self.seed, "lab": self.control.lab, "began": time.time(),
        }  # fmt: skip
        nodes = tuple(self.control.profile.deployments[stage.deployment].nodes)
        self.control.runner("cluster.undeploy", timeout=DEPLOY_TIMEOUT_SECONDS)
        with injected(self.control, [one for each in faults for one in injections(each, nodes)]):
            self._deploy(stage)
            result = self.control.runner("start_recording.record", timeout=DEPLOY_TIMEOUT_SECONDS)
        self.control.fetch(str(result["folder"]), self._raw / str(result["run"]))
        measured = {"start_seconds": result["start_seconds"]}
        self._add({**line, "run": result["run"], "measured": measured, "problems": result["problems"]})
        self.runs += 1
        described = f"cold_disk {fault.strength:.4g}" if fault else "healthy"
        console.print(f"{case}: {described}: {result['start_seconds']} s", soft_wrap=True)

    # Blocks ------------------------------------------------------------------------------

    def _block(
        self, name: str, group: Group, stage: Stage, block: Block, known: dict[Load, _Known], rng: random.Random
    ) -> None:
        load = block.load
        about = known.setdefault(load, _Known(max(LEAST_ROUNDS * load.concurrency, LEAST_REQUESTS)))
        turns, number = _turns(block), 0
        while turns:
            step = turns.pop(0)
            self._check_time(RUN_SECONDS[stage.deployment])
            faults = self._faults(stage, load, step, about, rng) if step else ()
            if faults is None:
                continue
            requests = about.requests
            sent = self._run(f"{name}/{number:02d}", group, stage, load, step, faults, about, number == 0)
            number += 1
            if not sent.error and sent.measured:
                self._learn(load, stage, step, faults, about, sent.measured)
            elif step and about.healthy:
                self._note_cost(step, faults, about, ENDLESS_COST)
            if step is None and about.requests != requests:
                # What a fault costs is compared over as many requests.
                turns.insert(0, None)

    def _faults(
        self, stage: Stage, load: Load, step: Step, about: _Known, rng: random.Random
    ) -> tuple[Fault, ...] | None:
        """Return what a step puts in; None for one whose healthy run is missing, or that was there before."""
        if about.healthy is None:
            return None
        healthy = Healthy(about.healthy.seconds_per_token, about.healthy.requests_per_second, about.healthy.seconds)
        found = []
        for part, cost in zip(step.parts, step.costs, strict=True):
            seen = about.costs.get(part, {})
            if step.again and seen:
                strength = min(seen, key=lambda put: abs(math.log(max(seen[put], 0.01) / cost)))
                found.append(about.faults[(*part, strength)])
                continue
            kind = KINDS[part[0]]
            strength = next_strength(kind, cost, stage.deployment, load, healthy, seen)
            fault = made(kind, strength, part[1], rng)
            if len(step.parts) == 1 and fault.strength in seen:
                # The end of the range: it would be the same case again.
                return None
            found.append(fault)
        return tuple(found)

    def _learn(
        self, load: Load, stage: Stage, step: Step | None, faults: tuple[Fault, ...], about: _Known, measured: Measured
    ) -> None:
        if step is None and not stage.faults:
            if about.healthy is None and not TOO_SHORT <= measured.seconds <= TOO_LONG:
                about.requests = requests_for(load, about.requests, measured.seconds)
            about.healthy = measured
        elif step and about.healthy and not stage.faults:
            self._note_cost(step, faults, about, measured.seconds_per_token / about.healthy.seconds_per_token - 1.0)

    @staticmethod
    def _note_cost(step: Step, faults: tuple[Fault, ...], about: _Known, cost: float) -> None:
        if len(faults) != 1:
            return
        (part,), (fault,) = step.parts, faults
        seen = about.costs.setdefault(part, {})
        before = seen.get(fault.strength)
        seen[fault.strength] = cost if before is None else (before + cost) / 2
        about.faults[(*part, fault.strength)] = fault

    # One run -----------------------------------------------------------------------------

    def _run(
        self,
        case: str,
        group: Group,
        stage: Stage,
        load: Load,
        step: Step | None,
        faults: tuple[Fault, ...],
        about: _Known,
        first: bool,
    ) -> Sent:
        whole = (*stage.faults, *faults)
        slow_rate = next((fault.strength for fault in faults if fault.kind == "low_rate"), None)
        sent_load = Load(load.kind, load.concurrency, load.input_tokens, load.output_tokens, slow_rate)
        line = {
            "schema": SCHEMA,
            "case": case,
            "group": group.name,
            "deployment": stage.deployment,
            "settings": dict(stage.settings),
            "load": load.to_json(),
            "requests": about.requests,
            "faults": [fault.to_json() for fault in whole],
            "costs": list(step.costs) if step else [],
            "again": bool(step and step.again),
            "seed": self.seed,
            "lab": self.control.lab,
            "began": time.time(),
        }
        usual = about.healthy.seconds if about.healthy else 4.0 * HEALTHY_SECONDS
        timeout = AROUND_SECONDS + MOST_TIMES * max(usual, HEALTHY_SECONDS)
        settings = {
            **sent_load.bench(about.requests, self.seed),
            # A load's first run after a start meets what is not yet warm.
            "warmup": first,
            "generator": GENERATOR_SOCKET,
        }
        nodes = tuple(self.control.profile.deployments[stage.deployment].nodes)
        put_in = [one for fault in faults for one in injections(fault, nodes)]
        began = time.monotonic()
        try:
            with injected(self.control, put_in):
                sent = self._send(line, settings, timeout)
        except (FaultError, LabError, OSError) as error:
            sent = Sent(None, str(error))
            self._add({**line, "error": sent.error})
        self.runs += 1
        self._failed = self._failed + 1 if sent.error else 0
        took = f"{sent.measured.seconds:.1f} of {time.monotonic() - began:.1f} s" if sent.measured else sent.error
        cost = ""
        if sent.measured and about.healthy and step:
            cost = f", {sent.measured.seconds_per_token / about.healthy.seconds_per_token - 1.0:+.0%}"
        described = ", ".join(f"{fault.kind} {fault.strength:.4g}" for fault in whole) or "healthy"
        console.print(f"{case}: {described}{cost}: {took}", soft_wrap=True)
        if self._failed >= FAILED_RUNS:
            raise ControlError(f"{self._failed} runs failed one after the other: {sent.error}")
        return sent

    def _send(self, line: dict[str, Any], settings: dict[str, Any], timeout: float) -> Sent:
        """Have a load sent; return when it is over, while its samples are still being collected."""
        over: Future[Measured | None] = Future()

        def follow(report: dict[str, Any]) -> None:
            points = report.get("points")
            if points and not over.done():
                over.set_result(Measured.of(points[0]["headline"]))

        def collect() -> None:
            # A line for each run, come what may: what failed is part of the record.
            try:
                result = self.control.runner("bench.run", settings, follow, timeout)
                self._keep(line, result)
                if not over.done():
                    over.set_exception(ControlError("the bench reported no end of its load"))
            except BaseException as error:
                self._add({**line, "error": str(error) or type(error).__name__})
                if not over.done():
                    over.set_exception(error if isinstance(error, Exception) else ControlError(str(error)))
                elif not isinstance(error, (ControlError, OSError)):
                    raise

        self._pending = [each for each in self._pending if not each.done()]
        self._pending.append(self._pool.submit(collect))
        try:
            measured = over.result()
        except (ControlError, OSError) as error:
            return Sent(None, str(error) or type(error).__name__)
        return Sent(measured, "" if measured else "requests failed")

    def _keep(self, line: dict[str, Any], result: Mapping[str, Any]) -> None:
        """Fetch a run and write its line."""
        folder = self._raw / str(result["run"])
        self.control.fetch(str(result["folder"]), folder)
        headline = result["points"][0]["headline"]
        kept = {key: headline.get(key) for key in (
            "completed", "failed", "duration_seconds", "output_tokens_per_second", "requests_per_second",
        )}  # fmt: skip
        for name in ("ttft_seconds", "tpot_seconds", "e2e_seconds"):
            kept[name] = (headline.get(name) or {}).get("mean")
        error = str(result["first_error"] or "requests failed") if result["failed"] else ""
        self._add({**line, "run": result["run"], "measured": kept, "problems": result["problems"], "error": error})

    def _add(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            self.record.add({"error": "", **line})

    # Around ------------------------------------------------------------------------------

    def _check_time(self, seconds: float) -> None:
        if time.monotonic() + seconds > self.deadline:
            raise OutOfTimeError

    def _wait(self) -> None:
        for each in self._pending:
            with contextlib.suppress(Exception):
                each.result()
        self._pending = []

    def _pack(self, name: str) -> None:
        """Put the runs of a stage into an archive, while the next deployment starts."""
        self._wait()
        folders = sorted(path for path in self._raw.glob("*") if (path / "run.json").exists())
        if folders:
            place = self.folder / "runs" / f"{name}-{int(time.time())}.tar.xz"
            self._pending.append(self._pool.submit(_pack_and_remove, folders, place))


def _pack_and_remove(folders: Sequence[Path], path: Path) -> None:
    archive.pack(folders, path)
    for folder in folders:
        shutil.rmtree(folder)


def _turns(block: Block) -> list[Step | None]:
    """Return a block's runs in order: a healthy one (None) first, after every two faulty ones, and last."""
    if not block.steps:
        return [None] * block.healthy
    order: list[Step | None] = [None]
    for number, step in enumerate(block.steps, 1):
        order.append(step)
        if number % 2 == 0 or number == len(block.steps):
            order.append(None)
    return order
