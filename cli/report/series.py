"""Draw what a run did over time, as lines on one shared time axis. Rates come from `bottleneck.telemetry.samples`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bottleneck.runs.run import Run
from bottleneck.runs.topology import find_topology
from bottleneck.telemetry.batches import engine_readings
from bottleneck.telemetry.prometheus_text import MetricsText
from bottleneck.telemetry.sample_schema import SOME_STALLED
from bottleneck.telemetry.samples import NodeSamples, Steps
from bottleneck.units import rate_text

Edges = npt.NDArray[np.float64]
Values = list[float | None]

# Fine enough to see a prefill, coarse enough that a kernel's 10 ms ticks do not look like load.
SHORTEST_BIN_SECONDS = 0.5
MOST_BINS = 300
LONGEST_STEP_SECONDS = 1.5
# Group of charts -> its title and a note, in the order of the report.
GROUPS = {
    "nodes": (
        "Nodes",
        "Share of the time: cores busy, work that had to wait (pressure), throttled by a CPU quota.",
    ),
    "links": ("Links", "One direction above the middle, the other below. Dashed: the ceiling that a probe measured."),
    "engine": ("Engine", "Read from the engine's own metrics every few seconds."),
}


@dataclass(frozen=True)
class Line:
    """One line of a chart; `tone` names its colour in the style sheet, `faint` lines are background to others."""

    name: str
    tone: str
    values: Values
    faint: bool = False
    down: bool = False

    @property
    def known(self) -> list[float]:
        """The values that are there."""
        return [value for value in self.values if value is not None]


@dataclass(frozen=True)
class Reference:
    """A level to compare with: a ceiling."""

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """Lines over time with one unit: `share` (0 to 1), `bytes/s` or `count`.

    `note` is about something missing, `remark` about what the lines show. A `mirrored` chart has its zero in the
    middle and the lines with `down` below it.
    """

    identity: str
    group: str
    title: str
    unit: str
    lines: list[Line]
    references: list[Reference] = field(default_factory=list)
    note: str = ""
    remark: str = ""
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"chart {self.identity}: group {self.group!r}; expected one of {', '.join(GROUPS)}")


def time_edges(start: float, end: float) -> Edges:
    """Cut an interval into equal bins; a run without a length gives no bin."""
    seconds = end - start
    if not math.isfinite(seconds) or seconds <= 0:
        return np.array([start])
    bins = int(min(MOST_BINS, max(1, seconds // SHORTEST_BIN_SECONDS)))
    return np.linspace(start, end, bins + 1)


def rates(steps: Steps, edges: Edges) -> Values:
    """Return the mean growth per second in every bin; None where no sample tells.

    A step across lost samples has a mean, but nobody saw what happened in it: no line there.
    """
    found: Values = []
    if steps.growth.size:
        seen = steps.seconds <= max(4 * float(np.median(steps.seconds)), LONGEST_STEP_SECONDS)
        steps = replace(steps, start=steps.start[seen], end=steps.end[seen], growth=steps.growth[seen])
    for start, end in pairwise(edges):
        inside = steps.within(float(start), float(end))
        seconds = float(inside.seconds.sum()) if inside.growth.size else 0.0
        # A sliver of a bin says little about it.
        found.append(float(inside.growth.sum()) / seconds if seconds > 0.2 * (end - start) else None)
    return found


def _mean(columns: list[Values]) -> Values:
    rows = [[value for value in row if value is not None] for row in zip(*columns, strict=True)]
    return [sum(row) / len(row) if row else None for row in rows]


def node_chart(name: str, samples: NodeSamples, edges: Edges) -> Chart:
    """Return how busy a node's cores were, and what held them back, as shares of the time."""
    cores = {core: rates(samples.steps("cpu", core, 0), edges) for core in sorted(samples.keys("cpu"), key=_natural)}
    lines = []
    if len(cores) > 1:
        lines = [Line(f"core {core}", "cpu", values, faint=True) for core, values in cores.items()]
        lines.append(Line(f"CPU busy, mean of {len(cores)} cores", "cpu", _mean(list(cores.values()))))
    elif cores:
        lines = [Line("CPU busy", "cpu", next(iter(cores.values())))]
    quiet = []
    for title, tone, path in (
        ("CPU pressure", "pressure", ("psi", "cpu", SOME_STALLED)),
        ("memory pressure", "memory", ("psi", "memory", SOME_STALLED)),
        ("throttled", "throttled", ("cgroup", "throttled_s")),
    ):
        line = Line(title, tone, rates(samples.steps(*path), edges))
        if line.known and max(line.known) < 0.005:
            quiet.append(title)
        elif line.known:
            lines.append(line)
    remark = f"Below 0.5 % throughout: {', '.join(quiet)}." if quiet else ""
    lines = [_capped(line) for line in lines if line.known]
    return Chart(f"node-{name}", "nodes", name, "share", lines, remark=remark)


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (10**6, text)


