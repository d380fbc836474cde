"""What the link between an engine's nodes says of itself: bytes, near its ceiling or far below, time of a message."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bottleneck.diagnosis.observations.node_signals import NodeFacts, slower_by
from bottleneck.runs.ceilings import CollectiveCeilings
from bottleneck.runs.run import Run
from bottleneck.runs.topology import Topology
from bottleneck.telemetry.samples import Array, NodeSamples
from bottleneck.units import duration_text

# A link this near to its ceiling is full: framing and scheduling take the rest.
FULL = 0.8


@dataclass
class LinkFacts:
    """The link between the nodes of an engine.

    Attributes
    ----------
    sent_bytes : dict
        Node to bytes it sent over the link in the interval.
    capacity_bytes_per_second : float or None
        The most the link can carry now, and where that number is from.
    probe_bytes_per_second : float or None
        The probe's ceiling, which may be older than the run.
    full_share : float or None
        Share of the busy time in which the link ran at 80 % of its capacity or more.
    full_bytes_share : float or None
        Share of the bytes that crossed at such times.
    peak_bytes_per_second : float or None
        Highest mean over about half a second.
    plateau_bytes_per_second, plateau_bytes_share : float or None
        The rate at which most bytes crossed, and the share that did.
    plateau_awake_share : float or None
        How much of that time the busiest worker that does not spin was computing.
    message_latency_seconds : float or None
        Time of one collective with a message so small that bandwidth does not count.
    allreduce_seconds : dict
        Bytes of a message to the low end of the probed time of one all-reduce of it.
    """

    name: str
    sent_bytes: dict[str, float] = field(default_factory=dict)
    capacity_bytes_per_second: float | None = None
    capacity_source: str = ""
    probe_bytes_per_second: float | None = None
    full_share: float | None = None
    full_bytes_share: float | None = None
    peak_bytes_per_second: float | None = None
    plateau_bytes_per_second: float | None = None
    plateau_bytes_share: float | None = None
    plateau_awake_share: float | None = None
    message_latency_seconds: float | None = None
    message_latency_source: str = ""
    allreduce_seconds: dict[float, float] = field(default_factory=dict)
    errors: float = 0.0
    dropped: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def busiest_bytes(self) -> float | None:
        """Bytes in the busiest direction: the links are full duplex, so directions do not add up."""
        return max(self.sent_bytes.values(), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON-able data."""
        return asdict(self)


def link_facts(run: Run, topology: Topology, samples: dict[str, NodeSamples], busy_seconds: float) -> LinkFacts | None:
    """Gather the facts of the link between an engine's nodes; None when nothing is exchanged."""
    if topology.link is None:
        return None
    facts = LinkFacts(topology.link)
    if (probed := _probed_capacity(run, topology)) is not None:
        facts.probe_bytes_per_second, measured = probed
        facts.capacity_bytes_per_second = facts.probe_bytes_per_second
        facts.capacity_source = _probed(run.interval[0] - measured)
    elif topology.link_rate_bytes_per_second is not None:
        facts.capacity_bytes_per_second = topology.link_rate_bytes_per_second
        facts.capacity_source = "the profile's rate, not measured"
        facts.notes.append(f"link {facts.name} has no measured ceiling: its rate in the profile stands in")
    _traffic(facts, topology, samples, run.interval, busy_seconds)
    _message_latency(facts, run, topology)
    return facts


def crossing_seconds(run: Run, topology: Topology, samples: dict[str, NodeSamples], edges: Array) -> set[float]:
    """Return in which of the seconds that begin at `edges` an engine's link was half full or more."""
    probed = _probed_capacity(run, topology)
    if probed is None or topology.link is None:
        return set()
    found = set()
    for node in topology.nodes:
        if (series := samples.get(node)) is not None and topology.link in series.keys("links"):
            sent = series.link(topology.link, "transmit_bytes")
            found |= {edge for edge in edges if (sent.increase(edge, edge + 1.0) or 0.0) >= 0.5 * probed[0]}
    return found


def _probed_capacity(run: Run, topology: Topology) -> tuple[float, float] | None:
    """Return the least that a probe found between an engine's nodes, bytes per second, and when."""
    probes = []
    for pair, way in run.ceilings.links.get(topology.link or "", {}).items():
        if way.bandwidth_bytes_per_second and all(end in topology.nodes for end in pair.split("->")):
            probes.append((way.bandwidth_bytes_per_second.median, way.measured or math.nan))
    return min(probes, default=None)


