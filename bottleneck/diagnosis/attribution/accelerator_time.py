"""Steps on an accelerator that is watched from outside: the engine's own count of operations and bytes, over ceilings.

Where no sample shows what a worker does (an accelerator, a recorded scenario), the time of its steps is known, and the
least time that their operations and bytes need. What lies between is either kernels that do not reach the ceilings or a
host that does not keep the accelerator busy. Kernels of a served model reach a third of the ceilings or more when they
are large; a step many times its floor is the host's. Between the two it cannot be told from one scenario, and is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bottleneck.diagnosis.attribution.node_time import roofline
from bottleneck.diagnosis.attribution.step_parts import DECODE, PREFILL, Part, Work
from bottleneck.diagnosis.observations.engine_signals import EngineFacts
from bottleneck.diagnosis.observations.node_signals import NodeFacts
from bottleneck.diagnosis.observations.signals import BEYOND, Signals
from bottleneck.diagnosis.observations.weakness import STEP_CLASSES, Weakness
from bottleneck.runs.topology import Group

# Share of the roofline that the kernels of a decoding step usually reach, by the bytes of a weight: the narrower, the
# more a kernel does beside reading (measured on an H200: 0.83 for bf16, 0.35 for 4 bit).
USUALLY_REACHED = {2.0: 0.8, 1.0: 0.6, 0.5: 0.4}
# Where the width is not known: no sane kernel is below the first, from the second on kernels alone explain a step, and
# below the first they are taken to reach the third.
LEAST_REACHED, SURELY_REACHED, UNKNOWN_REACHED = 0.15, 0.3, 0.6
# Kernels below this share of the ceilings are not believed, nor steps that take less than their floor, nor a host that
# makes a step of so many bytes last so many times its floor; confidence is multiplied by the second then.
IMPLAUSIBLE, CONTRADICTED = 0.08, 0.4
LARGE_BYTES, LEAST_OF_LARGE = 2e9, 0.03
# What whole steps with prompts reach, whatever the width.
PREFILL_REACHED = 0.7
# A host's share of a step between these, with nothing known of graphs, may as well be slow kernels.
DOUBTFUL = (0.25, 0.75)
# With captured graphs a step costs the host about this much, and this much more for every sequence in it.
GRAPH_STEP_SECONDS, GRAPH_SEQUENCE_SECONDS = 0.004, 3e-5
# Without graphs, kernels that fill less than this share of a step hide beneath their launches; where they seem to fill
# all of it, this much is still left to the launches.
HIDDEN, LAUNCHES_LEFT = 0.75, 0.2
COUNTERS = "engine: estimated_flops_per_gpu, estimated_read_bytes_per_gpu (an analytic model)"


@dataclass(frozen=True)
class Floor:
    """Least seconds of one kind of work: arithmetic and reads of weights overlap, reads of the cache come on top."""

    compute: float = 0.0
    weights: float = 0.0
    cache: float = 0.0
    cache_known: bool = False

    @property
    def seconds(self) -> float:
        """The whole."""
        return max(self.compute, self.weights) + self.cache

    @property
    def memory_share(self) -> float:
        """Share of the floor that is reads, 0 to 1."""
        reads = self.cache + (self.weights if self.weights >= self.compute else 0.0)
        return reads / self.seconds if self.seconds > 0 else 0.0

    def words(self) -> str:
        """Return what it is made of, in words."""
        if self.seconds <= 0:
            return ""
        found = [
            f"operations {self.compute / self.seconds:.0%}"
            if self.compute > self.weights
            else f"reads of weights {self.weights / self.seconds:.0%}"
        ]
        if self.cache_known and self.cache > 0:
            found.append(f"reads of the cache {self.cache / self.seconds:.0%}")
        return ", ".join(found)


def watched_from_outside(signals: Signals, group: Group) -> bool:
    """Whether one accelerator serves alone and nothing but the engine's metrics shows what it does."""
    if len(group.nodes) != 1:
        return False
    facts = signals.nodes.get(group.head)
    if facts is None or facts.worker_user_seconds is not None:
        return False
    nodes = getattr(signals.topology.profile, "nodes", None) or {}
    accelerator = getattr(nodes.get(group.head), "accelerator", None)
    return getattr(accelerator, "kind", "unknown") != "cpu"


def floors(signals: Signals, group: Group, facts: EngineFacts, both: tuple[Work, Work]) -> dict[str, Floor]:
    """Return the least time of each kind of work; zeros when it cannot be told."""
    node = signals.nodes.get(group.head) or NodeFacts(group.head)
    prefill, decode = both
    rate, speed = node.memory_read_bytes_per_second, node.gemm_flops_per_second
    tokens = prefill.tokens + decode.tokens
    if not facts.flops or not tokens or not (rate or speed):
        bounds = {work.kind: roofline(signals, group, node, work) for work in both}
        return {kind: Floor(bound.compute, bound.memory) for kind, bound in bounds.items()}
    # A prompt's attention is in the count too, so a decoded token's share of it is an upper bound.
    decoding = min(facts.flops, facts.flops / tokens * decode.tokens)
    steps = max(prefill.steps + decode.steps, 1.0)
    read = (facts.read_bytes or 0.0) * decode.steps / steps
    weights, known = _weights_read(signals, facts, tokens, read / max(decode.steps, 1.0))
    weights = min(read, weights * decode.steps)
    seconds = 1.0 / rate if rate else 0.0
    work = 1.0 / speed / signals.settings.arithmetic_gain if speed else 0.0
    return {
        PREFILL: Floor((facts.flops - decoding) * work, ((facts.read_bytes or 0.0) - read) * seconds),
        DECODE: Floor(decoding * work, weights * seconds, (read - weights) * seconds, known),
    }


