"""Weigh the deployments that a cluster could have: which fit, how fast the step model says they are, which to take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bottleneck.estimate import Interval
from bottleneck.performance.calibration import Calibration, uncalibrated
from bottleneck.performance.served import Served
from bottleneck.prediction.candidates import Candidate, candidates
from bottleneck.prediction.deployment import CannotTell, Outcome, Scenario, forecast, outcome
from bottleneck.prediction.machine import NoCeiling, machine_of
from bottleneck.prediction.recorded import LOOSE
from bottleneck.profile.deployment_checks import NodeFit, deployment_problems, node_fits
from bottleneck.profile.engine_efficiencies import MeasuredEfficiencies
from bottleneck.profile.rank_placement import card_count, placement_problem
from bottleneck.profile.types import Deployment, Profile, Workload
from bottleneck.runs.ceilings import Ceilings
from bottleneck.units import duration_text, size_text

_ALIKE = 1.01
"""Two rates within this factor are one prediction: the step model does not tell such engines apart."""


@dataclass(frozen=True)
class Speed:
    """A prediction of one deployment.

    Attributes
    ----------
    one, many : Outcome
        With one request at a time, and with as many as are sent.
    at_once : int
        Requests of those that are served at the same time; the others wait.
    basis : tuple of str
        Where ceilings are from that were not measured, and what it was calibrated on.
    """

    one: Outcome
    many: Outcome
    at_once: int
    basis: tuple[str, ...]

    @property
    def one_rate(self) -> Interval:
        """Tokens a second of a single request, behind its first token."""
        each = self.one.itl_seconds
        return Interval(1 / each.median, 1 / each.high, 1 / each.low)

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints."""
        return {
            "one_request": {**self.one.to_json(), "decode_tokens_per_second": asdict(self.one_rate)},
            "requests": {**self.many.to_json(), "at_once": self.at_once},
            "basis": list(self.basis),
        }


@dataclass(frozen=True)
class Weighed:
    """One deployment: whether it can be, what its fullest rank holds, how fast it is.

    Attributes
    ----------
    refused : str
        Why it cannot be; empty where it can.
    unknown : str
        Why there is no prediction of its speed; empty where there is one.
    """

    candidate: Candidate
    memory: NodeFit | None = None
    speed: Speed | None = None
    refused: str = ""
    unknown: str = ""

    @property
    def margin_bytes(self) -> int | None:
        """Room that is left on the fullest rank; below 0 is what is missing."""
        return None if self.memory is None else self.memory.limit_bytes - self.memory.memory.total_bytes

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints."""
        each = self.candidate
        memory = None
        if self.memory is not None:
            memory = {
                "node": self.memory.node,
                **asdict(self.memory.memory),
                "total_bytes": self.memory.memory.total_bytes,
                "limit_bytes": self.memory.limit_bytes,
                "margin_bytes": self.margin_bytes,
                "fits": self.memory.fits,
                "arithmetic": self.memory.memory.arithmetic(),
            }
        return {
            "name": each.name,
            "written": each.written,
            "engine": each.engine.kind,
            "title": each.engine.interface.title,
            "spread": each.spread,
            "own_weights": each.own_weights,
            "bits": each.model.quantization.bits,
            "weights": each.weights,
            "deployment": _written(each.deployment),
            "untested": each.engine.untested,
            "memory": memory,
            "speed": None if self.speed is None else self.speed.to_json(),
            "refused": self.refused,
            "unknown": self.unknown,
        }


def _written(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment as a profile has it: a size with its unit."""
    found: dict[str, Any] = deployment.model_dump(mode="json", by_alias=True, exclude_unset=True)
    server = dict(found.get("server", {}))
    if server.get("kv_cache_memory") is not None:
        server["kv_cache_memory"] = f"{server['kv_cache_memory']} B"
    return {**found, **({"server": server} if server else {})}


