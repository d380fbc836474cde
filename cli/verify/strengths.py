"""The faults and how strong each is to be so that it costs what is wanted.

A strength is searched while it is recorded: a rough model gives the first one, and every run that was measured makes
the next one better. Each of these runs is a case, so nothing is spent on the search alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cli.verify.loads import Load

LINK = "direct"
MEGABIT = 1e6 / 8
# Seconds more per output token, as a share, that a fault is to cost; in the order in which they are recorded.
TARGETS = (0.4, 0.1, 1.6, 0.2, 0.8, 0.05)
# Bytes of one token's hidden state, and how often two ranks add theirs up: of the embedded model.
HIDDEN_BYTES, ALL_REDUCES = 2048, 17
# Two measured strengths nearer than this (in the logarithm of their size) tell more of noise than of a slope.
LEAST_APART = 0.3
# A burst and the pause after it, together, at most: a run is to see some of them.
LONGEST_PERIOD_SECONDS = 3.0
STEADY_PERIOD_SECONDS = 0.05
BURST_PROCESSES = 2


@dataclass(frozen=True)
class Fault:
    """One fault that is put in.

    Attributes
    ----------
    kind
        A name of `KINDS`, one of the settings' (`slots`, `budget`, `cache`), or `cold_disk` for a start.
    strength
        In the kind's unit: bytes per second, seconds, cores, processes' worth of work, requests per second; for a
        setting its value.
    node, link
        Where, if it is at one place.
    burst_seconds
        How long foreign work lasts each time; None where it is steady.
    """

    kind: str
    strength: float
    node: str | None = None
    link: str | None = None
    burst_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Fault:
        """Read what `to_json` returned."""
        return cls(**document)


@dataclass(frozen=True)
class Healthy:
    """The load without a fault: throughput's seconds per output token, requests per second, seconds long."""

    seconds_per_token: float
    requests_per_second: float
    run_seconds: float


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes
    ----------
    size
        Of a strength, in a number that the cost rises with.
    strength
        The inverse of `size`.
    weakest, strongest
        Range of the strengths that are put in.
    threshold
        Whether time goes on with the size (1 + cost ~ size, once it is felt) and not the time that is added.
    """

    name: str
    place: str
    weakest: float
    strongest: float
    size: Callable[[float], float]
    strength: Callable[[float], float]
    threshold: bool = False

    def within(self, size: float) -> float:
        """Return a size's strength, inside the range."""
        low, high = sorted((self.weakest, self.strongest))
        return min(max(self.strength(size), low), high)


def _inverse(value: float) -> float:
    return 1.0 / max(value, 1e-12)


def _same(value: float) -> float:
    return value


def _link_bytes(deployment: str, load: Load) -> float:
    """Return the bytes that one direction of the link carries per output token."""
    per_token = HIDDEN_BYTES * (ALL_REDUCES if deployment == "tp2" else 2)
    return per_token * (1.0 + load.input_tokens / load.output_tokens)


def _messages(deployment: str, load: Load) -> float:
    """Return the messages, one after the other, per output token of all clients together."""
    per_step = 2 * ALL_REDUCES if deployment == "tp2" else 1
    return per_step * (1.0 / load.concurrency + 1.0 / load.output_tokens)


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("link_rate", "link", 4000 * MEGABIT, 1 * MEGABIT, _inverse, _inverse),
        Kind("link_delay", "link", 0.0001, 0.02, _same, _same),
        Kind("quota", "node", 0.97, 0.25, lambda cores: 1.0 / cores - 1.0, lambda size: 1.0 / (1.0 + size)),
        Kind("foreign", "node", 0.05, 3.0, _same, _same),
        Kind("bursts", "node", 0.05, 1.0, _same, _same),
        Kind("foreign_all", "", 0.05, 2.5, _same, _same),
        Kind("api_server", "api_server", 0.2, 0.003, _inverse, _inverse, threshold=True),
        Kind("low_rate", "", 50.0, 0.02, _inverse, _inverse, threshold=True),
    )
}
# What the API server of a load like these took of a core, per second, in the lab.
API_SERVER_CORES = 0.017


