"""Facts about the link between an engine's nodes: what crossed it in the run, near its ceiling or far below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.observations.issues import Issue, Scope
from bottleneck.diagnosis.observations.link_probes import (
    message_backend,
    message_latency,
    probed_capacity,
    source_text,
)
from bottleneck.diagnosis.observations.node import NodeFacts
from bottleneck.diagnosis.observations.peers import peers_of, slower_by
from bottleneck.performance.collectives import DEFAULT_BACKEND
from bottleneck.runs.run import Run
from bottleneck.runs.topology import Topology
from bottleneck.telemetry.samples import Array, NodeSamples, Steps


@dataclass(frozen=True)
class LinkFacts:
    """The link between the nodes of an engine.

    Attributes
    ----------
    sent_bytes : dict
        Node to bytes it sent over the link in the interval.
    capacity_bytes_per_second : float or None
        The most the link can carry now, and where that number is from.
    promised_bytes_per_second : float or None
        What the profile says that it carries.
    probe_bytes_per_second : float or None
        The probe's ceiling, which may be older than the run.
    full_share : float or None
        Share of the busy time in which the link ran at `FULL` of its capacity or more.
    full_bytes_share : float or None
        Share of the bytes that crossed at such times.
    peak_bytes_per_second : float or None
        Highest mean over about half a second.
    plateau_bytes_per_second, plateau_bytes_share : float or None
        The rate at which most bytes crossed, and the share that did.
    plateau_awake_share : float or None
        How much of that time the busiest worker that does not spin was computing.
    message_latency_seconds : float or None
        Time of one collective with a message so small that bandwidth does not count; between stages alone, of one trip.
    backend : str
        What sends messages over it: a key of `ALGORITHMS`.
    allreduce_seconds : dict
        Bytes of a message to the low end of the probed time of one all-reduce of it; where the link was probed anew
        since, to that of its software then on the link as it is now.
    """

    name: str
    sent_bytes: Mapping[str, float] = field(default_factory=dict)
    capacity_bytes_per_second: float | None = None
    capacity_source: str = ""
    promised_bytes_per_second: float | None = None
    probe_bytes_per_second: float | None = None
    full_share: float | None = None
    full_bytes_share: float | None = None
    peak_bytes_per_second: float | None = None
    plateau_bytes_per_second: float | None = None
    plateau_bytes_share: float | None = None
    plateau_awake_share: float | None = None
    message_latency_seconds: float | None = None
    message_latency_source: str = ""
    backend: str = DEFAULT_BACKEND
    allreduce_seconds: Mapping[float, float] = field(default_factory=dict)
    errors: float = 0.0
    dropped: float = 0.0

    @property
    def busiest_bytes(self) -> float | None:
        """Bytes in the busiest direction: the links are full duplex, so directions do not add up."""
        return max(self.sent_bytes.values(), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON-able data."""
        return asdict(self)


