"""Take apart steps on an accelerator that is watched from outside: the engine's own counts over ceilings.

Where no sample shows what a worker does (an accelerator, a recorded scenario), the time of its steps is known, and the
least time that their operations and bytes need. What lies between is kernels that do not reach the ceilings, a host
that does not keep the accelerator busy, or, where ranks talk, messages between them. Kernels of a served model reach a
third of the ceilings or more when they are large; a step many times its floor is one of the others'. Between kernels
and host it cannot be told from one scenario, and is said; between host and a link that nobody watched neither, so what
is left over there has a name of its own (`unwatched`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bottleneck.diagnosis import thresholds
from bottleneck.diagnosis.attribution.node_time import DECODE_STEPS, floor_of
from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL, Both, Part, Work
from bottleneck.diagnosis.observations.engine import EngineFacts
from bottleneck.diagnosis.observations.issues import Issue, Scope
from bottleneck.diagnosis.observations.node import NodeFacts
from bottleneck.diagnosis.observations.observed import Observations
from bottleneck.performance.efficiencies import efficiency
from bottleneck.performance.model import FORMATS
from bottleneck.runs.topology import Group
from bottleneck.units import BYTE

COUNTERS = "engine: estimated_flops_per_gpu, estimated_read_bytes_per_gpu (an analytic model)"


def _reached_by_width() -> dict[float, float]:
    """Return what whole decoding steps reach of their floor's ceilings, by the bytes of a weight, widest first."""
    return {FORMATS[name].bits / BYTE: efficiency("decode_step", name).value for name in DECODE_STEPS}


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


def watched_from_outside(seen: Observations, group: Group) -> bool:
    """Return whether nothing but the engine's metrics shows what an accelerator does.

    Parameters
    ----------
    seen : Observations
        Everything observed of a run.
    group : Group
        One engine's nodes; over several nodes the link shows something as well.
    """
    if len(group.nodes) != 1:
        return False
    facts = seen.nodes.get(group.head)
    if facts is None or facts.worker_user_seconds is not None:
        return False
    nodes = getattr(seen.topology.profile, "nodes", None) or {}
    accelerator = getattr(nodes.get(group.head), "accelerator", None)
    return getattr(accelerator, "kind", "unknown") != "cpu"


def floors(seen: Observations, group: Group, facts: EngineFacts, both: Both) -> dict[str, Floor]:
    """Return the least time of each kind of work; zeros when it cannot be told.

    Parameters
    ----------
    seen
        All that was observed of the run.
    group
        The engine: its head and its nodes in rank order.
    facts
        What was read of the group's engine.
    both
        Steps with prompts in them, and steps of decoding only.
    """
    node = seen.nodes.get(group.head) or NodeFacts(group.head)
    prefill, decode = both
    rate, speed = node.memory_read_bytes_per_second, node.gemm_flops_per_second
    tokens = prefill.tokens + decode.tokens
    if not facts.flops or not tokens or not (rate or speed):
        found = {work.kind: floor_of(seen, group, node, work) for work in both}
        return {
            kind: Floor() if floor is None else Floor(float(floor.arithmetic[0]), float(floor.weights[0]))
            for kind, floor in found.items()
        }
    # A prompt's attention is in the count too, so a decoded token's share of it is an upper bound.
    decoding = min(facts.flops, facts.flops / tokens * decode.tokens)
    steps = max(prefill.steps + decode.steps, 1.0)
    read = (facts.read_bytes or 0.0) * decode.steps / steps
    weights, known = _weights_read(seen, facts, tokens, read / max(decode.steps, 1.0))
    weights = min(read, weights * decode.steps)
    seconds = 1.0 / rate if rate else 0.0
    work = 1.0 / speed / seen.settings.arithmetic_gain if speed else 0.0
    return {
        PREFILL: Floor((facts.flops - decoding) * work, ((facts.read_bytes or 0.0) - read) * seconds),
        DECODE: Floor(decoding * work, weights * seconds, (read - weights) * seconds, known),
    }


def _weights_read(seen: Observations, facts: EngineFacts, tokens: float, read_per_step: float) -> tuple[float, bool]:
    """Return the weight bytes that one step reads, and whether their width is known and not guessed.

    Two operations a weight and token give the number of weights; their width is a setting, else it is the widest that
    what a step reads allows.
    """
    parameters = (facts.flops or 0.0) / tokens / 2
    if seen.settings.weight_bytes is not None:
        return parameters * seen.settings.weight_bytes, True
    fitting = (width for width in _reached_by_width() if parameters * width <= thresholds.BEYOND * read_per_step)
    width = next(fitting, None)
    return (read_per_step if width is None else parameters * width), False


def _width_by_reads(facts: EngineFacts, both: Both) -> float | None:
    """Return the bytes of a weight where what a step reads is little more than all weights of one width; else None."""
    tokens, steps = sum(work.tokens for work in both), sum(work.steps for work in both)
    if not facts.flops or not facts.read_bytes or tokens <= 0 or steps <= 0:
        return None
    a_weight = facts.read_bytes / steps / (facts.flops / tokens / 2)
    low, high = 1.0 / thresholds.BEYOND, 1.0 + thresholds.PLATEAU_BAND
    return next((width for width in _reached_by_width() if low * width <= a_weight <= high * width), None)


