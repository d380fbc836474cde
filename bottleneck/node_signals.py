"""What the nodes and the link say of themselves: held back by their surroundings, busy, asleep, near a ceiling.

Only local evidence tells a slow node from its peers: in a collective every rank looks as slow as the slowest.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bottleneck.client import number
from bottleneck.run import Run
from bottleneck.samples import Array, NodeSamples
from bottleneck.topology import Topology

# A link this near to its ceiling is full: framing and scheduling take the rest.
FULL = 0.8


@dataclass
class NodeFacts:
    """One node over the interval; seconds are sums over the interval; None is unknown."""

    node: str
    spins: bool = False
    covered_share: float = 0.0
    throttled_seconds: float | None = None
    quota_cores: float | None = None
    cores: float | None = None
    run_delay_seconds: float | None = None
    steal_seconds: float | None = None
    core_busy_seconds: float | None = None
    worker_cpu_seconds: float | None = None
    worker_user_seconds: float | None = None
    foreign_cpu_seconds: float | None = None
    cpu_wait_seconds: float | None = None
    asleep_share: float | None = None
    gemm_flops_per_second: float | None = None
    memory_read_bytes_per_second: float | None = None
    missing_batches: int = 0
    dropped: int = 0
    resets: int = 0

    @property
    def restricted(self) -> bool:
        """Whether the node's CPU quota is below the cores it was promised."""
        if self.quota_cores is None or self.cores is None:
            return False
        return self.quota_cores < 0.95 * self.cores


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


def median_of(estimate: object) -> float | None:
    """Return the median of an estimate as the ceilings file writes it, or a bare number."""
    value = number(estimate.get("median") if isinstance(estimate, dict) else estimate)
    return value if math.isfinite(value) and value > 0 else None


def _branch(document: object, *path: str) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def node_facts(
    run: Run, topology: Topology, samples: dict[str, NodeSamples], busy_seconds: float
) -> dict[str, NodeFacts]:
    """Gather the facts of every node of the deployment.

    Parameters
    ----------
    busy_seconds : float
        Seconds in the interval in which the engine had work; shares refer to it.
    """
    found = {}
    for node in topology.nodes:
        facts = NodeFacts(node, spins=node in topology.heads, cores=topology.cores.get(node))
        ceilings = _branch(run.ceilings, "nodes", node)
        facts.gemm_flops_per_second = median_of(_branch(ceilings, "gemm_bf16_flops_per_second"))
        facts.memory_read_bytes_per_second = median_of(_branch(ceilings, "memory_read_bytes_per_second"))
        if (series := samples.get(node)) is not None:
            _measure(
                facts, series, run.interval, f"{topology.deployment}-" if topology.deployment else "", busy_seconds
            )
        found[node] = facts
    return found


def _measure(
    facts: NodeFacts, series: NodeSamples, interval: tuple[float, float], prefix: str, busy_seconds: float
) -> None:
    start, end = interval
    facts.missing_batches, facts.dropped, facts.resets = series.missing_batches, series.dropped, series.resets
    facts.throttled_seconds = series.steps("cgroup", "throttled_s").increase(start, end)
    facts.quota_cores = series.last("cgroup", "quota_cores")
    facts.steal_seconds = series.cores("steal", start, end)
    facts.core_busy_seconds = series.cores("busy", start, end)
    first = next(iter(series.keys("cpu")), None)
    facts.covered_share = series.steps("cpu", first, 0).covered(start, end) if first is not None else 0.0
    if not any(name.startswith(prefix) for name in series.keys("workers")):
        prefix = ""
    user = series.workers("cpu_user_s", start, end, prefix)
    system = series.workers("cpu_system_s", start, end, prefix)
    facts.run_delay_seconds = series.workers("run_delay_s", start, end, prefix)
    facts.worker_user_seconds = user
    facts.worker_cpu_seconds = None if user is None else user + (system or 0.0)
    if facts.core_busy_seconds is not None and facts.worker_cpu_seconds is not None:
        facts.foreign_cpu_seconds = max(0.0, facts.core_busy_seconds - facts.worker_cpu_seconds)
    facts.cpu_wait_seconds = _cpu_wait(facts)
    if facts.worker_cpu_seconds is not None and not facts.spins and busy_seconds > 0:
        awake = facts.worker_cpu_seconds + (facts.throttled_seconds or 0.0) + (facts.cpu_wait_seconds or 0.0)
        facts.asleep_share = min(1.0, max(0.0, 1.0 - awake / busy_seconds))