def first_size(kind: str, cost: float, deployment: str, load: Load, healthy: Healthy) -> float:
    """Return the size at which a fault costs so much, by a rough model."""
    # Two replicas share the load: what one of them loses costs about half of it.
    shared = 2.0 if deployment == "replicas" else 1.0
    match kind:
        case "link_rate":
            return cost * healthy.seconds_per_token / _link_bytes(deployment, load)
        case "link_delay":
            return cost * healthy.seconds_per_token / _messages(deployment, load)
        case "quota":
            return shared * cost
        case "foreign":
            return shared * 1.5 * cost
        case "foreign_all":
            return 1.2 * cost
        case "bursts":
            # In a burst of two programs the node has a third of its core.
            return shared * 1.5 * cost / (1.0 + cost)
        case "api_server":
            return (1.0 + cost) / API_SERVER_CORES
        case "low_rate":
            return (1.0 + cost) / healthy.requests_per_second
    raise ValueError(f"{kind}: expected one of {', '.join(KINDS)}")


def next_strength(
    kind: Kind, cost: float, deployment: str, load: Load, healthy: Healthy, seen: Mapping[float, float]
) -> float:
    """Return the strength at which a fault should cost so much, by what was measured so far.

    Parameters
    ----------
    seen
        Measured cost by strength.
    """

    def level(share: float) -> float:
        return math.log(1.0 + share if kind.threshold else share)

    # What cost nothing tells nothing of how the cost goes on.
    known = sorted((math.log(kind.size(put)), level(max(found, 0.01))) for put, found in seen.items() if found > 0.02)
    wanted = level(cost)
    if not known:
        size = first_size(kind.name, cost, deployment, load, healthy)
        if seen:
            # The strongest so far was not felt at all.
            size = max(size, 2.5 * max(kind.size(put) for put in seen))
        return kind.within(size)
    nearest = sorted(known, key=lambda point: abs(point[1] - wanted))[:2]
    (size, reached), slope = nearest[0], 1.0
    if len(nearest) == 2 and abs(nearest[1][0] - size) > LEAST_APART:
        slope = (nearest[1][1] - reached) / (nearest[1][0] - size)
        # Beyond what was measured a fault gets worse faster than it began, if anything.
        inside = known[0][1] <= wanted <= known[-1][1]
        slope = min(max(slope, 0.6 if inside else 1.0), 6.0 if kind.threshold else 2.0)
    return kind.within(math.exp(size + (wanted - reached) / slope))


def made(kind: Kind, strength: float, node: str | None, rng: random.Random) -> Fault:
    """Return the fault of a kind at a place."""
    burst = None
    if kind.name == "bursts":
        longest = max(LONGEST_PERIOD_SECONDS * strength, 0.2)
        burst = round(min(math.exp(rng.uniform(math.log(0.2), math.log(3.0))), longest), 3)
    # As many digits as anyone would set.
    strength = float(f"{strength:.4g}")
    link = LINK if kind.place == "link" else None
    at = {"node": node, "api_server": "node0"}.get(kind.place)
    return Fault(kind.name, strength, at, link, burst)


def injections(fault: Fault, nodes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what is done to the lab for a fault; see `cli.verify.faults`. Settings and loads need nothing there.

    Parameters
    ----------
    nodes
        Those of the deployment.
    """
    strength = fault.strength
    match fault.kind:
        case "link_rate":
            return [{"kind": "throttle", "link": fault.link, "bytes_per_second": strength}]
        case "link_delay":
            return [{"kind": "delay", "link": fault.link, "seconds": strength}]
        case "quota":
            return [{"kind": "slow", "node": fault.node, "cores": strength}]
        case "api_server":
            return [{"kind": "api_server", "node": fault.node, "cores": strength}]
        case "cold_disk":
            return [{"kind": "cold_disk", "node": node, "bytes_per_second": strength} for node in nodes]
        case "bursts":
            burst = fault.burst_seconds or 1.0
            pause = burst * (1.0 - strength) / strength
            return [_work(fault.node, BURST_PROCESSES, burst, pause)]
        case "foreign" | "foreign_all":
            processes = math.ceil(strength)
            busy = STEADY_PERIOD_SECONDS * strength / processes
            where = nodes if fault.kind == "foreign_all" else (fault.node,)
            return [_work(node, processes, busy, STEADY_PERIOD_SECONDS - busy) for node in where]
    return []


def _work(node: str | None, processes: int, busy: float, pause: float) -> dict[str, Any]:
    return {"kind": "work", "node": node, "processes": processes, "busy_seconds": busy, "pause_seconds": pause}