def usual_efficiency(reached: float, width: float | None) -> float:
    """Return what share of the roofline the kernels of decoding steps are taken to reach.

    Parameters
    ----------
    reached : float
        What the whole step reached.
    width : float or None
        Bytes of a weight. Where it is not known no efficiency is usual: a step that reaches a third is all kernels.
    """
    if width is not None:
        return max(reached, _reached_by_width()[width])
    least, surely, unknown = (
        efficiency(name).value for name in ("kernels_at_least", "kernels_alone", "kernels_unknown")
    )
    if reached <= least:
        return unknown
    if reached >= surely:
        return reached
    along = math.log(reached / least) / math.log(surely / least)
    return math.exp(along * math.log(surely) + (1.0 - along) * math.log(unknown))


def accelerator_work(
    seen: Observations, group: Group, facts: EngineFacts, both: Both
) -> tuple[tuple[Work, ...], tuple[Issue, ...], bool]:
    """Return both kinds of work with their parts, contradictions, and whether host and kernels cannot be told apart.

    Parameters
    ----------
    seen
        All that was observed of the run.
    group
        The engine: its head and its nodes in rank order.
    facts
        What was read of the group's engine.
    both
        Steps with prompts in them, and steps of decoding only.
    """
    found = floors(seen, group, facts, both)
    width = seen.settings.weight_bytes or _width_by_reads(facts, both)
    work, issues, unsure = [], [], False
    for each in both:
        filled, raised, uncertain = _filled(seen, group, facts, each, found[each.kind], width)
        work.append(filled)
        issues += raised
        unsure = unsure or uncertain
    return tuple(work), tuple(issues), unsure


def _filled(
    seen: Observations, group: Group, facts: EngineFacts, work: Work, floor: Floor, width: float | None
) -> tuple[Work, list[Issue], bool]:
    node, wall, decoding = group.head or None, work.wall_seconds, work.kind == DECODE
    if floor.seconds <= 0 or wall <= 0:
        return work, [], False
    work = replace(work, floor_seconds=floor.seconds, floor_words=floor.words(), floor_source=f"{COUNTERS} / ceilings")
    reached = floor.seconds / wall
    if reached > thresholds.BEYOND and decoding:
        words = (
            f"{work.kind}: bytes and operations at the ceilings would take {reached:.2f} times the measured time: "
            "the ceilings are another machine's, or the engine's counts do not belong to this load"
        )
        return replace(work, floor_seconds=0.0), [Issue(thresholds.GRAVE, words, Scope.STEPS)], False
    if decoding:
        usual = usual_efficiency(reached, width)
    else:
        least = efficiency("kernels_at_least").value
        usual = reached if reached >= least else efficiency("prefill_step").value
    kernels = min(wall, floor.seconds / usual)
    host, uncertain = _host_seconds(seen, facts, work, kernels)
    left = 0.0
    if seen.topology.unwatched_link:
        # Graphs and prompts leave little to the host: what is beyond that passes between the ranks, or waits for it.
        left, host = (host, 0.0) if not decoding else (max(0.0, wall - kernels - host), host)
    kernels = wall - host - left
    issues = []
    if decoding and kernels > 0 and floor.seconds / kernels < thresholds.IMPLAUSIBLE and not left:
        words = (
            f"{work.kind}: steps that reach {reached:.2%} of the ceilings are hard to believe: "
            "the ceilings may be another machine's"
        )
        issues.append(Issue(thresholds.GRAVE, words, Scope.STEPS))
    memory = kernels * floor.memory_share if decoding else 0.0
    source = f"{COUNTERS} / ceilings, and what kernels lose against them"
    beyond = "a step's time beyond what kernels usually take for its bytes and operations"
    parts = (
        Part("compute", kernels - memory, source, node),
        Part("memory", memory, source, node),
        Part("host", host, beyond, node),
        Part(
            "unwatched",
            left,
            f"{beyond}, and its host: the ranks exchange messages and nobody watched their link",
            node,
        ),
    )
    known = seen.settings.eager or seen.settings.graphs
    unsure = thresholds.HOST_UNSURE < host / wall < 1.0 - thresholds.HOST_UNSURE
    return work.with_parts(parts), issues, uncertain or (decoding and not known and unsure and not left)


def _host_seconds(seen: Observations, facts: EngineFacts, work: Work, kernels: float) -> tuple[float, bool]:
    """Return the host's seconds of some work whose kernels are taken to need so many, and whether that is doubtful."""
    wall, decoding, uncertain = work.wall_seconds, work.kind == DECODE, False
    host = wall - kernels
    if seen.settings.eager:
        # Kernels run while the next ones are launched: one of the two hides beneath the other.
        hidden = kernels / wall
        host = wall * min(1.0, max(0.0, (1.0 - hidden) / (1.0 - thresholds.LAUNCHES_HIDDEN)))
        if decoding and hidden > thresholds.LAUNCHES_HIDDEN:
            # How far these kernels can get is not known that well: the launches may be what limits all the same.
            host, uncertain = max(host, thresholds.LAUNCHES_LEFT * wall), True
    elif decoding and (seen.settings.graphs or seen.topology.unwatched_link):
        running = max(facts.running_mean or 1.0, 1.0)
        a_step, a_sequence = efficiency("graph_step_seconds").value, efficiency("graph_sequence_seconds").value
        host = min(host, work.steps * (a_step + a_sequence * running))
    return host, uncertain
