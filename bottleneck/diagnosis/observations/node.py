"""Facts about each node: busy, asleep, restricted from outside, its ceilings, its memory, disk and heat."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.observations.cards import CardFacts, card_facts
from bottleneck.runs.ceilings import NodeCeilings
from bottleneck.runs.run import Run
from bottleneck.runs.topology import Topology
from bottleneck.telemetry.sample_schema import SOME_STALLED
from bottleneck.telemetry.samples import NodeSamples

Span = tuple[float, float]


@dataclass(frozen=True)
class NodeFacts:
    """One node over the interval; seconds are sums over the interval; None is unknown.

    Attributes
    ----------
    spins : bool
        Whether its engine loop or its workers spin, so that their CPU time says nothing of their work: of two H100
        over a link the kernel's time for the workers was 60 % of a pipeline's steps, a hundred times what the link's
        latency explained (tests/data/h100_pair).
    cpu_wait_seconds : float or None
        In which the worker was ready to run and something else had its core.
    asleep_share : float or None
        Share of the busy time in which a worker that does not spin waited for others, 0 to 1.
    gemm_interval, memory_read_interval : (float, float) or None
        Low and high end of the probed ceilings, in FLOP/s and bytes/s.
    """

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
    worker_system_seconds: float | None = None
    foreign_cpu_seconds: float | None = None
    cpu_wait_seconds: float | None = None
    asleep_share: float | None = None
    gemm_flops_per_second: float | None = None
    gemm_interval: Span | None = None
    memory_read_bytes_per_second: float | None = None
    memory_read_interval: Span | None = None
    api_server_cpu_seconds: float | None = None
    api_server_wait_seconds: float | None = None
    disk_read_bytes: float | None = None
    disk_bytes_per_second: float | None = None
    storage_read_bytes: float | None = None
    storage_wait_seconds: float | None = None
    io_stall_seconds: float | None = None
    dispatch_seconds: float | None = None
    memory_stall_seconds: float | None = None
    memory_available_share: float | None = None
    thermal_seconds: float | None = None
    clock_lost_share: float | None = None
    temperature_celsius: float | None = None
    power_share: float | None = None
    remote_memory_share: float | None = None
    bus_share: float | None = None
    card: CardFacts | None = None
    missing_batches: int = 0
    dropped: int = 0
    resets: int = 0

    @property
    def restricted(self) -> bool:
        """Return whether the node's CPU quota is below the cores it was promised."""
        if self.quota_cores is None or self.cores is None:
            return False
        return self.quota_cores < thresholds.QUOTA_BELOW * self.cores

    @property
    def restrained_seconds(self) -> float:
        """Seconds in which its surroundings kept its worker from running.

        Throttling by a quota as large as the promised cores is the node's own work running into its size, not counted.
        """
        own_size = self.quota_cores is not None and self.cores is not None and not self.restricted
        return (0.0 if own_size else self.throttled_seconds or 0.0) + (self.cpu_wait_seconds or 0.0)


def node_facts(
    run: Run, topology: Topology, samples: dict[str, NodeSamples], busy_seconds: float
) -> dict[str, NodeFacts]:
    """Return the facts of every node of the deployment.

    Parameters
    ----------
    run : Run
        The run, for its ceilings and its interval.
    topology : Topology
        The run's topology: which nodes take part.
    samples : dict[str, NodeSamples]
        Node -> its samples; a node without any has facts of its ceilings alone.
    busy_seconds : float
        Seconds in the interval in which the engine had work; shares refer to it.
    """
    prefix = f"{topology.deployment}-" if topology.deployment else ""
    found = {}
    for node in topology.nodes:
        # Beside an accelerator workers ask again and again whether the card, or the collective, is done.
        spins = node in topology.heads or topology.on_accelerator(node)
        facts = NodeFacts(node, spins=spins, cores=topology.cores.get(node))
        facts = _with_ceilings(facts, run.ceilings.nodes.get(node, NodeCeilings()))
        if (series := samples.get(node)) is not None:
            facts = _with_heat_and_memory(facts, series, run.interval)
            facts = _with_processes(facts, series, run.interval, prefix, busy_seconds)
            if topology.on_accelerator(node):
                facts = replace(facts, cpu_wait_seconds=_kept_from_running(facts, run.interval))
        found[node] = facts
    return found


def _with_ceilings(facts: NodeFacts, known: NodeCeilings) -> NodeFacts:
    multiply, read = known.gemm_bf16_flops_per_second, known.memory_read_bytes_per_second
    disk, dispatch = known.disk_read_bytes_per_second, known.kernel_dispatch_seconds
    return replace(
        facts,
        gemm_flops_per_second=multiply.median if multiply else None,
        gemm_interval=multiply.interval if multiply else None,
        memory_read_bytes_per_second=read.median if read else None,
        memory_read_interval=read.interval if read else None,
        disk_bytes_per_second=disk.median if disk else None,
        dispatch_seconds=dispatch.median if dispatch else None,
    )