def link_facts(
    run: Run,
    topology: Topology,
    samples: Mapping[str, NodeSamples],
    nodes: Mapping[str, NodeFacts],
    busy_seconds: float,
    prompt_share: float,
) -> tuple[LinkFacts | None, list[Issue]]:
    """Return the facts of the link between an engine's nodes, and what is doubtful of them.

    Parameters
    ----------
    run, topology : Run, Topology
        The run, and which of its nodes exchange messages, over which link.
    samples, nodes : mapping
        Node -> its samples, whose counters of the link are read; node -> its facts.
    busy_seconds : float
        Seconds in the interval in which the engine had work.
    prompt_share : float
        Share of all computed tokens that were prompts, 0 to 1.

    Returns
    -------
    tuple
        None in the first place when nothing is exchanged.
    """
    if topology.link is None:
        return None, []
    issues: list[Issue] = []
    promised = topology.link_rate_bytes_per_second
    capacity, source, probed = promised, "the profile's rate, not measured", None
    if (found := probed_capacity(run, topology)) is not None:
        capacity = probed = found[0]
        source = source_text(run.interval[0] - found[1])
    elif promised is not None:
        words = f"link {topology.link} has no measured ceiling: its rate in the profile stands in"
        issues.append(Issue(thresholds.SLIGHT, words, Scope.STEPS))
    else:
        source = ""
    sent, busiest = _busiest(topology, samples, run.interval)
    facts = _with_traffic(LinkFacts(topology.link, sent_bytes=sent), topology, samples, run.interval, busiest)
    peak = facts.peak_bytes_per_second
    if capacity and peak and peak > thresholds.BEYOND * capacity:
        issues.append(
            Issue(
                thresholds.SLIGHT,
                f"link {topology.link} carried {peak:.3g} B/s, more than its ceiling of {capacity:.3g} B/s ({source}): "
                "the ceiling is wrong or old; what it carried is used",
                Scope.STEPS,
            )
        )
        capacity, source = peak, "the highest rate seen in the samples"
    latency, latency_source, collectives = message_latency(run, topology, probed)
    facts = replace(
        facts,
        capacity_bytes_per_second=capacity,
        capacity_source=source,
        promised_bytes_per_second=promised,
        probe_bytes_per_second=probed,
        message_latency_seconds=latency,
        message_latency_source=latency_source,
        backend=message_backend(run, topology),
        allreduce_seconds=collectives,
    )
    facts, outdated = _outdated(facts, nodes, busy_seconds, prompt_share)
    return _with_fullness(facts, busiest, busy_seconds), [*issues, *outdated]


def crossing_seconds(run: Run, topology: Topology, samples: Mapping[str, NodeSamples], edges: Array) -> set[float]:
    """Return in which of the seconds that begin at `edges` an engine's link was half full or more.

    Parameters
    ----------
    run
        A recorded run or a window.
    topology
        Who the nodes of the deployment are.
    samples
        Node to its samples.
    edges
        Unix seconds at which the seconds begin, shape (n,).
    """
    probed = probed_capacity(run, topology)
    if probed is None or topology.link is None:
        return set()
    found = set()
    for node in topology.nodes:
        if (series := samples.get(node)) is not None and topology.link in series.keys("links"):
            sent = series.link(topology.link, "transmit_bytes")
            found |= {edge for edge in edges if (sent.increase(edge, edge + 1.0) or 0.0) >= probed[0] / 2}
    return found


def _busiest(
    topology: Topology, samples: Mapping[str, NodeSamples], interval: tuple[float, float]
) -> tuple[dict[str, float], Steps | None]:
    """Return the bytes each node sent over the link, and the steps of the one that sent most."""
    sent: dict[str, float] = {}
    chosen: Steps | None = None
    for node in topology.nodes:
        series = samples.get(node)
        if series is None or topology.link is None or topology.link not in series.keys("links"):
            continue
        steps = series.link(topology.link, "transmit_bytes").within(*interval)
        if steps.growth.size == 0:
            continue
        total = float(steps.growth.sum())
        if total > max(sent.values(), default=0.0):
            chosen = steps
        sent[node] = total
    return sent, chosen


def _with_traffic(
    facts: LinkFacts,
    topology: Topology,
    samples: Mapping[str, NodeSamples],
    interval: tuple[float, float],
    steps: Steps | None,
) -> LinkFacts:
    """Return the facts with errors and the rate at which most crossed."""

    def counted(what: str) -> float:
        return math.fsum(
            samples[node].link(facts.name, f"{way}_{what}").increase(*interval) or 0.0
            for node in facts.sent_bytes
            for way in ("receive", "transmit")
        )

    facts = replace(facts, errors=counted("errors"), dropped=counted("dropped"))
    if steps is None:
        return facts
    rate = steps.rate
    top = float(np.quantile(rate, thresholds.PLATEAU_QUANTILE, weights=steps.growth, method="inverted_cdf"))
    near = np.abs(rate - top) <= thresholds.PLATEAU_BAND * top
    awake = [
        share
        for node in topology.nodes
        if node in samples and node not in topology.heads
        if (share := _awake(samples[node], steps.start[near], steps.end[near])) is not None
    ]
    return replace(
        facts,
        peak_bytes_per_second=_peak(steps),
        plateau_bytes_share=float(steps.growth[near].sum() / steps.growth.sum()),
        plateau_bytes_per_second=float(np.average(rate[near], weights=steps.seconds[near])),
        plateau_awake_share=max(awake, default=None),
    )


