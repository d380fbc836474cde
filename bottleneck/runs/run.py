"""A run on disk and in memory: what was sent, what was measured, what was known beforehand.

A run may be cut short. Whatever is there is loaded; what is missing or broken is named in `Run.problems`.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bottleneck.json_numbers import number
from bottleneck.load.client import ClientRequest, ClientResult, client_result
from bottleneck.telemetry.batches import Batch, flat_readings
from bottleneck.telemetry.prometheus_text import MetricsText

if TYPE_CHECKING:
    from bottleneck.profile.types import Profile

__all__ = ["Batch", "ClientRequest", "ClientResult", "Run", "RunError", "client_result", "load_run", "window_run"]

SCHEMA = 1


class RunError(Exception):
    """The folder is not a run at all."""


@dataclass
class Run:
    """One deployment under one workload, with everything recorded.

    Attributes
    ----------
    interval : tuple of float
        Start and end in unix seconds; the analysis looks at nothing outside.
    engine_before, engine_after : dict
        Engine metrics by head.
    problems : list of str
        What is missing or could not be read.
    live : bool
        True for a window of a serving cluster: no client timings are to be expected.
    start : bool
        True for the start of an engine, from the order to deploy until it served: neither client timings nor engine
        metrics are to be expected.
    scenario : bool
        True for recorded engine metrics of one server: neither a profile nor samples are to be expected.
    settings_whole : bool
        Whether the plan's command line is all that the engine was told: what is not in it has its default.
    foreign_ceilings : str
        Why the ceilings are taken to be another machine's; empty when they are not.
    """

    id: str = ""
    deployment: str = ""
    interval: tuple[float, float] = (0.0, math.inf)
    profile: Profile | None = None
    workload: dict[str, Any] = field(default_factory=dict)
    status: str = "complete"
    note: str = ""
    plan: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, Any] = field(default_factory=dict)
    ceilings: dict[str, Any] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    engine_before: dict[str, MetricsText] = field(default_factory=dict)
    engine_after: dict[str, MetricsText] = field(default_factory=dict)
    client: ClientResult | None = None
    verdict: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)
    live: bool = False
    start: bool = False
    scenario: bool = False
    settings_whole: bool = False
    foreign_ceilings: str = ""
    folder: Path | None = None

    @property
    def seconds(self) -> float:
        """Length of the interval."""
        return self.interval[1] - self.interval[0]


def window_run(
    batches: Sequence[Batch],
    interval: tuple[float, float],
    *,
    profile: Profile | None = None,
    deployment: str = "",
    ceilings: dict[str, Any] | None = None,
    plan: list[dict[str, Any]] | None = None,
    identity: str = "",
    start: bool = False,
) -> Run:
    """Make a live window into a run: engine readings come from the batches, there are no client timings.

    Parameters
    ----------
    batches : sequence of dict
        Batches of all nodes that touch the interval.
    interval : tuple of float
        Start and end, unix seconds.
    start : bool
        Whether the engine is starting in it.

    Returns
    -------
    Run
        With `live` set.
    """
    run = Run(
        id=identity,
        deployment=deployment,
        interval=interval,
        profile=profile,
        plan=plan or [],
        ceilings=ceilings or {},
        batches=list(batches),
        live=True,
        start=start,
    )
    _fill_engine(run)
    return run


def _fill_engine(run: Run) -> None:
    """Take the first and last reading inside the batches where a folder has none of its own."""
    if run.start:
        return
    for node, readings in flat_readings(run.batches, *run.interval).items():
        if len(readings) >= 2:
            if node not in run.engine_before and (run.live or "" not in run.engine_before):
                run.engine_before[node] = MetricsText.from_flat(readings[0][1])
            if node not in run.engine_after and (run.live or "" not in run.engine_after):
                run.engine_after[node] = MetricsText.from_flat(readings[-1][1])


def read_batches(path: Path) -> tuple[list[Batch], list[str]]:
    """Read `samples.jsonl.gz`; a cut file gives what came before the cut, and a sentence about it."""
    batches: list[Batch] = []
    broken = 0
    problems: list[str] = []
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if not line.strip():
                    continue
                try:
                    batch = json.loads(line)
                except ValueError:
                    broken += 1
                    continue
                if isinstance(batch, dict):
                    batches.append(batch)
                else:
                    broken += 1
    except (EOFError, OSError, zlib.error) as error:
        problems.append(f"{path.name}: cut short after {len(batches)} batches ({error})")
    if broken:
        problems.append(f"{path.name}: {broken} lines are not batches")
    return batches, problems


def write_batches(path: Path, batches: Iterable[Batch]) -> None:
    """Write batches, one a line, compressed."""
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for batch in batches:
            stream.write(json.dumps(batch, separators=(",", ":")) + "\n")


def _read_json(path: Path, problems: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name}: missing")
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: cannot be read ({error})")
    return None


def _dictionary(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_engine(folder: Path, stem: str) -> dict[str, MetricsText]:
    found: dict[str, MetricsText] = {}
    for path in sorted(folder.glob(f"{stem}*.prom")):
        head = path.name.removeprefix(stem).removesuffix(".prom").removeprefix(".")
        found[head] = MetricsText.parse(path.read_text(encoding="utf-8", errors="replace"))
    return found


def _read_client(folder: Path, problems: list[str]) -> ClientResult | None:
    single, several = folder / "client.json", sorted((folder / "client").glob("*.json"))
    if not single.exists() and not several:
        problems.append("client.json: missing")
        return None
    paths = [single] if single.exists() else several
    documents = [document for path in paths if (document := _read_json(path, problems)) is not None]
    return client_result(documents[0] if len(documents) == 1 else documents) if documents else None


def _read_profile(folder: Path, problems: list[str]) -> Profile | None:
    path = folder / "profile.yaml"
    if not path.exists():
        problems.append("profile.yaml: missing")
        return None
    try:
        from bottleneck.profile import load_profile

        return load_profile(path)
    except Exception as error:  # a run outlives the profile's schema: analyse what is left
        problems.append(f"profile.yaml: cannot be read ({error})")
        return None


def load_run(folder: Path | str) -> Run:
    """Load a run folder, as much of it as there is.

    Raises
    ------
    RunError
        When the folder does not exist or holds no file of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; list them with: cluster run list")
    known = ("run.json", "client.json", "samples.jsonl.gz")
    if not any((folder / name).exists() for name in known) and not list(folder.glob("engine_after*.prom")):
        raise RunError(f"{folder}: not a run folder: none of {', '.join(known)} is in it")
    problems: list[str] = []
    head = _dictionary(_read_json(folder / "run.json", problems))
    samples = folder / "samples.jsonl.gz"
    batches, trouble = read_batches(samples) if samples.exists() else ([], ["samples.jsonl.gz: missing"])
    problems += trouble
    start = head.get("kind") == "start"
    plan = _read_json(folder / "plan.json", [])
    plan = plan.get("workers", []) if isinstance(plan, dict) else plan
    run = Run(
        id=str(head.get("id", folder.name)),
        deployment=str(head.get("deployment", "")),
        interval=_interval(head, batches),
        profile=_read_profile(folder, problems),
        workload=_dictionary(head.get("workload")),
        status=str(head.get("status", "partial")),
        note=str(head.get("note", "")),
        plan=[item for item in plan if isinstance(item, dict)] if isinstance(plan, list) else [],
        versions=_dictionary(_read_json(folder / "versions.json", [])),
        ceilings=_dictionary(_read_json(folder / "ceilings.json", problems)),
        batches=batches,
        engine_before=_read_engine(folder, "engine_before"),
        engine_after=_read_engine(folder, "engine_after"),
        client=None if start else _read_client(folder, problems),
        verdict=_dictionary(_read_json(folder / "verdict.json", [])) or None,
        problems=problems,
        start=start,
        folder=folder,
    )
    if start:
        return run
    for name, readings in (("engine_before", run.engine_before), ("engine_after", run.engine_after)):
        if not readings:
            problems.append(f"{name}.prom: missing; the readings inside the samples stand in for it")
    _fill_engine(run)
    return run