def _with_processes(
    facts: NodeFacts, series: NodeSamples, interval: Span, prefix: str, busy_seconds: float
) -> NodeFacts:
    """Return the facts with what the node's cores and workers did."""
    start, end = interval
    if not any(name.startswith(prefix) for name in series.keys("workers")):
        prefix = ""

    def workers(quantity: str) -> float | None:
        return series.workers(quantity, start, end, prefix)

    first = next(iter(series.keys("cpu")), None)
    user, system, delay = workers("cpu_user_s"), workers("cpu_system_s"), workers("run_delay_s")
    throttled = series.steps("cgroup", "throttled_s").increase(start, end)
    busy, steal = series.cores("busy", start, end), series.cores("steal", start, end)
    used = None if user is None else user + (system or 0.0)
    foreign = max(0.0, busy - used) if busy is not None and used is not None else None
    waited = _cpu_wait(delay, throttled, foreign, steal, facts.spins)
    asleep = None
    if used is not None and not facts.spins and busy_seconds > 0:
        awake = used + (throttled or 0.0) + (waited or 0.0)
        asleep = min(1.0, max(0.0, 1.0 - awake / busy_seconds))
    return replace(
        facts,
        missing_batches=series.missing_batches,
        dropped=series.dropped,
        resets=series.resets,
        throttled_seconds=throttled,
        quota_cores=series.last("cgroup", "quota_cores", until=end),
        steal_seconds=steal,
        core_busy_seconds=busy,
        covered_share=series.steps("cpu", first, 0).covered(start, end) if first is not None else 0.0,
        run_delay_seconds=delay,
        worker_user_seconds=user,
        worker_system_seconds=system,
        worker_cpu_seconds=used,
        foreign_cpu_seconds=foreign,
        cpu_wait_seconds=waited,
        asleep_share=asleep,
        storage_read_bytes=workers("storage_read_bytes"),
        storage_wait_seconds=workers("storage_wait_s"),
        api_server_cpu_seconds=workers("api_server_cpu_s"),
        api_server_wait_seconds=workers("api_server_run_delay_s"),
    )


def _cpu_wait(
    delay: float | None, throttled: float | None, foreign: float | None, steal: float | None, spins: bool
) -> float | None:
    """Return the seconds in which the worker was ready to run and something else had its core.

    The kernel's run delay also counts a throttled group and the worker's own threads waiting for each other (on the
    head, a loop that spins waits for the process it spins for). Only as much of it as other processes ran is a wait
    for them; the hypervisor's steal comes on top.
    """
    if delay is None:
        return steal
    waited = max(0.0, delay - (throttled or 0.0))
    if foreign is not None:
        waited = min(waited, foreign)
    elif spins:
        waited = 0.0
    return waited + (steal or 0.0)


def _kept_from_running(facts: NodeFacts, interval: Span) -> float | None:
    """Return the seconds in which the worker of a node with a card was ready to run and did not.

    Its threads spin, so what they want of cores is the time that they had and the time that they waited for, and of a
    process that is stopped all wait at once: it was ready to run the share of the time that waiting is of both. A rank
    stopped a fifth of the time waited 0.21 and 0.25 of it, one that was left alone less than 0.001 (two H200,
    doc/reference/gpu-lab.md). Under a quota waiting is throttling, which is counted as that.
    """
    delay, used = facts.run_delay_seconds, facts.worker_cpu_seconds
    if facts.restricted or delay is None or used is None or used + delay <= 0:
        return facts.cpu_wait_seconds
    return (interval[1] - interval[0]) * delay / (used + delay)


def _with_heat_and_memory(facts: NodeFacts, series: NodeSamples, interval: Span) -> NodeFacts:
    """Return the facts with memory, disk, heat, the ways to memory and accelerator."""
    start, end = interval
    inside = (series.times >= start) & (series.times <= end)
    available = (series.values("mem", "available") / series.values("mem", "total"))[inside]
    remote, local = (series.steps("numa", name).increase(start, end) for name in ("remote_pages", "local_pages"))
    cards = [_accelerator(series, card, interval, inside) for card in series.keys("accelerator")]

    def most(name: str) -> float | None:
        return max((card[name] for card in cards if card.get(name) is not None), default=None)

    return replace(
        facts,
        disk_read_bytes=series.steps("disk", "read_bytes").increase(start, end),
        io_stall_seconds=series.steps("psi", "io", SOME_STALLED).increase(start, end),
        memory_stall_seconds=series.steps("psi", "memory", SOME_STALLED).increase(start, end),
        memory_available_share=float(np.nanmin(available)) if np.isfinite(available).any() else None,
        thermal_seconds=series.steps("thermal", "throttled_s").increase(start, end),
        remote_memory_share=remote / (remote + local)
        if remote is not None and local is not None and remote + local > 0
        else None,
        clock_lost_share=most("clock_lost_share"),
        temperature_celsius=most("temperature_celsius"),
        power_share=most("power_share"),
        card=card_facts(series, interval),
        bus_share=min((card["bus_share"] for card in cards if card.get("bus_share") is not None), default=None),
    )


def _accelerator(series: NodeSamples, card: str, interval: Span, inside: NDArray[np.bool_]) -> dict[str, float]:
    """Return one accelerator's lost clock, heat, power and bus, as far as they are known."""
    found: dict[str, float] = {}
    clock = series.values("accelerator", card, "frequency_hertz")[inside]
    clock = clock[np.isfinite(clock) & (clock > 0)]
    if clock.size >= thresholds.FEW_REQUESTS:
        # What it reached for a moment against what it kept: a median, so that idle moments do not count as heat.
        found["clock_lost_share"] = 1.0 - float(np.median(clock)) / float(clock.max())
    heat = series.values("accelerator", card, "temperature_celsius")[inside]
    if np.isfinite(heat).any():
        found["temperature_celsius"] = float(np.nanmax(heat))
    power, limit = (
        series.last("accelerator", card, name, until=interval[1]) for name in ("power_watts", "power_limit_watts")
    )
    energy = series.steps("accelerator", card, "energy_joules").within(*interval)
    if power is None and energy.growth.size:
        power = float(energy.growth.sum() / energy.seconds.sum())
    if power and limit:
        found["power_share"] = power / limit
    speed, most = (
        series.last("accelerator", card, name, until=interval[1])
        for name in ("bus_bytes_per_second", "bus_limit_bytes_per_second")
    )
    if speed and most:
        found["bus_share"] = min(1.0, speed / most)
    return found
