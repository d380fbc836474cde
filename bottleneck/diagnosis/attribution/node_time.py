"""Work out a node's own part of a step: its work, and what restrains it."""

from __future__ import annotations

import math

from bottleneck.diagnosis.attribution.link_time import link_parts, split_of
from bottleneck.diagnosis.attribution.parts import DECODE, Both, Part, Work, total
from bottleneck.diagnosis.observations.node import NodeFacts
from bottleneck.diagnosis.observations.observed import Observations
from bottleneck.diagnosis.observations.peers import slower_by
from bottleneck.performance.calibration import prior
from bottleneck.performance.efficiencies import efficiency
from bottleneck.performance.model import FORMATS, flops_per_token
from bottleneck.performance.roofline import Floor, step_floor
from bottleneck.performance.scheduler import Steps
from bottleneck.performance.served import Accelerator, Served
from bottleneck.performance.server_limits import server_defaults
from bottleneck.performance.step import step_parts
from bottleneck.runs.topology import Group

_USUAL = "the model's arithmetic and the card's ceilings, at what steps of this format usually reach of them"
_MODELLED = "the step model: the card's ceilings and starts of kernels, at what kernels of this format usually reach"
DECODE_STEPS = ("bf16", "fp8", "w4a16")
"""Formats of weights whose decoding steps were measured, widest first."""


def local_parts(seen: Observations, group: Group, node: str, both: Both) -> tuple[list[Part], list[Part]]:
    """Return the parts of each kind of work that happen on one node: its own work, messages, what restrains it.

    Parameters
    ----------
    seen
        All that was observed of the run.
    group
        The engine: its head and its nodes in rank order.
    node
        One node of the group.
    both
        Steps with prompts in them, and steps of decoding only.

    Returns
    -------
    tuple of two lists of Part
        Of each kind of `both`, in that order; empty when neither has any time.
    """
    if not sum(each.wall_seconds for each in both) > 0:
        return [], []
    facts = seen.nodes.get(node) or NodeFacts(node)
    restrained = [_restraints(facts, both, each) for each in (0, 1)]
    rooms = []
    for each in (0, 1):
        taken = [*restrained[each], *link_parts(seen, group, both[each], both)]
        # Pipeline stages take turns: a node's work has its turn's share of the time, not all of it.
        turns = len(group.nodes) if seen.topology.pipeline_parallel > 1 else 1
        rooms.append(max(0.0, both[each].wall_seconds - total(taken)) / turns)
    floors = [floor_of(seen, group, facts, each) for each in both]

    def of_kind(index: int) -> list[Part]:
        work, bound = both[index], floors[index]
        seconds, source = _compute(seen, group, facts, both, index, rooms, floors)
        # The arithmetic of a prompt is what counts of it; decoding is named by what its roofline says limits it.
        reads = bound is None or float(bound.weights[0]) >= float(bound.arithmetic[0])
        resource = "memory" if work.kind == DECODE and reads else "compute"
        parts = [Part(resource, min(seconds, work.wall_seconds), source, node)] if seconds > 0 else []
        return parts + restrained[index]

    return of_kind(0), of_kind(1)


def _restraints(facts: NodeFacts, both: Both, index: int) -> list[Part]:
    """Return what restrained a node; it is not known by step, so each kind has it by its share of the busy time."""
    wall, whole = both[index].wall_seconds, sum(each.wall_seconds for each in both)
    if whole <= 0:
        return []
    shared = wall / whole
    found = []
    handling = facts.worker_system_seconds if not facts.spins else None
    for resource, seconds, source in (
        ("message_handling", handling, "samples: CPU time of the kernel for the worker: its messages"),
        ("throttled", facts.throttled_seconds, "samples: cgroup throttled time"),
        ("cpu_wait", facts.cpu_wait_seconds, "samples: run delay of the workers while other processes ran, and steal"),
    ):
        if seconds and seconds > 0:
            found.append(Part(resource, min(seconds * shared, wall), source, facts.node))
    return found


def floor_of(seen: Observations, group: Group, facts: NodeFacts, work: Work) -> Floor | None:
    """Return the least seconds that a node's part of some work takes at its ceilings, by the step model.

    The mean step of the work, as often as there were steps; ceilings at the high end of their intervals. What is read
    of the cache is not known and left out. None without a profile, or without any step or ceiling.

    Parameters
    ----------
    seen
        All that was observed of the run.
    group
        The engine: its head and its nodes in rank order.
    facts
        What was measured of the node.
    work
        One kind of work: its steps and tokens.
    """
    profile = seen.topology.profile
    if profile is None or work.steps <= 0 or not (facts.gemm_interval or facts.memory_read_interval):
        return None
    floor = step_floor(
        _mean_step(work),
        served_of(seen),
        facts.gemm_interval[1] if facts.gemm_interval else math.inf,
        facts.memory_read_interval[1] if facts.memory_read_interval else math.inf,
        split_of(seen),
        _stage(seen, group, facts.node),
    )
    return floor.times(work.steps)