def _probed(age_seconds: float) -> str:
    """Return where a probed ceiling is from, in words: its age says what it is worth."""
    if not math.isfinite(age_seconds) or age_seconds < 0:
        return "probe"
    return f"probe, {duration_text(age_seconds)} before"


def _traffic(
    facts: LinkFacts,
    topology: Topology,
    samples: dict[str, NodeSamples],
    interval: tuple[float, float],
    busy_seconds: float,
) -> None:
    busiest: tuple[float, Any] = (-1.0, None)
    for node in topology.nodes:
        series = samples.get(node)
        if series is None or facts.name not in series.keys("links"):
            continue
        steps = series.link(facts.name, "transmit_bytes").within(*interval)
        if steps.growth.size == 0:
            continue
        sent = float(steps.growth.sum())
        facts.sent_bytes[node] = sent
        if sent > busiest[0]:
            busiest = (sent, steps)
        for quantity in ("receive_errors", "transmit_errors"):
            facts.errors += series.link(facts.name, quantity).increase(*interval) or 0.0
        for quantity in ("receive_dropped", "transmit_dropped"):
            facts.dropped += series.link(facts.name, quantity).increase(*interval) or 0.0
    sent, steps = busiest
    if steps is None or sent <= 0:
        return
    rate = steps.rate
    facts.peak_bytes_per_second = _peak(steps)
    if facts.capacity_bytes_per_second and facts.peak_bytes_per_second > 1.2 * facts.capacity_bytes_per_second:
        facts.notes.append(
            f"link {facts.name} carried {facts.peak_bytes_per_second:.3g} B/s, more than its ceiling of "
            f"{facts.capacity_bytes_per_second:.3g} B/s ({facts.capacity_source}): the ceiling is wrong or old; "
            "what it carried is used"
        )
        facts.capacity_bytes_per_second = facts.peak_bytes_per_second
        facts.capacity_source = "the highest rate seen in the samples"
    if facts.capacity_bytes_per_second:
        full = rate >= FULL * facts.capacity_bytes_per_second
        facts.full_bytes_share = float(steps.growth[full].sum()) / sent
        if busy_seconds > 0:
            facts.full_share = min(1.0, float(steps.seconds[full].sum()) / busy_seconds)
    top = float(np.quantile(rate, 0.9, weights=steps.growth, method="inverted_cdf"))
    near = (rate >= 0.75 * top) & (rate <= 1.25 * top)
    facts.plateau_bytes_share = float(steps.growth[near].sum()) / sent
    facts.plateau_bytes_per_second = float(np.average(rate[near], weights=steps.seconds[near]))
    awake = [
        share
        for node in topology.nodes
        if node in samples and node not in topology.heads
        if (share := _awake(samples[node], steps.start[near], steps.end[near])) is not None
    ]
    facts.plateau_awake_share = max(awake, default=None)


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


def doubt_ceiling(facts: LinkFacts, nodes: dict[str, NodeFacts], busy_seconds: float, prompt_share: float) -> None:
    """Lower a link's capacity to what it carries when everything says that it is the link which is waited for.

    A ceiling is measured before a run and the link may have become slower since. It has when most bytes cross at one
    rate far below the ceiling, the workers sleep at those times, nothing holds a node back, no node is slower than its
    peers beyond the spread of the probes, and the bytes are those of prompts (few large messages, so their latency
    does not count).
    """
    capacity, plateau, awake = (
        facts.capacity_bytes_per_second,
        facts.plateau_bytes_per_second,
        facts.plateau_awake_share,
    )
    sent = facts.busiest_bytes
    if not capacity or not plateau or awake is None or not sent or busy_seconds <= 0:
        return
    held = max(
        ((node.throttled_seconds or 0.0) + (node.cpu_wait_seconds or 0.0) for node in nodes.values()), default=0.0
    )
    every = list(nodes.values())
    alike = not any(slower_by(node, [peer for peer in every if peer is not node]) for node in every)
    now = plateau / max(1.0 - awake, 0.1)
    if (
        awake < 0.5
        and alike
        and held < 0.15 * busy_seconds
        and prompt_share > 0.5
        and (facts.plateau_bytes_share or 0.0) > 0.5
        and now < 0.5 * capacity
        and sent / now > 0.25 * busy_seconds
    ):
        facts.notes.append(
            f"link {facts.name} carries about {now:.3g} B/s while the workers wait for it, far below its ceiling of "
            f"{capacity:.3g} B/s ({facts.capacity_source}): the ceiling is taken to be old; measure it again with "
            "cluster probe"
        )
        facts.capacity_bytes_per_second = now
        facts.capacity_source = "the rate in the samples while workers slept"