def _capped(line: Line) -> Line:
    # Ticks of the kernel's clock can make a bin look 101 % busy.
    return replace(line, values=[None if value is None else min(1.0, value) for value in line.values])


def link_ceilings(run: Run, link: str) -> dict[str, float]:
    """Return a link's measured ceiling by direction, `a->b` to bytes per second."""
    measured = {pair: way.bandwidth_bytes_per_second for pair, way in run.ceilings.links.get(link, {}).items()}
    return {pair: spread.median for pair, spread in measured.items() if spread}


def profile_rate(run: Run, link: str) -> float | None:
    """Return the rate that the profile gives a link, bytes per second."""
    network = run.profile.networks.get(link) if run.profile else None
    return network.rate_bytes_per_second if network else None


def link_names(samples: dict[str, NodeSamples]) -> list[str]:
    """Return every link that any node has samples of."""
    return sorted({link for series in samples.values() for link in series.keys("links")})


def link_chart(run: Run, link: str, samples: dict[str, NodeSamples], edges: Edges) -> Chart:
    """Return the bytes per second over a link, one direction upwards and the other downwards.

    Between two nodes what one sends the other receives: the sender's counter stands for the direction. Otherwise
    every node has what it sends (up) and what it receives (down).
    """
    nodes = [name for name, series in samples.items() if link in series.keys("links")]
    lines = []
    for index, node in enumerate(nodes):
        tone = f"node{index % 4}"
        sent = rates(samples[node].link(link, "transmit_bytes"), edges)
        if len(nodes) == 2:
            lines.append(Line(f"{node} to {nodes[1 - index]}", tone, sent, down=index == 1))
        else:
            received = rates(samples[node].link(link, "receive_bytes"), edges)
            lines += [Line(f"{node} sends", tone, sent), Line(f"{node} receives", tone, received, down=True)]
    references, note = [], ""
    rate = profile_rate(run, link)
    ceilings = link_ceilings(run, link)
    if ceilings:
        lowest = min(ceilings.values())
        references.append(Reference("ceiling", lowest))
    elif rate is not None:
        references.append(Reference("rate in the profile (not measured)", rate))
        note = f"No probe measured link {link} before the run: the profile's rate stands in for its ceiling."
    remark = f"Rate in the profile: {rate_text(rate)}." if rate is not None and ceilings else ""
    lines = [line for line in lines if line.known]
    return Chart(f"link-{link}", "links", link, "bytes/s", lines, references, note, remark, mirrored=True)


def engine_charts(run: Run, edges: Edges) -> list[Chart]:
    """Return what every head's engine ran, held back and stored."""
    charts = []
    for node, readings in engine_readings(run.batches, float(edges[0]), float(edges[-1])).items():
        running = _gauge(readings, "vllm:num_requests_running", edges)
        waiting = _gauge(readings, "vllm:num_requests_waiting", edges)
        cache = _gauge(readings, "vllm:kv_cache_usage_perc", edges)
        counts = [Line("running", "cpu", running), Line("waiting", "pressure", waiting)]
        counts = [line for line in counts if line.known]
        limit = find_topology(run).max_num_seqs
        references = [Reference("max_num_seqs", float(limit))] if limit else []
        if counts:
            charts.append(Chart(f"engine-{node}-requests", "engine", f"requests, {node}", "count", counts, references))
        if any(value is not None for value in cache):
            line = Line("KV cache in use", "cache", cache)
            charts.append(Chart(f"engine-{node}-cache", "engine", f"KV cache, {node}", "share", [line]))
    return charts


def _gauge(readings: Iterable[tuple[float, MetricsText]], name: str, edges: Edges) -> Values:
    """Hold each reading until the next one, three of the usual gaps at most."""
    points = [(moment, value) for moment, text in readings if (value := text.value(name)) is not None]
    if not points:
        return [None] * (len(edges) - 1)
    times = np.array([moment for moment, _ in points])
    longest = 3 * float(np.median(np.diff(times))) if len(times) > 1 else 10.0
    found: Values = []
    for middle in (edges[:-1] + edges[1:]) / 2:
        index = int(np.searchsorted(times, middle, side="right")) - 1
        fresh = index >= 0 and middle - times[index] <= longest
        found.append(float(points[index][1]) if fresh else None)
    return found


def run_charts(run: Run, samples: dict[str, NodeSamples], edges: Edges) -> list[Chart]:
    """Return every chart over time that the run's samples carry."""
    if len(edges) < 2:
        return []
    charts = [node_chart(name, series, edges) for name, series in samples.items()]
    charts += [link_chart(run, link, samples, edges) for link in link_names(samples)]
    charts += engine_charts(run, edges)
    return [chart for chart in charts if chart.lines]