def _cpu_wait(facts: NodeFacts) -> float | None:
    """Return the seconds in which the worker was ready to run and something else had its core.

    The kernel's run delay also counts a throttled group and the worker's own threads waiting for each other (on the
    head, a loop that spins waits for the process it spins for). Only as much of it as other processes ran is a wait
    for them; the hypervisor's steal comes on top.
    """
    if facts.run_delay_seconds is None:
        return facts.steal_seconds
    delay = max(0.0, facts.run_delay_seconds - (facts.throttled_seconds or 0.0))
    if facts.foreign_cpu_seconds is not None:
        delay = min(delay, facts.foreign_cpu_seconds)
    elif facts.spins:
        delay = 0.0
    return delay + (facts.steal_seconds or 0.0)


def _rates(value: object) -> list[float]:
    """Return every usable number in a run's record of a link's rate, whatever its shape."""
    if isinstance(value, dict):
        return [rate for part in value.values() for rate in _rates(part)]
    rate = number(value) if not isinstance(value, str) else math.nan
    return [rate] if math.isfinite(rate) and rate > 0 else []


def link_facts(run: Run, topology: Topology, samples: dict[str, NodeSamples], busy_seconds: float) -> LinkFacts | None:
    """Gather the facts of the link between an engine's nodes; None when nothing is exchanged."""
    if topology.link is None:
        return None
    facts = LinkFacts(topology.link)
    probes = []
    for pair, measured in (_branch(run.ceilings, "links", topology.link) or {}).items():
        ends = str(pair).split("->")
        value = median_of(_branch(measured, "bandwidth_bytes_per_second"))
        if value is not None and all(end in topology.nodes for end in ends):
            probes.append(value)
    facts.probe_bytes_per_second = min(probes, default=None)
    _capacity(facts, _rates(run.link_rates.get(topology.link)), topology.link_rate_bytes_per_second)
    _traffic(facts, topology, samples, run.interval, busy_seconds)
    _message_latency(facts, run, topology)
    return facts


def _capacity(facts: LinkFacts, recorded: list[float], profiled: float | None) -> None:
    choices = [(rate, "the rate set when the run began") for rate in recorded[:1] and [min(recorded)]]
    if facts.probe_bytes_per_second is not None:
        choices.append((facts.probe_bytes_per_second, "probe"))
    if not choices and profiled is not None:
        choices.append((profiled, "the profile's rate, not measured"))
        facts.notes.append(f"link {facts.name} has no measured ceiling: its rate in the profile stands in")
    if choices:
        facts.capacity_bytes_per_second, facts.capacity_source = min(choices)


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
    rate far below the ceiling, the workers sleep at those times, nothing holds a node back, and the bytes are those
    of prompts (few large messages, so their latency does not count).
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
    speeds = [node.gemm_flops_per_second for node in nodes.values() if node.gemm_flops_per_second]
    alike = not speeds or min(speeds) > 0.8 * max(speeds)
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


def _message_latency(facts: LinkFacts, run: Run, topology: Topology) -> None:
    ranks = topology.tensor_parallel
    probe = run.ceilings.get("allreduce")
    one_way = [
        latency
        for pair, measured in (_branch(run.ceilings, "links", facts.name) or {}).items()
        if all(end in topology.nodes for end in str(pair).split("->"))
        and (latency := median_of(_branch(measured, "latency_seconds"))) is not None
    ]
    if ranks > 1 and isinstance(probe, dict) and probe.get("link") in (None, facts.name):
        sizes = probe.get("sizes") if isinstance(probe.get("sizes"), dict) else {}
        known = sorted((number(size), median_of(value)) for size, value in (sizes or {}).items() if median_of(value))
        if known and known[0][1] is not None and probe.get("ranks") in (None, ranks):
            size, seconds = known[0][0], known[0][1]
            # The probe's own message takes some bandwidth time: a ring sends 2 (n - 1) / n of it.
            wire = 2 * (ranks - 1) / ranks * size / (facts.probe_bytes_per_second or math.inf)
            facts.message_latency_seconds = max(0.0, seconds - wire)
            facts.message_latency_source = f"all-reduce probe, {size:.0f} B over {facts.name}"
            return
    if one_way:
        hops = 2 * (ranks - 1) if ranks > 1 else 1
        facts.message_latency_seconds = hops * max(one_way)
        facts.message_latency_source = f"one-way latency probe of {facts.name}, {hops} hops a message"
