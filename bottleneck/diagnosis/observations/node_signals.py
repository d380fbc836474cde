"""What the nodes say of themselves: held back by their surroundings, busy, asleep, slower than their peers.

Only local evidence tells a slow node from its peers: in a collective every rank looks as slow as the slowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from bottleneck.runs.ceilings import NodeCeilings
from bottleneck.runs.run import Run
from bottleneck.runs.topology import Topology
from bottleneck.telemetry.samples import NodeSamples

# A ceiling this far below the peers' makes a node the slow one.
SLOWER = 0.8
# From this temperature on a processor or accelerator may be lowering its clock for it.
HOT_CELSIUS = 83.0


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
    gemm_interval: tuple[float, float] | None = None
    memory_read_bytes_per_second: float | None = None
    memory_read_interval: tuple[float, float] | None = None
    worker_system_seconds: float | None = None
    front_cpu_seconds: float | None = None
    front_wait_seconds: float | None = None
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
    missing_batches: int = 0
    dropped: int = 0
    resets: int = 0

    @property
    def restricted(self) -> bool:
        """Whether the node's CPU quota is below the cores it was promised."""
        if self.quota_cores is None or self.cores is None:
            return False
        return self.quota_cores < 0.95 * self.cores


def slower_in(facts: NodeFacts, peers: Sequence[NodeFacts]) -> tuple[str, float]:
    """Return what a node is slower in than its peers by its ceilings, `gemm` or `memory`, and how much, 0 to 1.

    Two medians of a probe on a busy machine differ without any cause, so a node counts as slower only when its
    interval lies wholly below its peers' and its median well below theirs.
    """
    what, slower = "gemm", 0.0
    for name, value, interval in (
        ("gemm", "gemm_flops_per_second", "gemm_interval"),
        ("memory", "memory_read_bytes_per_second", "memory_read_interval"),
    ):
        own, reach = getattr(facts, value), getattr(facts, interval)
        others = [found for peer in peers if (found := getattr(peer, value))]
        lows = [found[0] for peer in peers if (found := getattr(peer, interval))]
        if own and others and reach and lows and reach[1] < median(lows) and own < SLOWER * median(others):
            by = 1.0 - own / median(others)
            if by > slower:
                what, slower = name, by
    return what, slower


def slower_by(facts: NodeFacts, peers: Sequence[NodeFacts]) -> float:
    """Return how much slower than its peers a node is by its ceilings, 0 to 1; see `slower_in`."""
    return slower_in(facts, peers)[1]


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
        ceilings = run.ceilings.nodes.get(node, NodeCeilings())
        if (multiply := ceilings.gemm_bf16_flops_per_second) is not None:
            facts.gemm_flops_per_second, facts.gemm_interval = multiply.median, multiply.interval
        if (read := ceilings.memory_read_bytes_per_second) is not None:
            facts.memory_read_bytes_per_second, facts.memory_read_interval = read.median, read.interval
        if (disk := ceilings.disk_read_bytes_per_second) is not None:
            facts.disk_bytes_per_second = disk.median
        if (dispatch := ceilings.kernel_dispatch_seconds) is not None:
            facts.dispatch_seconds = dispatch.median
        if (series := samples.get(node)) is not None:
            _surroundings(facts, series, run.interval)
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
    facts.worker_user_seconds, facts.worker_system_seconds = user, system
    facts.storage_read_bytes = series.workers("storage_read_bytes", start, end, prefix)
    facts.storage_wait_seconds = series.workers("storage_wait_s", start, end, prefix)
    facts.front_cpu_seconds = series.workers("front_cpu_s", start, end, prefix)
    facts.front_wait_seconds = series.workers("front_run_delay_s", start, end, prefix)
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


def _surroundings(facts: NodeFacts, series: NodeSamples, interval: tuple[float, float]) -> None:
    """Gather what is around the workers: memory, disk, heat, the ways to memory and accelerator."""
    start, end = interval
    inside = (series.times >= start) & (series.times <= end)
    facts.disk_read_bytes = series.steps("disk", "read_bytes").increase(start, end)
    facts.io_stall_seconds = series.steps("psi", "io", 0).increase(start, end)
    facts.memory_stall_seconds = series.steps("psi", "memory", 0).increase(start, end)
    available = (series.values("mem", "available") / series.values("mem", "total"))[inside]
    if np.isfinite(available).any():
        facts.memory_available_share = float(np.nanmin(available))
    facts.thermal_seconds = series.steps("thermal", "throttled_s").increase(start, end)
    remote, local = (series.steps("numa", name).increase(start, end) for name in ("remote_pages", "local_pages"))
    if remote is not None and local is not None and remote + local > 0:
        facts.remote_memory_share = remote / (remote + local)
    for card in series.keys("accelerator"):
        clock = series.values("accelerator", card, "frequency_hertz")[inside]
        clock = clock[np.isfinite(clock) & (clock > 0)]
        if clock.size >= 4:
            # What it reached for a moment against what it held: a median, so that idle moments do not count as heat.
            lost = 1.0 - float(np.median(clock)) / float(clock.max())
            facts.clock_lost_share = max(facts.clock_lost_share or 0.0, lost)
        heat = series.values("accelerator", card, "temperature_celsius")[inside]
        if np.isfinite(heat).any():
            facts.temperature_celsius = max(facts.temperature_celsius or 0.0, float(np.nanmax(heat)))
        power, limit = (series.last("accelerator", card, name) for name in ("power_watts", "power_limit_watts"))
        energy = series.steps("accelerator", card, "energy_joules").within(start, end)
        if power is None and energy.growth.size:
            power = float(energy.growth.sum() / energy.seconds.sum())
        if power and limit:
            facts.power_share = max(facts.power_share or 0.0, power / limit)
        speed, most = (
            series.last("accelerator", card, name) for name in ("bus_bytes_per_second", "bus_limit_bytes_per_second")
        )
        if speed and most:
            facts.bus_share = min(facts.bus_share or 1.0, speed / most)