def _weights_read(signals: Signals, facts: EngineFacts, tokens: float, read_per_step: float) -> tuple[float, bool]:
    """Return the weight bytes that one step reads, and whether their width is known and not guessed.

    Two operations a weight and token give the number of weights; their width comes from a name, else it is the widest
    that what a step reads allows.
    """
    parameters = (facts.flops or 0.0) / tokens / 2
    if signals.settings.weight_bytes is not None:
        return parameters * signals.settings.weight_bytes, True
    for width in (2.0, 1.0, 0.5):
        if parameters * width <= 1.05 * read_per_step:
            return parameters * width, False
    return read_per_step, False


def _width_by_reads(facts: EngineFacts, both: tuple[Work, Work]) -> float | None:
    """Return the bytes of a weight where what a step reads is little more than all weights of one width; else None."""
    tokens, steps = sum(work.tokens for work in both), sum(work.steps for work in both)
    if not facts.flops or not facts.read_bytes or tokens <= 0 or steps <= 0:
        return None
    a_weight = facts.read_bytes / steps / (facts.flops / tokens / 2)
    return next((width for width in USUALLY_REACHED if 0.9 * width <= a_weight <= 1.25 * width), None)


def usual_efficiency(reached: float, width: float | None) -> float:
    """Return what share of the roofline the kernels are taken to reach.

    Parameters
    ----------
    reached : float
        What the whole step reached.
    width : float or None
        Bytes of a weight. Where it is not known no efficiency is usual: a step that reaches a third is all kernels.
    """
    if width is not None:
        return max(reached, USUALLY_REACHED[width])
    if reached <= LEAST_REACHED:
        return UNKNOWN_REACHED
    if reached >= SURELY_REACHED:
        return reached
    along = math.log(reached / LEAST_REACHED) / math.log(SURELY_REACHED / LEAST_REACHED)
    return math.exp(along * math.log(SURELY_REACHED) + (1.0 - along) * math.log(UNKNOWN_REACHED))


def fill_work(signals: Signals, group: Group, facts: EngineFacts, both: tuple[Work, Work]) -> None:
    """Fill the parts of both kinds of work; what contradicts itself is a weakness of the signals."""
    node, found = group.head or None, floors(signals, group, facts, both)
    doubtful = False
    width = signals.settings.weight_bytes or _width_by_reads(facts, both)
    for work in both:
        floor = found[work.kind]
        if floor.seconds <= 0 or work.wall_seconds <= 0:
            continue
        work.floor_seconds, work.floor_words, work.floor_source = floor.seconds, floor.words(), f"{COUNTERS} / ceilings"
        reached = floor.seconds / work.wall_seconds
        if reached > BEYOND and work.kind == DECODE:
            words = (
                f"{work.kind}: bytes and operations at the ceilings would take {reached:.2f} times the measured time: "
                "the ceilings are another machine's, or the engine's counts do not belong to this load"
            )
            signals.weaknesses.append(Weakness(CONTRADICTED, words, STEP_CLASSES))
            work.floor_seconds = 0.0
            continue
        if work.kind == DECODE:
            usual = usual_efficiency(reached, width)
        else:
            usual = reached if reached >= LEAST_REACHED else PREFILL_REACHED
        kernels = min(work.wall_seconds, floor.seconds / usual)
        host = work.wall_seconds - kernels
        if signals.settings.eager:
            # Kernels run while the next ones are launched: one of the two hides beneath the other.
            hidden = kernels / work.wall_seconds
            host = work.wall_seconds * min(1.0, max(0.0, (1.0 - hidden) / (1.0 - HIDDEN)))
            if work.kind == DECODE and hidden > HIDDEN:
                # How far these kernels can get is not known that well: the launches may be what limits all the same.
                host, doubtful = max(host, LAUNCHES_LEFT * work.wall_seconds), True
            kernels = work.wall_seconds - host
        if signals.settings.graphs and work.kind == DECODE:
            running = max(facts.running_mean or 1.0, 1.0)
            host = min(host, work.steps * (GRAPH_STEP_SECONDS + GRAPH_SEQUENCE_SECONDS * running))
            kernels = work.wall_seconds - host
        large = (facts.read_bytes or 0.0) > LARGE_BYTES * sum(each.steps for each in both)
        slow = kernels > 0 and floor.seconds / kernels < IMPLAUSIBLE
        if work.kind == DECODE and (slow or (large and reached < LEAST_OF_LARGE)):
            words = (
                f"{work.kind}: steps that reach {reached:.2%} of the ceilings are hard to believe: "
                "the ceilings may be another machine's"
            )
            signals.weaknesses.append(Weakness(CONTRADICTED, words, STEP_CLASSES))
        memory = kernels * floor.memory_share if work.kind == DECODE else 0.0
        source = f"{COUNTERS} / ceilings, and what kernels lose against them"
        work.parts = [
            Part("compute", kernels - memory, source, node),
            Part("memory", memory, source, node),
            Part("host", host, "a step's time beyond what kernels usually take for its bytes and operations", node),
        ]
        work.parts = [part for part in work.parts if part.seconds > 1e-6 * work.wall_seconds]
        told = signals.settings.eager or signals.settings.graphs
        share = host / work.wall_seconds
        doubtful = doubtful or (work.kind == DECODE and not told and DOUBTFUL[0] < share < DOUBTFUL[1])
        if doubtful:
            signals.unsure.add(frozenset({"host_overhead", "decode_memory_bandwidth", "decode_compute"}))