def _peak(steps: Any) -> float:
    """Return the highest mean rate over about half a second: shorter than that, bursts pass any shaper."""
    edges, total = np.append(steps.start[:1], steps.end), np.append(0.0, np.cumsum(steps.growth))
    later = np.interp(edges + 0.5, edges, total)
    inside = edges + 0.5 <= edges[-1] + 1e-9
    if not inside.any():
        return float(total[-1] / max(edges[-1] - edges[0], 1e-9))
    return float(np.max((later - total)[inside]) / 0.5)


# One-way trips of a hop in a collective over gloo: the receiver's word that it is ready, then the message.
GLOO_TRIPS = 2


def _slower_since(
    facts: LinkFacts, run: Run, topology: Topology, probe: CollectiveCeilings | None
) -> tuple[float, str] | None:
    """Return the time of a collective over a link that became slower after collectives were probed; None if not so.

    A bench measures the link before the load, collectives only `cluster probe` does. Where a collective goes over TCP
    (gloo) it takes no less than its trips: if the lowest of newer trips come to more than it took, it is out of date.
    """
    ranks = topology.tensor_parallel
    if ranks < 2 or probe is None or probe.backend != "gloo" or not facts.allreduce_seconds:
        return None
    newer = [
        way.latency_seconds.low
        for pair, way in run.ceilings.links.get(facts.name, {}).items()
        if all(end in topology.nodes for end in pair.split("->"))
        and way.latency_seconds
        and (way.measured or -math.inf) > (probe.measured or math.inf)
    ]
    hops = 2 * (ranks - 1)
    taken = probe.sizes[min(probe.sizes)].median
    if not newer or hops * min(newer) <= taken:
        return None
    source = f"one-way latency probe of {facts.name}, {hops} hops of {GLOO_TRIPS} trips; collectives were probed before"
    return hops * GLOO_TRIPS * min(newer), source


def _message_latency(facts: LinkFacts, run: Run, topology: Topology) -> None:
    """Find the time that the link itself takes for one collective of a message without size.

    Two probes know of it: the collective of the smallest message, less its bytes' time on the wire, and the one-way
    latency times the messages that follow each other in the collective (a ring of n ranks: 2 (n - 1)). The lower
    one is taken. The first also holds what is not the link's: a rank whose core is busy elsewhere comes late, and on
    a machine with as many runnable processes as cores that alone is milliseconds, at the probe's time, not at the
    run's. Times the collectives of a step it can exceed the whole step. Waiting for a core is measured during the run
    (`cpu_wait`), and what the collective's software takes stays unexplained. The second is too much where collectives
    do not go through TCP, as over an accelerator's own links. For the same reason the collective's low end counts,
    not its median.
    """
    ranks = topology.tensor_parallel
    probe = run.ceilings.allreduce
    if probe is not None and probe.link == facts.name:
        facts.allreduce_seconds = {size: spread.low for size, spread in probe.sizes.items() if size > 0}
    one_way = [
        way.latency_seconds.median
        for pair, way in run.ceilings.links.get(facts.name, {}).items()
        if all(end in topology.nodes for end in pair.split("->")) and way.latency_seconds
    ]
    choices: list[tuple[float, str]] = []
    if ranks > 1 and probe is not None and probe.link == facts.name:
        known = sorted(facts.allreduce_seconds.items())
        if known and probe.ranks == ranks:
            size, seconds = known[0]
            wire = 2 * (ranks - 1) / ranks * size / (facts.probe_bytes_per_second or math.inf)
            choices.append((max(0.0, seconds - wire), f"all-reduce probe, {size:.0f} B over {facts.name}"))
    slower = _slower_since(facts, run, topology, probe)
    if slower is not None:
        choices = [slower]
    elif one_way:
        hops = 2 * (ranks - 1) if ranks > 1 else 1
        source = f"one-way latency probe of {facts.name}, {hops} hops a message"
        choices.append((hops * max(one_way), source))
    if choices:
        facts.message_latency_seconds, facts.message_latency_source = min(choices)