def _interval(head: dict[str, Any], batches: list[Batch]) -> tuple[float, float]:
    start, end = number(head.get("started")), number(head.get("ended"))
    times = [moment for batch in batches for moment in (number(batch.get("t0")), number(batch.get("t1")))]
    times = [moment for moment in times if math.isfinite(moment)]
    if not math.isfinite(start):
        start = min(times, default=0.0)
    if not math.isfinite(end) or end < start:
        end = max([moment for moment in times if moment >= start], default=start)
    return start, end


def save_run(run: Run, folder: Path | str) -> Path:
    """Write what the analysis reads of a run; used for tests and for runs put together from parts."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "schema": SCHEMA,
        "id": run.id,
        "started": run.interval[0],
        "ended": run.interval[1],
        "deployment": run.deployment,
        "note": run.note,
        "workload": run.workload,
        "status": run.status,
        **({"kind": "start"} if run.start else {}),
    }
    documents = {"run.json": head, "plan.json": run.plan, "versions.json": run.versions, "ceilings.json": run.ceilings}
    if run.verdict is not None:
        documents["verdict.json"] = run.verdict
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    write_batches(folder / "samples.jsonl.gz", run.batches)
    for stem, readings in (("engine_before", run.engine_before), ("engine_after", run.engine_after)):
        for name, reading in readings.items():
            text = "".join(f"{point.key()} {point.value!r}\n" for point in reading.points)
            (folder / (f"{stem}.{name}.prom" if name else f"{stem}.prom")).write_text(text, encoding="utf-8")
    return folder