def served_of(seen: Observations) -> Served:
    """Return the profile's model as it is served.

    Parameters
    ----------
    seen : Observations
        Everything observed of a run with a profile's model.

    Returns
    -------
    Served
        With the engine's budget of tokens for a step, or vLLM's default for it.
    """
    model, budget = seen.topology.model, seen.topology.max_num_batched_tokens
    return Served(model.model_shape(), model.weight_format(), budget or server_defaults().batched_tokens)


def _compute(
    seen: Observations,
    group: Group,
    facts: NodeFacts,
    both: Both,
    index: int,
    rooms: list[float],
    floors: list[Floor | None],
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
    floors : list of Floor or None
        The least that each kind can take.
    """
    bounds = [0.0 if floor is None else float(floor.linear[0]) for floor in floors]
    if seen.topology.on_accelerator(facts.node):
        modelled = _modelled(seen, group, facts, both[index])
        if modelled is not None:
            return modelled, _MODELLED
        return _usual(seen, both[index].kind, bounds[index]), _USUAL
    estimated = "estimated from the model's arithmetic and the node's ceilings: a lower bound"
    measured, source = _measured_cpu(seen, group, facts)
    if measured is None:
        return bounds[index], estimated
    weights = bounds if sum(bounds) > 0 else [each.wall_seconds for each in both]
    if sum(weights) <= 0:
        return bounds[index], estimated
    split = [measured * weight / sum(weights) for weight in weights]
    # What does not fit into one kind's time was the other's: the ratio of two lower bounds is only roughly right.
    overflow = max(0.0, split[1 - index] - rooms[1 - index])
    seconds = min(split[index] + overflow, max(rooms[index], 0.0))
    return (bounds[index], estimated) if bounds[index] > seconds else (seconds, source)


def _modelled(seen: Observations, group: Group, facts: NodeFacts, work: Work) -> float | None:
    """Return the seconds that an accelerator's steps take by the step model, without messages between ranks.

    Not a share of the roofline: what a layer costs beside its work does not shrink with the part of it that a rank has.
    Of two H200 with half of each layer a decoding step worked for 5.8 ms as traced, 5.7 by the model, and 3.0 by the
    share that whole models reach (doc/reference/gpu-lab.md). None where the start of a kernel was not measured.
    """
    memory, peak, start = facts.memory_read_bytes_per_second, facts.gemm_flops_per_second, facts.dispatch_seconds
    if seen.topology.profile is None or not (memory and peak and start) or work.steps <= 0:
        return None
    card, served = Accelerator(facts.node, memory, peak, start), served_of(seen)
    medians, _ = prior(served.weights, card)
    parts = step_parts(_mean_step(work), served, card, medians, split_of(seen), _stage(seen, group, facts.node))
    return work.steps * float(parts.total[0])


def _mean_step(work: Work) -> Steps:
    """Return the mean step of some work: logits are wanted of every decoded token, and of the last one of a prompt."""
    tokens = work.tokens / work.steps
    return Steps.one(tokens, tokens) if work.kind == DECODE else Steps.one(tokens, 0.0, prompt_tokens=tokens)


def _usual(seen: Observations, kind: str, bound: float) -> float:
    """Return the seconds that an accelerator's steps usually take, host and all, for the floor of one kind of work."""
    if kind != DECODE:
        return bound / efficiency("prefill_step").value
    bits = seen.topology.model.weight_format().bits
    measured = next((name for name in DECODE_STEPS if FORMATS[name].bits == bits), None)
    return bound / (efficiency("decode_step", measured).value if measured else efficiency("kernels_unknown").value)


def _measured_cpu(seen: Observations, group: Group, facts: NodeFacts) -> tuple[float | None, str]:
    if not facts.spins:
        return facts.worker_user_seconds, "samples: user CPU time of the worker, which sleeps while it waits"
    peers = [
        (peer, peer.worker_user_seconds)
        for name in group.nodes
        if (peer := seen.nodes.get(name)) is not None and not peer.spins and peer.worker_user_seconds is not None
    ]
    if not peers:
        return None, ""
    peer, seconds = max(peers, key=lambda pair: pair[1])
    # Only a difference beyond the probes' spread is one.
    speed = (1.0 - slower_by(peer, [facts])) / (1.0 - slower_by(facts, [peer]))
    if seen.topology.pipeline_parallel < 2:
        return (
            seconds * speed,
            f"user CPU time of its peer {peer.node}, which does the same arithmetic, by their ceilings",
        )
    own, others = (_operations(seen, group, name) for name in (facts.node, peer.node))
    if not own or not others:
        return None, ""
    words = f"user CPU time of its peer {peer.node}, by the operations of their stages and their ceilings"
    return seconds * speed * own / others, words


def _operations(seen: Observations, group: Group, node: str) -> float:
    """Return the operations of a node's stage for one token; 0 without a profile."""
    profile = seen.topology.profile
    if profile is None:
        return 0.0
    return float(flops_per_token(profile.model.model_shape(), split_of(seen), _stage(seen, group, node)))


def _stage(seen: Observations, group: Group, node: str) -> int:
    """Return the pipeline stage of a node."""
    tensor, pipeline = seen.topology.tensor_parallel, seen.topology.pipeline_parallel
    rank = group.nodes.index(node) if node in group.nodes else 0
    return min(rank * tensor * pipeline // max(1, len(group.nodes)) // tensor, pipeline - 1)
