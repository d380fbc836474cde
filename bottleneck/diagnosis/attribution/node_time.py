"""A node's own part of a step: its work, and what holds it back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bottleneck.diagnosis.attribution.link_time import link_parts
from bottleneck.diagnosis.attribution.step_parts import DECODE, Part, Work
from bottleneck.diagnosis.observations.node_signals import NodeFacts, slower_by
from bottleneck.diagnosis.observations.signals import Signals
from bottleneck.performance.model import Split, flops_per_token, read_bytes
from bottleneck.runs.topology import Group


def local_parts(signals: Signals, group: Group, node: str, both: tuple[Work, Work], index: int) -> list[Part]:
    """Return the parts of one kind of work that happen on one node: its own work, messages, what holds it back."""
    facts, work = signals.nodes.get(node) or NodeFacts(node), both[index]
    held = [_held_parts(facts, both, each) for each in (0, 1)]
    rooms = []
    for each in (0, 1):
        taken = [*held[each], *link_parts(signals, group, both[each], both)]
        # Pipeline stages take turns: a node's work has its turn's share of the time, not all of it.
        turns = len(group.nodes) if signals.topology.pipeline_parallel > 1 else 1
        rooms.append(max(0.0, both[each].wall_seconds - math.fsum(part.seconds for part in taken)) / turns)
    seconds, source = _compute(signals, group, facts, both, index, rooms)
    bound = roofline(signals, group, facts, work)
    # The arithmetic of a prompt is what counts of it; decoding is named by what its roofline says limits it.
    resource = "memory" if work.kind == DECODE and bound.memory >= bound.compute else "compute"
    parts = [Part(resource, min(seconds, work.wall_seconds), source, node)] if seconds > 0 else []
    return parts + held[index]


def _held_parts(facts: NodeFacts, both: tuple[Work, Work], index: int) -> list[Part]:
    """Return what held a node back; it is not known by step, so each kind has it by its share of the busy time."""
    wall = both[index].wall_seconds
    shared = wall / max(both[0].wall_seconds + both[1].wall_seconds, 1e-12)
    found = []
    handling = facts.worker_system_seconds if not facts.spins else None
    for resource, total, source in (
        ("message_handling", handling, "samples: CPU time of the kernel for the worker: its messages"),
        ("throttled", facts.throttled_seconds, "samples: cgroup throttled time"),
        ("cpu_wait", facts.cpu_wait_seconds, "samples: run delay of the workers while other processes ran, and steal"),
    ):
        if total and total > 0:
            found.append(Part(resource, min(total * shared, wall), source, facts.node))
    return found


@dataclass(frozen=True)
class Roofline:
    """Least seconds of some work at a node's ceilings, by its operations and by its bytes."""

    compute: float = 0.0
    memory: float = 0.0

    @property
    def seconds(self) -> float:
        """The larger of the two: they overlap."""
        return max(self.compute, self.memory)


def roofline(signals: Signals, group: Group, facts: NodeFacts, work: Work) -> Roofline:
    """Return the least time in seconds that a node's arithmetic of one kind of work takes at its ceilings.

    Operations over the measured matrix-multiply ceiling and weight bytes over the measured memory ceiling, both at the
    high end of their intervals. Attention and cache reads are left out, so it is a lower bound. Zeros when it cannot be
    told.
    """
    profile, topology = signals.topology.profile, signals.topology
    if profile is None:
        return Roofline()
    shape, weights = profile.model.model_shape(), profile.model.weight_format()
    split = Split(topology.tensor_parallel, topology.pipeline_parallel)
    stage = _stage(signals, group, facts.node)
    decode = work.kind == DECODE
    operations = work.tokens * flops_per_token(shape, split, stage, output_head=decode)
    read = work.steps * read_bytes(shape, weights, split, stage)
    return Roofline(
        operations / facts.gemm_interval[1] if facts.gemm_interval else 0.0,
        read / facts.memory_read_interval[1] if facts.memory_read_interval else 0.0,
    )


def _compute(
    signals: Signals, group: Group, facts: NodeFacts, both: tuple[Work, Work], index: int, rooms: list[float]
) -> tuple[float, str]:
    """Return a node's own work of one kind in seconds, and the source.

    A worker that sleeps while it waits shows its work as its user CPU time. The head's engine loop spins, so its CPU
    time shows nothing; under tensor parallelism it has the same arithmetic as its peers, done at its own speed. The
    roofline's lower bound holds for all.

    Parameters
    ----------
    index : int
        Which of `both` kinds is asked for.
    rooms : list of float
        What the link and the node's surroundings leave of each kind's wall time.
    """
    bounds = [roofline(signals, group, facts, each).seconds for each in both]
    estimated = "estimated from the model's arithmetic and the node's ceilings: a lower bound"
    measured, source = _measured_cpu(signals, group, facts)
    if measured is None:
        return bounds[index], estimated
    weights = bounds if sum(bounds) > 0 else [each.wall_seconds for each in both]
    split = [measured * weight / max(sum(weights), 1e-12) for weight in weights]
    # What does not fit into one kind's time was the other's: the ratio of two lower bounds is only roughly right.
    overflow = max(0.0, split[1 - index] - rooms[1 - index])
    seconds = min(split[index] + overflow, max(rooms[index], 0.0))
    return (bounds[index], estimated) if bounds[index] > seconds else (seconds, source)


def _measured_cpu(signals: Signals, group: Group, facts: NodeFacts) -> tuple[float | None, str]:
    if not facts.spins:
        return facts.worker_user_seconds, "samples: user CPU time of the worker, which sleeps while it waits"
    peers = [
        (peer, peer.worker_user_seconds)
        for name in group.nodes
        if (peer := signals.nodes.get(name)) is not None and not peer.spins and peer.worker_user_seconds is not None
    ]
    if not peers:
        return None, ""
    peer, seconds = max(peers, key=lambda pair: pair[1])
    # Only a difference beyond the probes' spread is one.
    speed = (1.0 - slower_by(peer, [facts])) / (1.0 - slower_by(facts, [peer]))
    if signals.topology.pipeline_parallel < 2:
        return (
            seconds * speed,
            f"user CPU time of its peer {peer.node}, which does the same arithmetic, by their ceilings",
        )
    own, others = (_operations(signals, group, name) for name in (facts.node, peer.node))
    if not own or not others:
        return None, ""
    words = f"user CPU time of its peer {peer.node}, by the operations of their stages and their ceilings"
    return seconds * speed * own / others, words


def _operations(signals: Signals, group: Group, node: str) -> float:
    """Return the operations of a node's stage for one token; 0 without a profile."""
    profile, topology = signals.topology.profile, signals.topology
    if profile is None:
        return 0.0
    split = Split(topology.tensor_parallel, topology.pipeline_parallel)
    return float(flops_per_token(profile.model.model_shape(), split, _stage(signals, group, node)))


def _stage(signals: Signals, group: Group, node: str) -> int:
    """Return the pipeline stage of a node."""
    tensor, pipeline = signals.topology.tensor_parallel, signals.topology.pipeline_parallel
    rank = group.nodes.index(node) if node in group.nodes else 0
    return min(rank * tensor * pipeline // max(1, len(group.nodes)) // tensor, pipeline - 1)