@dataclass(frozen=True)
class Choice:
    """All deployments of a cluster, the best first, and the one to take.

    Attributes
    ----------
    taken : Weighed or None
        None where nothing fits or nothing can be predicted.
    sentence : str
        Which to take and why, for people.
    """

    profile: Profile
    workload: Workload
    possible: tuple[Weighed, ...]
    refused: tuple[Weighed, ...]
    taken: Weighed | None
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints."""
        return {
            "profile": self.profile.name,
            "model": self.profile.model.name,
            "workload": {
                name: getattr(self.workload, name) for name in ("input_tokens", "output_tokens", "concurrency")
            },
            "interval": 0.9,
            "deployments": [each.to_json() for each in self.possible],
            "refused": [each.to_json() for each in self.refused],
            "recommendation": {
                "deployment": self.taken.candidate.name if self.taken else None,
                "engine": self.taken.candidate.engine.kind if self.taken else None,
                "sentence": self.sentence,
            },
        }


def choose(
    profile: Profile,
    ceilings: Ceilings | None = None,
    workload: Workload | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    link: str | None = None,
) -> Choice:
    """Weigh every deployment that the profile's machines and engines could have.

    Parameters
    ----------
    profile
        The cluster's.
    ceilings
        As probes measured them; None takes the profile's figures and datasheets.
    workload
        What is sent; the profile's without it.
    calibrations
        Entry of the engine map -> the step model fitted to runs of that engine on this cluster.
    link
        As in `candidates`.

    Returns
    -------
    Choice
        Every deployment, in one of its two lists.
    """
    load = workload or profile.workload
    known = calibrations or {}
    listed = [_fitting(profile, each, load) for each in candidates(profile, link)]
    found = [_weigh(profile, each, load, ceilings, known) for each in listed]
    possible = sorted((each for each in found if not each.refused), key=_order)
    refused = tuple(each for each in found if each.refused)
    taken, sentence = _recommend(possible, refused, load)
    return Choice(profile, load, tuple(possible), refused, taken, sentence)


def _order(each: Weighed) -> tuple[object, ...]:
    """Return what the best is first by: speed for many, then for one; among equals what needs least trust."""
    if each.speed is None:
        return (True, 0, 0, False, False, each.candidate.name)
    # Equal to a percent is equal.
    rates = (each.speed.many.tokens_per_second.median, each.speed.one_rate.median)
    steps = [round(-math.log(rate) / math.log(_ALIKE)) for rate in rates]
    return (False, *steps, bool(each.candidate.engine.untested), not each.candidate.written, each.candidate.name)


def _fitting(profile: Profile, each: Candidate, load: Workload) -> Candidate:
    """Return a deployment that the profile does not write with sequences as long as fit, others as they are."""
    if each.written or (memory := _fullest(profile, each)) is None:
        return each
    server, shortest = each.deployment.server, load.input_tokens + load.output_tokens
    length = server.max_model_len or each.model.shape.context_length
    changed = each
    while not memory.fits and length // 2 >= shortest:
        length //= 2
        settings = server.model_copy(update={"max_model_len": length})
        changed = replace(each, deployment=each.deployment.model_copy(update={"server": settings}))
        memory = _fullest(profile, changed) or memory
    return changed if memory.fits else each


def _fullest(profile: Profile, each: Candidate) -> NodeFit | None:
    """Return the memory of the rank that has the least room; None where it cannot be placed."""
    deployment = each.deployment
    nodes = {name: profile.nodes[name] for name in deployment.nodes}
    counts = [card_count(deployment, name, node) for name, node in nodes.items()]
    if placement_problem(deployment, counts) or deployment.split.problem(each.model.model_shape()):
        return None
    fits = node_fits(deployment, each.model, nodes, profile.engines)
    return max(fits, key=lambda fit: fit.memory.total_bytes / fit.limit_bytes)


def _weigh(
    profile: Profile,
    each: Candidate,
    load: Workload,
    ceilings: Ceilings | None,
    calibrations: Mapping[str, Calibration],
) -> Weighed:
    nodes = {name: profile.nodes[name] for name in each.deployment.nodes}
    memory = _fullest(profile, each)
    problem = next(deployment_problems(each.deployment, each.model, nodes, profile.engines, load), None)
    if problem is not None or memory is None:
        where = ".".join(map(str, problem.location)) if problem else ""
        text = problem.text if problem else "it cannot be placed"
        return Weighed(each, memory, refused=f"{where}: {text}" if where else text)
    try:
        return Weighed(each, memory, _speed(profile, each, memory, load, ceilings, calibrations.get(each.engine.kind)))
    except (NoCeiling, CannotTell) as trouble:
        return Weighed(each, memory, unknown=str(trouble))


def _speed(
    profile: Profile,
    each: Candidate,
    memory: NodeFit,
    load: Workload,
    ceilings: Ceilings | None,
    calibration: Calibration | None,
) -> Speed:
    deployment = each.deployment
    if deployment.tensor_parallel > 1 and deployment.pipeline_parallel > 1:
        raise CannotTell("layers are shared over one link and passed on over another, and the step model has one")
    machine = machine_of(profile, deployment, ceilings)
    assert machine.accelerator is not None, "only a link's own has none"
    head = profile.nodes[deployment.nodes[0]].accelerator
    limits = deployment.limits(profile.model.shape, head, each.engine.host_processor)
    served = Served(
        each.model.model_shape(),
        each.model.weight_format(),
        limits.batched_tokens,
        kv_value_bytes=each.engine.cache_value_bytes(each.model.kv_value_bytes),
    )
    split = replace(deployment.split, link=machine.link, overlapping=each.engine.interface.overlapping_stages)
    at_once = _at_once(deployment.replicas, limits.sequences, memory, load)
    tokens = max(2, load.output_tokens)
    efficiencies = each.engine.efficiencies
    engine = efficiencies.of_bits(served.weights.bits) if efficiencies else None
    known = calibration or uncalibrated(served, machine.accelerator, tokens, split, _loose(each), engine)
    accelerator = machine.accelerator if calibration is None else calibration.accelerator
    scenario = Scenario(served, accelerator, split, deployment.replicas, at_once, load.input_tokens, tokens)
    many = outcome(forecast(known, scenario, None), scenario)
    single = replace(scenario, replicas=1, batch=1)
    one = outcome(forecast(known, single, None), single)
    basis = _calibrated_on(calibration) if calibration or not efficiencies else _fitted_to(each, efficiencies)
    return Speed(one, many, at_once, (*basis, *machine.basis))


def _loose(each: Candidate) -> float:
    """Return how much wider the priors are: they come from GPUs, and a processor may be anything."""
    return LOOSE if each.engine.host_processor else 1.0


def _calibrated_on(calibration: Calibration | None) -> tuple[str, ...]:
    if calibration is None:
        return ()
    count = calibration.points.batch.size
    return (f"calibrated on {count} measured point{'s' if count > 1 else ''} of this engine",)


def _fitted_to(each: Candidate, efficiencies: MeasuredEfficiencies) -> tuple[str, ...]:
    count = efficiencies.measurements
    runs = f"{count} run{'s' if count > 1 else ''} of it on another machine or at another time"
    return (f"{each.engine.kind}: efficiencies of the engine map, fitted to {runs}",)


def _at_once(replicas: int, sequences: int, memory: NodeFit, load: Workload) -> int:
    """Return how many requests are served at the same time: what the server and its cache have room for."""
    rank = memory.memory
    # What the settings leave open is cache, too; sizes that they give are not exceeded.
    room = rank.kv_cache_tokens
    if rank.kv_cache_bytes <= rank.sequence_bytes:
        room = room * (rank.kv_cache_bytes + memory.limit_bytes - rank.total_bytes) // max(1, rank.kv_cache_bytes)
    inside = min(sequences, room // (load.input_tokens + load.output_tokens))
    return max(1, min(load.concurrency, replicas * inside))


def _recommend(possible: Sequence[Weighed], refused: Sequence[Weighed], load: Workload) -> tuple[Weighed | None, str]:
    own = [each for each in possible if each.candidate.own_weights]
    known = [(each, each.speed) for each in own if each.speed is not None]
    if not own:
        reason = next((each.refused for each in refused if each.candidate.own_weights), "no engine runs on its nodes")
        return None, f"No deployment of this model can be here, the first because of this: {reason}."
    if not known:
        return None, f"{len(own)} deployments fit and none can be recommended, for {own[0].unknown}."
    best, speed = known[0]
    rate = speed.many.tokens_per_second
    text = (
        f"Take {_called(best)}: of {len(own)} deployments that fit it answers {load.concurrency} requests at a time "
        f"fastest, with {_rate_text(rate)} and the first token after {duration_text(speed.many.ttft_seconds.median)}, "
        f"and one alone with {number_text(speed.one_rate.median)} tokens/s; most of "
        f"a token's time goes to {speed.many.decode_binds}"
    )
    alike = [each for each, other in known[1:] if _same(other.many.tokens_per_second, rate)]
    others = [(each, other) for each, other in known[1:] if each not in alike]
    if alike:
        names = ", ".join(each.candidate.name for each in alike)
        text += f"; the step model gives {names} the same, which only a run of each tells apart (cluster bench)"
    if others:
        second, other = others[0]
        text += f"; next is {_called(second)} with {_rate_text(other.many.tokens_per_second)}"
        if other.many.tokens_per_second.high >= rate.low and not alike:
            text += ", an interval that overlaps, so measure both (cluster bench)"
    if best.candidate.engine.untested:
        text += f"; nobody has tried its engine there ({best.candidate.engine.kind}: cluster profile check says what)"
    return best, text + "."


def _same(one: Interval, two: Interval) -> bool:
    return max(one.median, two.median) < _ALIKE * min(one.median, two.median)


def _called(each: Weighed) -> str:
    candidate = each.candidate
    length = candidate.deployment.server.max_model_len or candidate.model.shape.context_length
    how = f"{candidate.engine.interface.title}, {candidate.spread}, {candidate.weights}, up to {length} tokens"
    return f"{candidate.name} ({how})"


def _rate_text(rate: Interval) -> str:
    return f"{number_text(rate.median)} tokens/s ({number_text(rate.low)} to {number_text(rate.high)})"


def number_text(value: float) -> str:
    """Return a number with three digits, all of those before the point.

    Parameters
    ----------
    value
        The number.
    """
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def missing_text(memory: NodeFit) -> str:
    """Return how much of a rank's room is left, or by how much it does not fit.

    Parameters
    ----------
    memory
        A rank's needs and its limit.
    """
    left = memory.limit_bytes - memory.memory.total_bytes
    return f"{size_text(left)} left" if left >= 0 else f"{size_text(-left)} too much"
