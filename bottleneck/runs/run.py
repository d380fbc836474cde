"""A run: what was sent, what was measured, what was known beforehand; and a live window as one.

A run may be cut short: what is missing or broken of it is named in `Run.problems`. Folders are read by `run_folder`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bottleneck.json_numbers import number
from bottleneck.load.client import ClientRequest, ClientResult, client_result
from bottleneck.load.workload import Load
from bottleneck.plan.workers import DeploymentRecord, ServerSettings, Worker
from bottleneck.runs.ceilings import Ceilings
from bottleneck.runs.reading import lenient
from bottleneck.telemetry.batches import Batch, Readings, engine_readings
from bottleneck.telemetry.prometheus_text import MetricsText

if TYPE_CHECKING:
    from bottleneck.profile.types import Profile

__all__ = ["Batch", "ClientRequest", "ClientResult", "Run", "client_result", "window_run"]

Kind = Literal["recorded", "window", "start", "scenario"]


@dataclass(frozen=True)
class Run:
    """One deployment under one workload, with everything recorded.

    Attributes
    ----------
    kind : str
        `recorded`: a run folder. `window`: a while of a serving cluster, without client timings. `start`: of an engine,
        from the order to deploy until it served, with neither client timings nor engine metrics. `scenario`: recorded
        metrics of one server, without a profile or samples.
    interval : tuple of float
        Start and end in unix seconds; the analysis looks at nothing outside.
    workers : tuple of Worker
        Who served. Empty when that is not known.
    settings : ServerSettings
        The server's settings as they were in force.
    overrides : dict
        What of them was changed for this time, as a person wrote it.
    accelerator : str
        Name of a scenario's accelerator; empty when nobody said.
    foreign_ceilings : str
        Why the ceilings are taken to be another machine's; empty when they are not.
    engine_before, engine_after : dict
        Engine metrics by head.
    workload : Load or None
        What was sent; of a sweep its first load. None when nobody said, and of a start.
    problems : tuple of str
        What is missing or could not be read.
    """

    id: str = ""
    kind: Kind = "recorded"
    deployment: str = ""
    interval: tuple[float, float] = (0.0, math.inf)
    profile: Profile | None = None
    workload: Load | None = None
    status: str = "complete"
    note: str = ""
    workers: tuple[Worker, ...] = ()
    settings: ServerSettings = field(default_factory=ServerSettings)
    overrides: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)
    ceilings: Ceilings = field(default_factory=Ceilings)
    accelerator: str = ""
    foreign_ceilings: str = ""
    batches: tuple[Batch, ...] = ()
    engine_before: Mapping[str, MetricsText] = field(default_factory=dict)
    engine_after: Mapping[str, MetricsText] = field(default_factory=dict)
    client: ClientResult | None = None
    verdict: dict[str, Any] | None = None
    problems: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def seconds(self) -> float:
        """Length of the interval."""
        return self.interval[1] - self.interval[0]

    @property
    def live(self) -> bool:
        """Return whether it is a window: no client timings are to be expected."""
        return self.kind == "window"

    @property
    def start(self) -> bool:
        """Return whether the engine starts in it."""
        return self.kind == "start"

    @property
    def scenario(self) -> bool:
        """Return whether it was recorded elsewhere."""
        return self.kind == "scenario"

    @cached_property
    def readings(self) -> Mapping[str, Readings]:
        """Engine readings inside the batches of its interval, by the node that took them, in order of time.

        What an engine answers while it starts is no load.
        """
        return {} if self.start else engine_readings(self.batches, *self.interval)

    def window(self, start: float, end: float) -> Run:
        """Return a while of it as a live window; of a start, as a start that has lasted so long.

        Parameters
        ----------
        start, end : float
            Unix seconds by the control node's clock, `start` before `end`.
        """
        kind: Kind = "start" if self.start else "window"
        window = replace(self, kind=kind, interval=(start, end), client=None, verdict=None)
        return with_readings(replace(window, engine_before={}, engine_after={}))


def window_run(
    batches: Iterable[Batch],
    interval: tuple[float, float],
    *,
    profile: Profile | None = None,
    ceilings: Ceilings | None = None,
    record: DeploymentRecord | None = None,
    identity: str = "",
    start: bool = False,
) -> Run:
    """Return a live window as a run: engine readings come from the batches, there are no client timings.

    Parameters
    ----------
    batches : iterable of dict
        Batches of all nodes that touch the interval.
    interval : tuple of float
        Start and end, unix seconds.
    profile : Profile or None
        Profile of the cluster, where there is one.
    ceilings : Ceilings or None
        Ceilings of the cluster, where they were probed.
    record : DeploymentRecord or None
        What is deployed, or starting.
    identity : str
        Name of the window, which becomes the run's.
    start : bool
        Whether the engine is starting in it.
    """
    run = Run(
        id=identity,
        kind="start" if start else "window",
        interval=interval,
        profile=profile,
        ceilings=ceilings or Ceilings(),
        batches=tuple(batches),
    )
    return with_readings(with_deployment(run, record))


def with_deployment(run: Run, record: DeploymentRecord | None) -> Run:
    """Return a run with what its deployment's record says of it.

    Parameters
    ----------
    run : Run
        Any run.
    record : DeploymentRecord or None
        Record of a deployment as it was started; without one the run stays as it is.
    """
    if record is None:
        return run
    return replace(
        run,
        deployment=record.deployment,
        workers=record.workers,
        settings=record.settings,
        overrides=record.overrides,
    )


def with_readings(run: Run) -> Run:
    """Return a run with the first and last reading inside its batches where it has none of its own.

    Parameters
    ----------
    run : Run
        Any run; one of a start has no readings and stays as it is.

    Returns
    -------
    Run
        Its settings have what the engines say of their caches.
    """
    if run.start:
        return run
    before, after, settings = dict(run.engine_before), dict(run.engine_after), run.settings
    for node, readings in run.readings.items():
        # A reading without a name is that of the one head.
        for known, (_, reading) in ((before, readings[0]), (after, readings[-1])):
            if len(readings) > 1 and node not in known and "" not in known:
                known[node] = reading
    for reading in after.values():
        settings = as_the_engine_says(settings, reading)
    found = replace(run, engine_before=before, engine_after=after, settings=settings)
    # Its batches and interval are the same: they are read once.
    vars(found)["readings"] = run.readings
    return found


# Of `vllm:cache_config_info`, what is a setting here.
_CACHE_SETTINGS = {
    "block_size": "kv_block_tokens",
    "num_gpu_blocks": "kv_cache_blocks",
    "num_gpu_blocks_override": "num_gpu_blocks_override",
    "kv_cache_memory_bytes": "kv_cache_memory_bytes",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "enable_prefix_caching": "prefix_caching",
    "cache_dtype": "kv_cache_dtype",
}


def as_the_engine_says(settings: ServerSettings, reading: MetricsText) -> ServerSettings:
    """Return settings with what an engine's metrics say of its cache: that is what is in force.

    Parameters
    ----------
    settings : ServerSettings
        Settings as the deployment has them.
    reading : MetricsText
        Metrics of the engine, of whatever time: the cache is laid out once.

    Returns
    -------
    ServerSettings
        The same settings where the metrics say nothing of them, or something that a setting cannot be.
    """
    found = {}
    for label, name in _CACHE_SETTINGS.items():
        word = reading.info("vllm:cache_config_info", label)
        if word is None or word == "None":
            continue
        value: object = {"True": True, "False": False}.get(word, word)
        if name != "kv_cache_dtype" and isinstance(value, str):
            amount = number(value)
            value = int(amount) if amount.is_integer() and name != "gpu_memory_utilization" else amount
        found[name] = value
    return lenient(ServerSettings, {**settings.model_dump(), **found}, "")[0] or settings