def _with_fullness(facts: LinkFacts, steps: Steps | None, busy_seconds: float) -> LinkFacts:
    """Return the facts with how long, and for which bytes, the link ran near its capacity."""
    if steps is None or not facts.capacity_bytes_per_second:
        return facts
    full = steps.rate >= thresholds.FULL * facts.capacity_bytes_per_second
    return replace(
        facts,
        full_bytes_share=float(steps.growth[full].sum() / steps.growth.sum()),
        full_share=min(1.0, float(steps.seconds[full].sum()) / busy_seconds) if busy_seconds > 0 else None,
    )


def _awake(series: NodeSamples, starts: Array, ends: Array) -> float | None:
    """Return the share of some steps of time in which a node's workers used their CPU, 0 to 1."""
    used, known = 0.0, False
    for name in series.keys("workers"):
        for quantity in ("cpu_user_s", "cpu_system_s"):
            steps = series.steps("workers", name, quantity)
            if steps.growth.size == 0:
                continue
            edges, total = np.append(steps.start[:1], steps.end), np.append(0.0, np.cumsum(steps.growth))
            used += float((np.interp(ends, edges, total) - np.interp(starts, edges, total)).sum())
            known = True
    seconds = float((ends - starts).sum())
    return min(1.0, used / seconds) if known and seconds > 0 else None


def _outdated(
    facts: LinkFacts, nodes: Mapping[str, NodeFacts], busy_seconds: float, prompt_share: float
) -> tuple[LinkFacts, list[Issue]]:
    """Return the facts with a capacity of what the link carries, when everything says that the link is waited for.

    A ceiling is measured before a run and the link may have become slower since. It has when most bytes cross at one
    rate far below the ceiling, the workers sleep at those times, no node is restrained or slower than its peers beyond
    the spread of the probes, and the bytes are those of prompts (few large messages, so their latency does not count).
    """
    capacity, plateau, awake = (
        facts.capacity_bytes_per_second,
        facts.plateau_bytes_per_second,
        facts.plateau_awake_share,
    )
    sent, every = facts.busiest_bytes, list(nodes.values())
    if not capacity or not plateau or awake is None or not sent or busy_seconds <= 0:
        return facts, []
    asleep = awake < thresholds.OLD_CEILING_AWAKE
    now = plateau / (1.0 - awake) if asleep else capacity
    restrained = max((node.restrained_seconds for node in every), default=0.0)
    alike = not any(slower_by(node, peers_of(node, every)) for node in every)
    if not (
        asleep
        and alike
        and restrained < thresholds.LEAST_SCORE * busy_seconds
        and min(prompt_share, facts.plateau_bytes_share or 0.0) > 1 / 2
        and now < capacity / 2
        and sent / now > thresholds.LEAST_SCORE * busy_seconds
    ):
        return facts, []
    statement = (
        f"link {facts.name} carries about {now:.3g} B/s while the workers wait for it, far below its ceiling of "
        f"{capacity:.3g} B/s ({facts.capacity_source}): the ceiling is taken to be old; measure it again with "
        "cluster probe"
    )
    changed = replace(
        facts, capacity_bytes_per_second=now, capacity_source="the rate in the samples while workers slept"
    )
    return changed, [Issue(thresholds.SLIGHT, statement, Scope.STEPS)]


def _peak(steps: Steps) -> float:
    """Return the highest mean rate over about half a second: shorter than that, bursts pass any shaper."""
    edges, total = np.append(steps.start[:1], steps.end), np.append(0.0, np.cumsum(steps.growth))
    later = np.interp(edges + 1 / 2, edges, total)
    inside = edges + 1 / 2 <= edges[-1]
    if not inside.any():
        return float(total[-1] / (edges[-1] - edges[0])) if edges[-1] > edges[0] else 0.0
    return float(np.max((later - total)[inside]) * 2)
