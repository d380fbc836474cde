"""Record the cases: each with and without what it puts in, by turns, judged and on disk as soon as it is over."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run_folder import RunError, load_run
from cli.control import Control, ControlError
from cli.gpu_lab.cases import Cases, Device, Put, Turn
from cli.output import console
from cli.verify import archive
from cli.verify.faults import FaultError, injected
from cli.verify.generator import GENERATOR_SOCKET, generator
from cli.verify.loads import Load
from cli.verify.pace import Measured
from cli.verify.record import Record
from lab import LabError

SCHEMA = 1
DEPLOY_SECONDS = 600.0
RUN_SECONDS = 300.0
FAILED_RUNS = 2
RECORD = "trials.jsonl"
LINK_KINDS = frozenset({"link_rate", "link_delay"})
# Of a verdict, beside each run; the whole of it is in the run's archive's measurements.
KEPT = ("class", "fault", "where", "kind", "confidence", "undecided", "gain", "runners_up")


class OutOfTimeError(Exception):
    """The time that there was is spent."""


class Trials:
    """Records turns in one lab.

    Parameters
    ----------
    folder
        Gets `trials.jsonl`, a line for each run, and `runs/`, an archive for each deployment's.
    deadline
        When to stop, by `time.monotonic`.
    deployed
        The stage that is up already; None is not known.
    """

    def __init__(
        self,
        control: Control,
        cases: Cases,
        device: Device,
        folder: Path,
        deadline: float,
        deployed: tuple[str, str] | None = None,
    ) -> None:
        self.control, self.cases, self.device, self.folder, self.deadline = control, cases, device, folder, deadline
        self.record = Record(folder / RECORD)
        self._raw = folder / "raw"
        self._deployed = deployed
        self._warm: set[str] = set()
        # Of the links, since they were last changed.
        self._measured = False
        self.runs = 0

    def take(self, turns: Sequence[Turn]) -> None:
        """Take the turns that the record does not have yet, until the time is spent."""
        done = self.record.done()
        named = list(zip(_names(turns), turns, strict=True))
        failed = 0
        try:
            with generator(self.control):
                for position, (name, turn) in enumerate(named):
                    if name in done:
                        continue
                    self._check_time()
                    try:
                        self._deploy(turn)
                        self._turn(name, turn)
                        failed = 0
                    except (ControlError, FaultError, LabError, RunError, OSError) as error:
                        # What is broken here is no reason to lose what comes after it.
                        console.print(f"[red]{name}: {error}[/]", soft_wrap=True)
                        self.record.add({"schema": SCHEMA, "case": name, "error": str(error) or type(error).__name__})
                        failed += 1
                        if failed >= FAILED_RUNS:
                            self._deployed, failed = None, 0
                    if position + 1 == len(named) or named[position + 1][1].stage != turn.stage:
                        self._pack()
        except OutOfTimeError:
            console.print("the time is spent; the next call goes on from here")
        finally:
            self._pack()
            with contextlib.suppress(ControlError):
                self.control.runner("cluster.undeploy", timeout=DEPLOY_SECONDS)

    def _deploy(self, turn: Turn) -> None:
        if self._deployed == turn.stage:
            return
        self._deployed, self._warm, self._measured = None, set(), False
        began = time.monotonic()
        self.control.runner("cluster.undeploy", timeout=DEPLOY_SECONDS)
        arguments = {"deployment": turn.deployment, "overrides": dict(turn.settings) or None}
        self.control.runner("cluster.deploy", arguments, timeout=DEPLOY_SECONDS)
        self._deployed = turn.stage
        console.print(f"{turn.deployment} {dict(turn.settings) or ''} deployed in {time.monotonic() - began:.0f} s")

    def _turn(self, name: str, turn: Turn) -> None:
        found = self.cases.load(turn.load, self.device)
        assert found is not None, "a case whose load has no form here is not among them"
        load, requests = found
        put = turn.case.put if turn.case else None
        strength = put.strength(self.device) if put else None
        if put and put.kind == "low_rate":
            load = Load(load.kind, load.concurrency, load.input_tokens, load.output_tokens, strength)
        began = time.time()
        on_link = put is not None and put.kind in LINK_KINDS
        settings = {
            **load.bench(requests, 1),
            "warmup": turn.load not in self._warm,
            # Seconds of a borrowed machine: what was measured of a link holds until something is done to it.
            "probe": on_link or not self._measured,
            "generator": GENERATOR_SOCKET,
        }
        with injected(self.control, injections(turn, self.device, self.control)):
            result = self.control.runner("bench.run", settings, timeout=RUN_SECONDS)
        self._warm.add(turn.load)
        self._measured = not on_link
        folder = self._raw / str(result["run"])
        self.control.fetch(str(result["folder"]), folder)
        verdict = analyse(load_run(folder)).to_json()
        (folder / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n", encoding="utf-8")
        headline = result["points"][0]["headline"]
        measured = Measured.of(headline)
        line = {
            "schema": SCHEMA,
            "case": name,
            "of": turn.case.name if turn.case else None,
            "device": self.device,
            "deployment": turn.deployment,
            "settings": dict(turn.settings),
            "load": load.to_json(),
            "requests": requests,
            "put": put.model_dump(mode="json", exclude_none=True) | {"strength": strength} if put else None,
            "expected": list(turn.case.expected) if turn.case else None,
            "began": began,
            "run": result["run"],
            "seconds_per_token": measured.seconds_per_token if measured else None,
            "verdict": {key: verdict[key] for key in KEPT},
            "problems": result["problems"],
            "error": "" if measured else str(result["first_error"] or "requests failed"),
        }
        self.record.add(line)
        self.runs += 1
        rate = f"{1 / measured.seconds_per_token:.4g} tokens/s" if measured else line["error"]
        console.print(f"{name}: {rate}; {verdict['class']} {verdict['where']}", soft_wrap=True)

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTimeError

    def _pack(self) -> None:
        """Put what was recorded of a deployment into an archive."""
        folders = sorted(path for path in self._raw.glob("*") if (path / "run.json").exists())
        if not folders:
            return
        archive.pack(folders, self.folder / "runs" / f"{folders[0].name}.tar.xz")
        for folder in folders:
            shutil.rmtree(folder)


def injections(turn: Turn, device: Device, control: Control) -> list[Mapping[str, Any]]:
    """Return what is done to the lab for a turn; see `cli.verify.faults`. Settings and loads need nothing there."""
    return put_in(turn.case.put if turn.case else None, turn.deployment, device, control)


def put_in(put: Put | None, deployment: str, device: Device, control: Control) -> list[Mapping[str, Any]]:
    """Return what is done to the lab for what is put into a deployment."""
    strength = put.strength(device) if put else None
    if put is None or strength is None:
        return []
    link = control.profile.deployments[deployment].link
    match put.kind:
        case "link_rate":
            return [{"kind": "throttle", "link": link, "bytes_per_second": strength, "cable": put.cable}]
        case "link_delay":
            return [{"kind": "delay", "link": link, "seconds": strength}]
        case "quota":
            return [{"kind": "slow", "node": put.node, "cores": strength}]
        case "api_server":
            return [{"kind": "api_server", "node": put.node, "cores": strength}]
        case "foreign_kernels" | "paused":
            return [{"kind": put.kind, "node": put.node, "share": strength}]
    return []


def _names(turns: Sequence[Turn]) -> list[str]:
    """Return a name for each turn that is the same in every call: the case's, or that of its load and how often."""
    seen: dict[str, int] = {}
    found = []
    for turn in turns:
        name = turn.case.name if turn.case else f"{turn.deployment}/{turn.load}"
        seen[name] = seen.get(name, 0) + 1
        found.append(name if turn.case else f"{name}/{seen[name]}")
    return found
